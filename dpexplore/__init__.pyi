from .errors import InputError
from .floor import FloorResult
from .floor.of_model import softmax_floor
from .models import DEFAULT_MODEL, LanguageModel, describe_models, load_model
from .targets import (
    Recipe,
    Target,
    build_many,
    capture,
    entropy,
    file,
    parse_recipe,
    pos,
    random_prompt,
    save_target,
    strings,
    tokens,
    top_tokens,
)
from .tuning import Engine, EngineServer, Run, TuneConfig, TuneResult, TuneStep, tune

__version__: str

__all__ = [
    "DEFAULT_MODEL",
    "Engine",
    "EngineServer",
    "FloorResult",
    "InputError",
    "LanguageModel",
    "Recipe",
    "Run",
    "Target",
    "TuneConfig",
    "TuneResult",
    "TuneStep",
    "build_many",
    "capture",
    "describe_models",
    "entropy",
    "file",
    "load_model",
    "parse_recipe",
    "pos",
    "random_prompt",
    "save_target",
    "softmax_floor",
    "strings",
    "tokens",
    "top_tokens",
    "tune",
]
