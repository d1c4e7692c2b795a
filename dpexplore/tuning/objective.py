"""What is minimised. Nothing outside this module assumes that a target sits on a single position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target


@dataclass(frozen=True, eq=False)
class Scores:
    """Losses of a batch of prompts; `loss` carries the graph if the embeddings did."""

    loss: Tensor
    """`(rows,)` float32, nats."""
    entropy: Tensor
    """`(rows,)` float32, entropy of each row's q in nats, detached."""
    log_q: Tensor
    """`(rows vocab)` float32, detached."""


class NextTokenKL:
    """KL(p‖q) = Σ p log p − Σ p log q at the last position, from log-probabilities (Distribution Prompting, §3)."""

    def __init__(self, lm: LanguageModel, target: Target) -> None:
        """InputError if the target is over another vocabulary than the model's."""
        if target.vocab_size != lm.vocab_size:
            raise InputError(
                f"The target has {target.vocab_size:,} probabilities, but the model {lm.name} has a vocabulary of "
                f"{lm.vocab_size:,}; a target fits one vocabulary only."
            )
        self.probs = target.probs.to(lm.device, torch.float32)
        self.entropy_nats = target.entropy_nats

    @staticmethod
    def score(lm: LanguageModel, embeds: Tensor, objectives: Sequence[NextTokenKL]) -> Scores:
        """embeds `(rows pos hidden)` float32, one objective a row."""
        log_q = lm.log_probs(embeds.to(lm.dtype))
        probs = torch.stack([objective.probs for objective in objectives])
        entropies = torch.tensor([objective.entropy_nats for objective in objectives], device=log_q.device)
        # The two sums nearly cancel as q approaches p; float32 leaves about 1e-6 nats, bfloat16 would leave per cents.
        loss = -(probs * log_q).sum(-1) - entropies
        log_q = log_q.detach()
        return Scores(loss, -(log_q.exp() * log_q).sum(-1), log_q)
