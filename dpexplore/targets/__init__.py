"""Targets: what a next-token distribution should be, as recipes that compose."""

from __future__ import annotations

from dpexplore.targets.batch import build_many
from dpexplore.targets.by_pos import pos_histogram, pos_left_out, tokens_by_pos
from dpexplore.targets.files import save_target
from dpexplore.targets.outliers import OutlierRange, exact_outlier_mass, outlier_mass, outlier_range, outlier_target
from dpexplore.targets.parser import parse_recipe
from dpexplore.targets.preview import TopToken, top_tokens
from dpexplore.targets.recipe import Recipe
from dpexplore.targets.sources import (
    capture,
    check_entropies,
    entropy,
    file,
    order,
    pos,
    random_prompt,
    source_files,
    source_models,
    tokens,
)
from dpexplore.targets.strings import Strings, StringTarget, strings
from dpexplore.targets.target import NATS_PER_BIT, Target, entropy_nats
from dpexplore.targets.vanilla import vanilla_target, vanilla_targets
from dpexplore.targets.vocabulary import FoundToken, search_tokens, token_id, token_name

__all__ = [
    "NATS_PER_BIT",
    "FoundToken",
    "OutlierRange",
    "Recipe",
    "StringTarget",
    "Strings",
    "Target",
    "TopToken",
    "build_many",
    "capture",
    "check_entropies",
    "entropy",
    "entropy_nats",
    "exact_outlier_mass",
    "file",
    "order",
    "outlier_mass",
    "outlier_range",
    "outlier_target",
    "parse_recipe",
    "pos",
    "pos_histogram",
    "pos_left_out",
    "random_prompt",
    "save_target",
    "search_tokens",
    "source_files",
    "source_models",
    "strings",
    "token_id",
    "token_name",
    "tokens",
    "tokens_by_pos",
    "top_tokens",
    "vanilla_target",
    "vanilla_targets",
]
