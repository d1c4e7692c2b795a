"""Targets over strings, reached by prompt and by LoRA (Forcing Diffuse Distributions, arXiv 2404.10859)."""

from __future__ import annotations

from dpexplore.diffuse.adapter import Adapter, load_adapter
from dpexplore.diffuse.config import PRESETS, AdapterConfig
from dpexplore.diffuse.metrics import OutcomeFit, SampleFacts, coverage, outcome_fit, perplexity, sample_facts
from dpexplore.diffuse.sampling import sample_answers
from dpexplore.diffuse.training import AdapterRun, AdapterStep, cross_entropy, train_adapter

__all__ = [
    "PRESETS",
    "Adapter",
    "AdapterConfig",
    "AdapterRun",
    "AdapterStep",
    "OutcomeFit",
    "SampleFacts",
    "coverage",
    "cross_entropy",
    "load_adapter",
    "outcome_fit",
    "perplexity",
    "sample_answers",
    "sample_facts",
    "train_adapter",
]
