"""Rows: the prompts of all restarts of all runs of one length, with their optimiser state, stacked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.tuning.prompt import initial_prompt

if TYPE_CHECKING:
    from dpexplore.tuning.run import Run

# torch.optim.AdamW's defaults, which the paper leaves unnamed (App. B gives the learning rate alone).
BETA1, BETA2, EPS, WEIGHT_DECAY = 0.9, 0.999, 1e-8, 0.01

StopReason = Literal["converged", "max_steps", "nonfinite", "cancelled"]


@dataclass(frozen=True, eq=False)
class Row:
    """One restart of one run."""

    run: Run
    restart: int


@dataclass(frozen=True, eq=False)
class RowOutcome:
    """What a row leaves behind."""

    reason: StopReason
    steps: int
    kl_nats: float
    """Lowest KL; infinite if none was finite."""
    ids: Tensor
    """`(pos,)` at that KL, `NO_TOKEN` at soft positions."""
    embeds: Tensor
    """`(pos hidden)` float32 on the CPU, at that KL."""


class RowStack:
    """The rows of one prompt length; one update advances them all.

    Soft positions move by AdamW (Distribution Prompting, Eq. 5), hard positions by Eq. 4, one position a step from left
    to right and round again. A row may hold both kinds (hybrid), so the three methods are one rule.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.rows: list[Row] = []
        self._state: dict[str, Tensor] = {}
        self._forbidden = torch.ones(lm.vocab_size, dtype=torch.bool, device=lm.device)
        self._forbidden[lm.ordinary_ids.to(lm.device)] = False

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def embeds(self) -> Tensor:
        """The prompts to be evaluated next, `(rows pos hidden)` float32."""
        return self._state["embeds"]

    @property
    def ids(self) -> Tensor:
        """Their ids, `(rows pos)`; `NO_TOKEN` at soft positions."""
        return self._state["ids"]

    def admit(self, rows: list[Row]) -> None:
        """Let rows join, each at its own beginning."""
        fresh = [self._begin(row) for row in rows]
        stacked = {name: torch.stack([state[name] for state in fresh]) for name in fresh[0]}
        if self.rows:
            stacked = {name: torch.cat([self._state[name], tensor]) for name, tensor in stacked.items()}
        self._state = stacked
        self.rows = self.rows + rows

    def update(self, loss: Tensor, grad: Tensor) -> None:
        """Take in the evaluation of `embeds` and move on.

        loss `(rows,)`, grad `(rows pos hidden)`. Rows that have ended are kept, unmoved, until `leave`.
        """
        state = self._state
        state["step"] += 1
        state["finite"] = torch.isfinite(loss) & torch.isfinite(grad).flatten(1).all(1)
        better = torch.isfinite(loss) & (loss < state["best_kl"])
        state["best_kl"] = torch.where(better, loss, state["best_kl"])
        for best, now in (("best_embeds", "embeds"), ("best_ids", "ids")):
            mask = better.view(-1, *[1] * (state[now].ndim - 1))
            state[best] = torch.where(mask, state[now], state[best])
        state["stale"] = torch.where(better, 0, state["stale"] + 1)
        if state["soft"].any():
            self._adamw(grad)
        if state["hard"].any():
            self._swap_tokens(grad)

    def leave(self) -> list[tuple[Row, RowOutcome]]:
        """Let go of the rows that have ended: by their own rule, or because their run was cancelled."""
        if not self.rows:
            return []
        columns = zip(*(self._state[name].tolist() for name in ("step", "stale", "finite")), strict=True)
        gone: list[tuple[Row, RowOutcome]] = []
        keep: list[int] = []
        for i, (row, numbers) in enumerate(zip(self.rows, columns, strict=True)):
            reason = self._reason(row, *numbers)
            if reason is None:
                keep.append(i)
            else:
                gone.append((row, self._outcome(i, reason)))
        if gone:
            index = torch.tensor(keep, dtype=torch.long, device=self.lm.device)
            self._state = {name: tensor[index] for name, tensor in self._state.items()}
            self.rows = [self.rows[i] for i in keep]
        return gone

    def _begin(self, row: Row) -> dict[str, Tensor]:
        run = row.run
        ids, embeds = initial_prompt(self.lm, run.layout, run.config, row.restart)
        device = self.lm.device
        return {
            "ids": ids,
            "embeds": embeds,
            "soft": run.layout.soft.to(device),
            "hard": run.layout.hard.to(device),
            "mean": torch.zeros_like(embeds),
            "square": torch.zeros_like(embeds),
            "learning_rate": torch.tensor(run.config.learning_rate, device=device),
            "step": torch.tensor(0, device=device),
            "stale": torch.tensor(0, device=device),
            "finite": torch.tensor(True, device=device),
            "best_kl": torch.tensor(torch.inf, device=device),
            "best_ids": ids,
            "best_embeds": embeds,
        }

    @staticmethod
    def _reason(row: Row, step: int, stale: int, finite: bool) -> StopReason | None:
        config = row.run.config
        if row.run.cancel_requested or row.run.error:
            return "cancelled"
        if not finite:
            return "nonfinite"
        if config.patience is not None and stale >= config.patience:
            return "converged"
        return "max_steps" if step >= config.steps else None

    def _outcome(self, i: int, reason: StopReason) -> RowOutcome:
        state = self._state
        return RowOutcome(
            reason,
            int(state["step"][i]),
            float(state["best_kl"][i]),
            state["best_ids"][i].cpu(),
            state["best_embeds"][i].cpu(),
        )

    def _adamw(self, grad: Tensor) -> None:
        """Loshchilov and Hutter's AdamW for every row at once, each with its own step count and learning rate."""
        state = self._state
        grad = torch.nan_to_num(grad)  # a row whose gradient is not finite leaves; it must not stain the masks below
        state["mean"] = BETA1 * state["mean"] + (1 - BETA1) * grad
        state["square"] = BETA2 * state["square"] + (1 - BETA2) * grad.square()
        step, rate = state["step"].view(-1, 1, 1), state["learning_rate"].view(-1, 1, 1)
        mean = state["mean"] / (1 - BETA1**step)
        square = state["square"] / (1 - BETA2**step)
        moved = state["embeds"] * (1 - rate * WEIGHT_DECAY) - rate * mean / (square.sqrt() + EPS)
        state["embeds"] = torch.where(state["soft"][..., None], moved, state["embeds"])

    def _swap_tokens(self, grad: Tensor) -> None:
        """Eq. 4 at one hard position a row: x = argmin over ordinary tokens of [W(x) − θ]ᵀ∇, unchecked as in the paper.

        θᵀ∇ is the same for every x and drops out of the argmin.
        """
        state = self._state
        hard = state["hard"]
        active = hard.any(1)
        turn = (state["step"] - 1) % hard.sum(1).clamp_min(1)
        order = hard.cumsum(1) - 1  # index of each hard position among the hard ones
        position = ((order == turn[:, None]) & hard).long().argmax(1)
        which = torch.arange(len(self.rows), device=hard.device)
        table = self.lm.embedding_table
        scores = (grad[which, position].to(table.dtype) @ table.T).float()
        token = scores.masked_fill(self._forbidden, torch.inf).argmin(1)
        which, position, token = which[active], position[active], token[active]
        state["ids"] = state["ids"].index_put((which, position), token)
        state["embeds"] = state["embeds"].index_put((which, position), table[token].float())
