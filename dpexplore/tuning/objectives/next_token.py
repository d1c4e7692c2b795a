"""What is minimised. Nothing outside this module assumes that a target sits on a single position."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

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
    behind: int
    """Positions that are computed, with their logits, behind each prompt."""

    @staticmethod
    def score(lm: LanguageModel, embeds: Tensor, objectives: Sequence[Any], prefix: Prefix | None = None) -> Scores:
        """embeds `(rows pos hidden)` float32, one objective a row; `prefix` tells what may be computed once."""
        ...


class NextTokenObjective:
    """A distance between the target p and q at the last position, KL(p‖q) unless told otherwise.

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
        self.batch: tuple[tuple[NextTokenObjective, ...], _Targets | None] = (), None
        self.probs = target.probs.to(lm.device, torch.float32)
        self.log_p = None if kind == "kl" else log_probs_of(target.probs).to(lm.device, torch.float32)
        self.entropy_nats = target.entropy_nats
        self.token_probs: Tensor | None = target.probs

    @staticmethod
    def score(
        lm: LanguageModel, embeds: Tensor, objectives: Sequence[NextTokenObjective], prefix: Prefix | None = None
    ) -> Scores:
        """embeds `(rows pos hidden)` float32, one objective a row, all of one kind."""
        log_q = next_log_probs(lm, embeds.to(lm.dtype), prefix)
        first, targets = objectives[0], _stacked(objectives)
        # The two sums nearly cancel as q approaches p; float32 leaves about 1e-6 nats, bfloat16 would leave per cents.
        kl = -(targets.probs * log_q).sum(-1) - targets.entropy_nats
        loss = kl if targets.log_p is None else divergence(first.kind, targets.probs, targets.log_p, log_q)
        return Scores(loss, kl.detach(), log_q.detach())


class _Targets(NamedTuple):
    """The targets of some rows."""

    probs: Tensor
    """`(rows vocab)`, or `(1 vocab)` where all rows share one."""
    log_p: Tensor | None
    """As `probs`; None for KL(p‖q), which does not need it."""
    entropy_nats: Tensor
    """`(rows,)` or `(1,)`."""


def _stacked(objectives: Sequence[NextTokenObjective]) -> _Targets:
    """The targets of a batch; those of the same batch are kept by its first objective until the batch changes."""
    apart = tuple(dict.fromkeys(objectives))
    known, kept = apart[0].batch
    if known != apart:
        logs = [objective.log_p for objective in apart if objective.log_p is not None]
        entropies = torch.tensor([objective.entropy_nats for objective in apart], device=apart[0].probs.device)
        probs = torch.stack([objective.probs for objective in apart]) if len(apart) > 1 else apart[0].probs[None]
        kept = _Targets(probs, torch.stack(logs) if logs else None, entropies)
        apart[0].batch = apart, kept
    assert kept is not None
    if len(apart) in (1, len(objectives)):
        return kept
    order = {objective: place for place, objective in enumerate(apart)}
    index = torch.tensor([order[objective] for objective in objectives], device=kept.probs.device)
    return _Targets(*(None if part is None else part[index] for part in kept))  # pyright: ignore[reportArgumentType]
