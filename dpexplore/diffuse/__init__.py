"""Targets over strings, reached by prompt and by LoRA (Forcing Diffuse Distributions, arXiv 2404.10859)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
