"""What is known of the rows of a batch: dataclasses of tensors, each with one entry a row in its first dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from dpexplore.tuning.rules.ball import within


@dataclass(eq=False)
class RowState:
    """Tensors `(rows …)`. A rule's own state is a subclass; what is done to rows as such is done here, once."""

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, in their order."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def pick(self, index: Tensor) -> Self:
        """The rows at `index` `(n,)`, in that order, copied."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def assign(self, rows: Tensor, **values: Tensor | float) -> None:
        """Give the fields named their new values `(rows …)` in the rows `(rows,)` bool; the others keep theirs."""
        for name, value in values.items():
            before: Tensor = getattr(self, name)
            setattr(self, name, torch.where(rows.view(-1, *[1] * (before.ndim - 1)), value, before))


@dataclass(eq=False)
class PromptState(RowState):
    """The prompts of the rows, and what is counted and reported of them, whatever their rules."""

    ids: Tensor
    """`(rows pos)`, of the prompts to be evaluated next; `NO_TOKEN` at soft positions."""
    embeds: Tensor
    """`(rows pos hidden)` float32, of the same."""
    soft: Tensor
    """`(rows pos)` bool."""
    hard: Tensor
    """`(rows pos)` bool."""
    budget: Tensor
    """`(rows,)` the longest that a soft token may be; infinite where there is no bound."""
    step: Tensor
    """`(rows,)` steps made."""
    evaluations: Tensor
    """`(rows,)` prompts scored, with gradient or without."""
    steps_since_best: Tensor
    """`(rows,)`."""
    finite: Tensor
    """`(rows,)` bool: loss and gradient of the latest step."""
    improved: Tensor
    """`(rows,)` bool: whether the step under way has brought a new best."""
    kl: Tensor
    """`(rows,)` KL(p‖q) in nats that a row reports for the step."""
    entropy: Tensor
    """`(rows,)` entropy of q in nats, of the same prompt."""
    best_loss: Tensor
    """`(rows,)` lowest value of the objective; infinite if none was finite."""
    best_kl: Tensor
    """`(rows,)` KL(p‖q) there."""
    best_ids: Tensor
    """`(rows pos)` there."""
    best_embeds: Tensor
    """`(rows pos hidden)` there."""

    def move_soft(self, embeds: Tensor) -> None:
        """Move the soft positions to `embeds` `(rows pos hidden)`, or as near as the budget lets them."""
        self.embeds = within(torch.where(self.soft[..., None], embeds, self.embeds), self.soft, self.budget)

    @classmethod
    def of(cls, ids: Tensor, embeds: Tensor, soft: Tensor, hard: Tensor, budget: Tensor, evaluations: Tensor) -> Self:
        """Rows that have not made a step; `evaluations` `(rows,)` were spent to find where they begin."""
        zeros, nothing = torch.zeros_like(evaluations), torch.full(evaluations.shape, torch.nan, device=ids.device)
        infinite, false = torch.full_like(nothing, torch.inf), torch.zeros_like(evaluations, dtype=torch.bool)
        counts = {"step": zeros, "evaluations": evaluations, "steps_since_best": zeros}
        flags = {"finite": ~false, "improved": false}
        reports = {"kl": nothing, "entropy": nothing, "best_loss": infinite, "best_kl": infinite}
        embeds = within(embeds, soft, budget)
        return cls(ids, embeds, soft, hard, budget, **counts, **flags, **reports, best_ids=ids, best_embeds=embeds)
