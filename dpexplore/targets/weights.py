"""Targets from weights on single tokens: typed by hand, or read from a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.targets.vocabulary import token_id
from dpexplore.wanted import while_asking

if TYPE_CHECKING:
    from dpexplore.models.language_model import LanguageModel


def spread_weights(lm: LanguageModel, weights: Iterable[tuple[str | int, float]], rest: float = 0.0) -> Tensor:
    """Probabilities `(vocab,)`: `1 − rest` shared in proportion to the weights, `rest` evenly by all other tokens.

    Weights are non-negative, finite, not all 0. InputError for what is not a single token, for a token
    given twice, and for a `rest` when no other token is left to take it.
    """
    chosen: dict[int, float] = {}
    for token, weight in while_asking(weights):
        i = token_id(lm, token)
        if i in chosen:
            raise InputError(f"The token {lm.token_text(i)!r} (id {i}) is given twice; each token takes one weight.")
        chosen[i] = weight
    shares = torch.tensor(list(chosen.values()), dtype=torch.float64)
    if not len(shares) or not shares.max() > 0:
        raise InputError("All weights are 0; at least one token needs a weight above 0.")
    if rest and len(chosen) == lm.vocab_size:
        raise InputError("Every token has a weight of its own, so no token is left for `rest`; leave it at 0.")
    shares /= shares.max()  # before the sum, which could overflow
    others = lm.vocab_size - len(chosen)
    probs = torch.full((lm.vocab_size,), rest / others if others else 0.0, dtype=torch.float64)
    probs[torch.tensor(list(chosen))] = (1 - rest) * shares / shares.sum()
    return probs
