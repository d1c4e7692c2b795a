"""Targets: what a next-token distribution should be, as recipes that compose."""

from __future__ import annotations

from dpexplore.targets.parser import parse_recipe
from dpexplore.targets.recipe import Recipe
from dpexplore.targets.sources import capture, entropy, random_prompt
from dpexplore.targets.target import NATS_PER_BIT, Target, entropy_nats
from dpexplore.targets.vanilla import vanilla_target, vanilla_targets

__all__ = [
    "NATS_PER_BIT",
    "Recipe",
    "Target",
    "capture",
    "entropy",
    "entropy_nats",
    "parse_recipe",
    "random_prompt",
    "vanilla_target",
    "vanilla_targets",
]
