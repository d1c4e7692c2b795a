"""What a stack of rows asks the model: prompts to be evaluated, with or without a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.tuning.init.layout import NO_TOKEN
from dpexplore.tuning.objectives.prefix import Prefix


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of one length."""

    ids: Tensor
    """`(prompts pos)`; `NO_TOKEN` at soft positions."""
    owners: Tensor
    """`(prompts,)` index of the row that each belongs to, ascending."""
    embeds: Tensor
    """`(prompts pos hidden)` float32, or with `swapped` `(rows pos hidden)`: the prompts before their ids changed."""
    grad: bool
    """Whether the gradient is wanted too."""
    alike: int = 0
    """Positions, from the left, in which the prompts of a row agree."""
    swapped: bool = False
    """The prompts are their owners' with other ids; they are embedded as they are needed, not all at once."""

    @classmethod
    def of_prompts(cls, ids: Tensor, embeds: Tensor, *, grad: bool) -> Batch:
        """One prompt a row."""
        return cls(ids, torch.arange(len(ids), device=ids.device), embeds, grad)

    def __len__(self) -> int:
        return len(self.ids)

    def prefix(self, start: int, stop: int) -> Prefix:
        """What some of the prompts have in common."""
        return Prefix(self.owners[start:stop], self.alike)

    def part(self, lm: LanguageModel, start: int, stop: int) -> Tensor:
        """Embeddings of some of the prompts, `(prompts pos hidden)` float32."""
        if not self.swapped:
            return self.embeds[start:stop].detach()
        ids = self.ids[start:stop]
        with torch.no_grad():
            words = lm.embed(ids.clamp_min(0)).float()
        return torch.where((ids == NO_TOKEN)[..., None], self.embeds[self.owners[start:stop]], words)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the model said of a batch."""

    loss: Tensor
    """`(prompts,)` float32, the objective of each prompt's run."""
    kl: Tensor
    """`(prompts,)` float32, KL(p‖q) in nats."""
    entropy: Tensor
    """`(prompts,)` float32, nats; without a gradient only where a prompt is its owner's best, NaN elsewhere."""
    grad: Tensor | None
    """`(prompts pos hidden)` float32, of the loss."""
    log_q: Tensor | None = None
    """`(prompts vocab)` float32 where it was asked for."""

    def pick(self, index: Tensor) -> Evaluation:
        """The numbers at some places, without gradient."""
        log_q = None if self.log_q is None else self.log_q[index]
        return Evaluation(self.loss[index], self.kl[index], self.entropy[index], None, log_q)
