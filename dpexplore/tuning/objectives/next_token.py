"""What is minimised. Nothing outside this module assumes that a target sits on a single position."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning.knobs import DIVERGENCES, Divergence
from dpexplore.tuning.objectives.prefix import Prefix, next_log_probs

# Stands in for log 0: finite, so that 0 · log 0 is 0 and not NaN, and its exponential is 0 even in float64.
LOG_ZERO = -1e4


def divergence(kind: Divergence, probs: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """One of the four distances between p and q, `(… vocab)` -> `(…)`, differentiable in `log_q`.

    kl = Σ p (log p − log q) and reverse_kl = Σ q (log q − log p) in nats; js, the mean of their like to (p + q) / 2, in
    nats, at most log 2; tv = ½ Σ |p − q|, at most 1. `log_p` holds `LOG_ZERO` where p is 0.
    """
    if kind == "kl":
        return (probs * (log_p - log_q)).sum(-1)
    q = log_q.exp()
    if kind == "reverse_kl":
        return (q * (log_q - log_p)).sum(-1)
    if kind == "tv":
        return (q - probs).abs().sum(-1) / 2
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return ((probs * (log_p - log_m)).sum(-1) + (q * (log_q - log_m)).sum(-1)) / 2


def log_probs_of(probs: Tensor) -> Tensor:
    """log p with `LOG_ZERO` for log 0."""
    return probs.log().clamp_min(LOG_ZERO)


def all_divergences(probs: Tensor, log_q: Tensor) -> dict[str, float]:
    """The four distances in float64; the reverse KL is infinite where q gives mass to what p excludes."""
    probs, log_q = probs.double(), log_q.double()
    log_p = log_probs_of(probs)
    found = {str(kind): float(divergence(kind, probs, log_p, log_q)) for kind in DIVERGENCES}
    if (log_q.exp()[probs == 0] > 0).any():
        found["reverse_kl"] = math.inf
    return found


def top_overlap(probs: Tensor, log_q: Tensor, count: int = 10) -> float:
    """Share of the `count` likeliest tokens of p that are among those of q, 0 to 1."""
    count = min(count, len(probs))
    ours, theirs = (set(values.topk(count).indices.tolist()) for values in (probs, log_q))
    return len(ours & theirs) / count


def entropy_of(log_q: Tensor) -> Tensor:
    """Entropy in nats, `(… vocab)` -> `(…)`."""
    return -(log_q.exp() * log_q).sum(-1)


@dataclass(frozen=True, eq=False)
class Scores:
    """What a batch of prompts came to; `loss` carries the graph if the embeddings did."""

    loss: Tensor
    """`(rows,)` float32, the objective: nats, or a number from 0 to 1 for total variation."""
    kl: Tensor
    """`(rows,)` float32, KL(p‖q) in nats, detached."""
    log_q: Tensor
    """`(rows vocab)` float32, detached."""


class Objective(Protocol):
    """What a run minimises. Rows of one stack have objectives of one class and one group, and are scored together."""

    entropy_nats: float
    """Entropy of the target."""
    token_probs: Tensor | None
    """`(vocab,)` where the target is over single tokens."""
    group: Hashable
    """Rows of different groups are never scored in one pass."""
    answers: int
    """The length of `Scores.log_q`."""
    behind: int
    """Positions that are computed, with their logits, behind each prompt."""

    @staticmethod
    def score(lm: LanguageModel, embeds: Tensor, objectives: Sequence[Any], prefix: Prefix | None = None) -> Scores:
        """embeds `(rows pos hidden)` float32, one objective a row; `prefix` tells what may be computed once."""
        ...


class NextTokenObjective:
    """A distance between the target p and q at the last position, KL(p‖q) by default.

    KL(p‖q) = Σ p log p − Σ p log q, from log-probabilities (Distribution Prompting, §3).
    """

    behind = 0

    def __init__(self, lm: LanguageModel, target: Target, kind: Divergence = "kl") -> None:
        """InputError if the target is over another vocabulary than the model's, or excludes tokens under reverse KL."""
        if target.vocab_size != lm.vocab_size:
            raise InputError(
                f"The target has {target.vocab_size:,} probabilities, but the model {lm.name} has a vocabulary of "
                f"{lm.vocab_size:,}; a target fits one vocabulary only."
            )
        if kind == "reverse_kl" and (excluded := int((target.probs == 0).sum())):
            raise InputError(
                f"KL(q‖p) is infinite for every prompt, because the target gives 0 to {excluded:,} tokens; the "
                "objectives kl, js and tv accept such a target."
            )
        self.kind: Divergence = kind
        self.group: Hashable = kind
        self.answers = lm.vocab_size
        self._batch: tuple[tuple[NextTokenObjective, ...], tuple[Tensor, ...]] | None = None
        self.probs = target.probs.to(lm.device, torch.float32)
        self.log_p = None if kind == "kl" else log_probs_of(target.probs).to(lm.device, torch.float32)
        self.entropy_nats = target.entropy_nats
        self.token_probs: Tensor | None = target.probs

    @staticmethod
    def score(
        lm: LanguageModel, embeds: Tensor, objectives: Sequence[NextTokenObjective], prefix: Prefix | None = None
    ) -> Scores:
        """embeds `(rows pos hidden)` float32, one objective a row, all of one kind."""
        first = objectives[0]
        return first.score_stacked(lm, embeds, first.stacked(objectives), prefix)

    def score_stacked(
        self, lm: LanguageModel, embeds: Tensor, targets: tuple[Tensor, ...], prefix: Prefix | None = None
    ) -> Scores:
        """embeds `(rows pos hidden)` float32 by targets of this objective's kind, as `stacked` gives them."""
        log_q = next_log_probs(lm, embeds.to(lm.dtype), prefix)
        probs, entropy_nats, *log_p = targets
        # The two sums nearly cancel as q approaches p; float32 leaves about 1e-6 nats, bfloat16 would leave per cents.
        kl = -(probs * log_q).sum(-1) - entropy_nats
        loss = divergence(self.kind, probs, log_p[0], log_q) if log_p else kl
        return Scores(loss, kl.detach().clamp_min(0), log_q.detach())  # rounding leaves up to 3e-6 below 0

    def stacked(self, objectives: Sequence[NextTokenObjective]) -> tuple[Tensor, ...]:
        """The targets of a batch that this objective is the first of: p `(rows vocab)`, its entropies `(rows,)`.

        For other objectives than KL(p‖q) log p `(rows vocab)` too. Where all rows share one target, one row stands for
        all. They are kept here until the batch changes.
        """
        batch = tuple(objectives)
        if len(set(batch)) == 1:
            return self._alone
        if self._batch is None or self._batch[0] != batch:
            parts = zip(*(each._alone for each in batch), strict=True)
            self._batch = batch, tuple(torch.cat(part) for part in parts)
        return self._batch[1]

    @cached_property
    def _alone(self) -> tuple[Tensor, ...]:
        entropy = torch.tensor([self.entropy_nats], device=self.probs.device)
        parts = self.probs[None], entropy
        return parts if self.log_p is None else (*parts, self.log_p[None])
