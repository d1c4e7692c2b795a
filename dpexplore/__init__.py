"""dpexplore: see, touch and measure what a language model can and cannot say as a probability distribution.

An implementation of *Distribution Prompting* (arXiv 2505.12244):

    import dpexplore as dp

    lm = dp.load_model("smollm2-135m-instruct")
    target = dp.entropy(bits=7, seed=0).build(lm)
    run = dp.tune(lm, target, dp.TuneConfig(method="soft", restarts=5, steps=500, seed=0))
    for step in run:
        print(step.step, step.best_kl_nats)
    print(run.result.kl_nats)

Everything is computed in nats.
"""

from dpexplore.errors import InputError
from dpexplore.floor import FloorResult
from dpexplore.floor.of_model import softmax_floor
from dpexplore.models import DEFAULT_MODEL, LanguageModel, describe_models, load_model
from dpexplore.targets import (
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
from dpexplore.tuning import Engine, EngineServer, Run, TuneConfig, TuneResult, TuneStep, tune

__version__ = "0.1.0"

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
