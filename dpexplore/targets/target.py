"""The target p: a probability distribution over the tuning model's vocabulary."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dpexplore.errors import InputError

if TYPE_CHECKING:
    from dpexplore.models.language_model import LanguageModel

NATS_PER_BIT = math.log(2)


def entropy_nats(probs: Tensor) -> Tensor:
    """Shannon entropy in nats over the last axis, `(… vocab)` -> `(…)`; 0·log 0 = 0 (App. A)."""
    return torch.special.entr(probs).sum(-1)


@dataclass(frozen=True, eq=False)
class Target:
    """A target next-token distribution and how it came about."""

    probs: Tensor
    """`(vocab,)` float64 on the CPU, non-negative, sums to 1."""
    recipe: str
    """The recipe text that rebuilds it."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How it was made, JSON-ready: source model and identity, mass kept, pipeline version, …"""

    def __post_init__(self) -> None:
        probs = self.probs
        if probs.ndim != 1 or not probs.is_floating_point():
            raise InputError("A target is one row of probabilities, one number for each token of the vocabulary.")
        # NumPy's loops: PyTorch's would wait for threads that tuning holds.
        values = probs.detach().double().cpu().numpy()
        if not np.isfinite(values).all():
            raise InputError("The target holds NaN or infinite values; probabilities are finite numbers from 0 to 1.")
        if (values < 0).any():
            raise InputError("The target holds negative values; probabilities are numbers from 0 to 1.")
        total = float(values.sum())
        if abs(total - 1) > 1e-4:
            raise InputError(f"The target sums to {total:.6g}; probabilities sum to 1.")
        object.__setattr__(self, "probs", torch.from_numpy(values / total))

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.probs.shape[0]

    @cached_property
    def entropy_nats(self) -> float:
        """Entropy of the target in nats."""
        return float(entropy_nats(self.probs))

    @property
    def entropy_bits(self) -> float:
        """Entropy of the target in bits."""
        return self.entropy_nats / NATS_PER_BIT

    def label(self, index: int, lm: LanguageModel) -> str:
        """What `probs[index]` is the probability of, as a person reads it."""
        return lm.token_text(index)
