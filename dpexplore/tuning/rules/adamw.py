"""AdamW, by which the paper tunes soft tokens (Eq. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.rules.state import PromptState, RowState

# torch.optim.AdamW's defaults, which the paper leaves unnamed (App. B gives the learning rate alone).
BETA1, BETA2, EPS, WEIGHT_DECAY = 0.9, 0.999, 1e-8, 0.01


@dataclass(eq=False)
class AdamWState(RowState):
    """Running moments of each row's gradient."""

    mean: Tensor
    """`(rows pos hidden)` float32."""
    square: Tensor
    """`(rows pos hidden)` float32."""
    learning_rate: Tensor
    """`(rows,)`."""


class AdamW:
    """Loshchilov and Hutter's AdamW, each row with its own step count and learning rate.

    In strict rows each position is a parameter of its own, which is stepped when its turn comes.
    """

    def begin(self, embeds: Tensor, configs: Sequence[TuneConfig]) -> AdamWState:
        rates = torch.tensor([config.learning_rate for config in configs], device=embeds.device)
        return AdamWState(torch.zeros_like(embeds), torch.zeros_like(embeds), rates)

    def update(self, state: AdamWState, prompts: PromptState, loss: Tensor, grad: Tensor) -> Tensor:
        grad = torch.nan_to_num(grad)  # a row whose gradient is not finite leaves; it must not stain the masks below
        now = prompts.turns()[..., None]
        state.mean = torch.where(now, BETA1 * state.mean + (1 - BETA1) * grad, state.mean)
        state.square = torch.where(now, BETA2 * state.square + (1 - BETA2) * grad.square(), state.square)
        step, rate = prompts.soft_step().view(-1, 1, 1), state.learning_rate.view(-1, 1, 1)
        mean = state.mean / (1 - BETA1**step)
        square = state.square / (1 - BETA2**step)
        moved = prompts.embeds * (1 - rate * WEIGHT_DECAY) - rate * mean / (square.sqrt() + EPS)
        prompts.move_soft(torch.where(now, moved, prompts.embeds))
        return torch.ones_like(prompts.finite)

    def rebase(self, state: AdamWState, prompts: PromptState, embeds: Tensor, rows: Tensor) -> None:
        """Nothing to do: AdamW remembers no point."""

    def ended(self, state: AdamWState) -> Tensor:
        return torch.zeros_like(state.learning_rate, dtype=torch.bool)

    def returns(self, state: AdamWState) -> Tensor:
        return torch.zeros_like(state.learning_rate, dtype=torch.bool)
