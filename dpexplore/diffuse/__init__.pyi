from .adapter import Adapter, load_adapter
from .config import PRESETS, AdapterConfig
from .metrics import OutcomeFit, SampleFacts, coverage, outcome_fit, perplexity, sample_facts
from .sampling import sample_answers
from .training import AdapterRun, AdapterStep, cross_entropy, train_adapter

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
