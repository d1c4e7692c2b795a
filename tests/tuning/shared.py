"""What the tests of tuning share: rules, traces and losses by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch

from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning import TuneConfig, tune
from dpexplore.tuning.objectives.next_token import NextTokenObjective, Scores

TinyLM = Callable[[str], LanguageModel]

RULES = [
    {"method": "soft", "length": 4, "soft_rule": "lbfgs", "screen": 3},
    {"method": "hard", "length": 4, "hard_rule": "gcg", "candidates": 8, "top": 16},
    {"method": "hard", "length": 4, "hard_rule": "search", "candidates": 8, "top": 16, "screen": 4},
    {"method": "hard", "length": 4, "hard_rule": "search", "candidates": 8, "round_trip": True},
    {"method": "hybrid", "slots": "soft*2 hard*2", "soft_rule": "lbfgs", "hard_rule": "search", "candidates": 8},
    {"method": "hybrid", "slots": "soft*2 hard*2", "soft_rule": "adamw", "hard_rule": "gcg", "candidates": 8},
]


def trace(lm: LanguageModel, target: Target, config: TuneConfig) -> list[list[float | None]]:
    return [step.kl_nats for step in tune(lm, target, config)]


def finite(kls: Iterable[float | None]) -> list[float]:
    """The numbers of the restarts that were running."""
    return [kl for kl in kls if kl is not None]


def kl_by_hand(probs: torch.Tensor, logits: torch.Tensor) -> float:
    """KL(p‖q) in float64 from plain logits `(vocab,)`."""
    log_q = logits.double().log_softmax(-1)
    return float((torch.xlogy(probs, probs) - probs * log_q).sum())


def patched_score(monkeypatch: pytest.MonkeyPatch, change: Callable[[Scores, torch.Tensor], Scores]) -> None:
    """Let `change` see and replace every batch's scores."""
    original = NextTokenObjective.score
    monkeypatch.setattr(
        NextTokenObjective,
        "score",
        staticmethod(lambda lm, embeds, objectives, *_: change(original(lm, embeds, objectives), embeds)),
    )
