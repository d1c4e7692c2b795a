from .errors import InputError
from .floor import FloorResult
from .floor.of_model import softmax_floor
from .floor.reach import Reach, reach
from .models import DEFAULT_MODEL, LanguageModel, describe_models, load_model
from .targets import (
    Recipe,
    Target,
    build_many,
    capture,
    entropy,
    file,
    order,
    parse_recipe,
    pos,
    random_prompt,
    save_target,
    strings,
    tokens,
    top_tokens,
)
from .tuning import Engine, EngineServer, Run, TuneConfig, TuneResult, TuneStep, tune
from .tuning.single_token import SingleToken, best_single_token, score_tokens

__version__: str

__all__ = [
    "DEFAULT_MODEL",
    "Engine",
    "EngineServer",
    "FloorResult",
    "InputError",
    "LanguageModel",
    "Reach",
    "Recipe",
    "Run",
    "SingleToken",
    "Target",
    "TuneConfig",
    "TuneResult",
    "TuneStep",
    "best_single_token",
    "build_many",
    "capture",
    "describe_models",
    "entropy",
    "file",
    "load_model",
    "order",
    "parse_recipe",
    "pos",
    "random_prompt",
    "reach",
    "save_target",
    "score_tokens",
    "softmax_floor",
    "strings",
    "tokens",
    "top_tokens",
    "tune",
]
