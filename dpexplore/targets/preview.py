"""What people look at in a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dpexplore.targets.target import Target
from dpexplore.targets.transforms import likeliest

if TYPE_CHECKING:
    from dpexplore.models.language_model import LanguageModel


@dataclass(frozen=True)
class TopToken:
    """A token with its probability in a target."""

    token_id: int
    token: str
    probability: float


def top_tokens(target: Target, lm: LanguageModel, n: int = 20) -> list[TopToken]:
    """The `n` likeliest tokens that have any probability, likeliest first; of equals the lower id comes first."""
    ids = likeliest(target.probs, n)
    ids = ids[target.probs[ids] > 0]
    pairs = zip(ids.tolist(), target.probs[ids].tolist(), strict=True)
    return [TopToken(i, target.label(i, lm), p) for i, p in pairs]
