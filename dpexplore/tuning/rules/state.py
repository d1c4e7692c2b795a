"""What is known of the rows of a batch: dataclasses of tensors, each with one entry a row in its first dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Self

import torch
from torch import Tensor

from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.rules.ball import within

UNLIMITED = 2**62


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


class End(IntEnum):
    """Why a row has ended."""

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    NONFINITE = 3
    CANCELLED = 4


@dataclass(eq=False)
class Limits(RowState):
    """How long each row may go on."""

    steps: Tensor
    """`(rows,)`."""
    evaluations: Tensor
    """`(rows,)` prompts scored; `UNLIMITED` where steps alone count."""
    patience: Tensor
    """`(rows,)` steps without improvement; `UNLIMITED` as well."""

    enough: Tensor
    """`(rows,)` float32, nats: a KL this low leaves nothing to find."""

    @classmethod
    def of(cls, configs: Sequence[TuneConfig], enough: Sequence[float], device: torch.device) -> Self:
        """The limits of rows, each by the config of its run."""
        numbers = [
            (
                config.most_steps,
                config.evaluations or UNLIMITED,
                config.patience * config.steps_per_epoch if config.patience else UNLIMITED,
            )
            for config in configs
        ]
        steps, evaluations, patience = torch.tensor(numbers, device=device).unbind(1)
        return cls(steps, evaluations, patience, torch.tensor(enough, dtype=torch.float32, device=device))


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
    strict: Tensor
    """`(rows,)` bool: soft positions take turns with the hard ones."""
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
    ended: Tensor
    """`(rows,)` why a row has ended, an `End`; nothing that a row is asked for changes once it has."""
    kl: Tensor
    """`(rows,)` KL(p‖q) in nats that a row reports for the step."""
    entropy: Tensor
    """`(rows,)` entropy of q in nats, of the same prompt."""
    best_loss: Tensor
    """`(rows,)` lowest value of the objective; infinite if none was finite."""
    best_kl: Tensor
    """`(rows,)` KL(p‖q) there,"""
    best_entropy: Tensor
    """`(rows,)` and the entropy of q."""
    best_ids: Tensor
    """`(rows pos)` there."""
    best_embeds: Tensor
    """`(rows pos hidden)` there."""

    def move_soft(self, embeds: Tensor) -> None:
        """Move the soft positions to `embeds` `(rows pos hidden)`, or as near as the budget lets them."""
        self.embeds = within(torch.where(self.soft[..., None], embeds, self.embeds), self.soft, self.budget)

    def turns(self) -> Tensor:
        """`(rows pos)` bool: what moves in this step where the rules go from left to right.

        One hard position and every soft one, or in strict rows the one position, soft or hard, whose turn it is.
        """
        waiting = self.hard | (self.soft & self.strict[:, None])
        place = (self.step - 1) % waiting.sum(1).clamp_min(1)
        return (waiting & (waiting.cumsum(1) - 1 == place[:, None])) | (self.soft & ~self.strict[:, None])

    def soft_step(self) -> Tensor:
        """`(rows,)`: how often a soft position whose turn it is has moved, this step included."""
        round_ = torch.div(self.step - 1, (self.hard | self.soft).sum(1).clamp_min(1), rounding_mode="floor") + 1
        return torch.where(self.strict, round_, self.step)

    @classmethod
    def of(
        cls,
        ids: Tensor,
        embeds: Tensor,
        soft: Tensor,
        hard: Tensor,
        strict: Tensor,
        budget: Tensor,
        evaluations: Tensor,
    ) -> Self:
        """Rows that have not made a step; `evaluations` `(rows,)` were spent to find where they begin."""
        zeros, nothing = torch.zeros_like(evaluations), torch.full(evaluations.shape, torch.nan, device=ids.device)
        infinite, false = torch.full_like(nothing, torch.inf), torch.zeros_like(evaluations, dtype=torch.bool)
        counts = {"step": zeros, "evaluations": evaluations, "steps_since_best": zeros}
        flags = {"finite": ~false, "improved": false, "ended": torch.zeros_like(evaluations, dtype=torch.int8)}
        reports = {"kl": nothing, "entropy": nothing}
        best = {"best_loss": infinite, "best_kl": infinite, "best_entropy": nothing, "best_ids": ids}
        embeds = within(embeds, soft, budget)
        return cls(ids, embeds, soft, hard, strict, budget, **counts, **flags, **reports, **best, best_embeds=embeds)
