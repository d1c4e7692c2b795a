from .language_model import LanguageModel
from .loading import load_model
from .names import DEFAULT_MODEL
from .registry import ModelInfo, describe_models

__all__ = ["DEFAULT_MODEL", "LanguageModel", "ModelInfo", "describe_models", "load_model"]
