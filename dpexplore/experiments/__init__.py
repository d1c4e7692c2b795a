"""Experiments: sweep specs, executors (local, Ray), the Parquet store, the paper's figures and claims."""

from dpexplore.experiments.problems import ModelFacts, Problem
from dpexplore.experiments.spec import Spec, known_specs, load_spec
from dpexplore.experiments.store import Store
from dpexplore.experiments.sweep import SweepReport, plan_sweep, run_sweep

__all__ = [
    "ModelFacts",
    "Problem",
    "Spec",
    "Store",
    "SweepReport",
    "known_specs",
    "load_spec",
    "plan_sweep",
    "run_sweep",
]
