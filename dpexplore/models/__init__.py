"""Load and freeze a causal language model; the models dpexplore knows by name."""

from __future__ import annotations

from dpexplore.models.default_model import DEFAULT_MODEL
from dpexplore.models.language_model import LanguageModel
from dpexplore.models.loading import load_model
from dpexplore.models.registry import ModelInfo, describe_models

__all__ = ["DEFAULT_MODEL", "LanguageModel", "ModelInfo", "describe_models", "load_model"]
