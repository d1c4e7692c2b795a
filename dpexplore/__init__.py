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
from dpexplore.model_floor import softmax_floor
from dpexplore.models import DEFAULT_MODEL, LanguageModel, describe_models, load_model
from dpexplore.targets import (
    Target,
    capture,
    entropy,
    parse_recipe,
)
from dpexplore.tuning import Engine, EngineServer, Run, TuneConfig, TuneResult, TuneStep, tune

__all__ = [
    "DEFAULT_MODEL",
    "Engine",
    "EngineServer",
    "FloorResult",
    "InputError",
    "LanguageModel",
    "Run",
    "Target",
    "TuneConfig",
    "TuneResult",
    "TuneStep",
    "capture",
    "describe_models",
    "entropy",
    "load_model",
    "parse_recipe",
    "softmax_floor",
    "tune",
]
