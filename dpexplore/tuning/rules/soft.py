"""What a rule of the soft positions is; `adamw` and `lbfgs` are two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.rules.state import PromptState, RowState


class SoftRule(Protocol):
    """An update of the soft positions from the loss and gradient at `prompts.embeds`, for all rows without mixing them.

    `state` is always the rule's own.
    """

    def begin(self, embeds: Tensor, configs: Sequence[TuneConfig]) -> RowState:
        """The state of rows that begin at embeds `(rows pos hidden)`, each by the config of its run."""
        ...

    def update(self, state: Any, prompts: PromptState, loss: Tensor, grad: Tensor) -> Tensor:
        """Move `prompts.embeds` on. Returns `(rows,)` bool: whether the point just evaluated is one to build on.

        loss `(rows,)`, grad `(rows pos hidden)`. Where the answer is False the point was a trial and is dropped.
        """
        ...

    def rebase(self, state: Any, prompts: PromptState, embeds: Tensor, rows: Tensor) -> None:
        """The fixed and hard part of some rows `(rows,)` bool has changed under the rule.

        embeds `(rows pos hidden)`: the prompts just evaluated with the change, which are to be built on.
        """
        ...

    def ended(self, state: Any) -> Tensor:
        """`(rows,)` bool: rows that no further step of this rule would move."""
        ...

    def returns(self, state: Any) -> Tensor:
        """`(rows,)` bool: rows that come back to a finite point where the one just tried was not."""
        ...
