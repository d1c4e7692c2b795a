"""How soft tokens move: AdamW as in the paper, and L-BFGS with a line search, for every row by itself.

A rule keeps what it needs in the stack's state, one entry a row, and works on all rows at once without mixing them.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dpexplore.tuning.config import TuneConfig

State = dict[str, Tensor]

# torch.optim.AdamW's defaults, which the paper leaves unnamed (App. B gives the learning rate alone).
BETA1, BETA2, EPS, WEIGHT_DECAY = 0.9, 0.999, 1e-8, 0.01

# Line search of Lewis and Overton (2013): an interval that shrinks around a point of sufficient decrease.
SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9
MOST_TRIALS = 10
FIRST_MOVE = 0.5
"""Length of the first move of a search, in units of an embedding; about a sixth of SmolLM2's token norm."""
LEAST_COSINE = 1e-6
"""A pair of step and gradient change whose cosine is below this says nothing certain about curvature."""


class SoftRule(Protocol):
    """An update of the soft positions from the loss and gradient at `state["embeds"]`."""

    def begin(self, embeds: Tensor, config: TuneConfig) -> State:
        """What the rule remembers of one row; embeds `(pos hidden)`."""
        ...

    def update(self, state: State, loss: Tensor, grad: Tensor) -> Tensor:
        """Move `state["embeds"]` on. Returns `(rows,)` bool: whether the point just evaluated is one to build on.

        loss `(rows,)`, grad `(rows pos hidden)`. Where the answer is False the point was a trial and is dropped.
        """
        ...

    def rebase(self, state: State, embeds: Tensor, rows: Tensor) -> None:
        """The fixed and hard part of some rows `(rows,)` bool has changed under the rule; embeds are to be built on."""
        ...


class AdamW:
    """Loshchilov and Hutter's AdamW, each row with its own step count and learning rate (Eq. 5)."""

    def begin(self, embeds: Tensor, config: TuneConfig) -> State:
        return {
            "mean": torch.zeros_like(embeds),
            "square": torch.zeros_like(embeds),
            "learning_rate": torch.tensor(config.learning_rate, device=embeds.device),
        }

    def update(self, state: State, loss: Tensor, grad: Tensor) -> Tensor:
        grad = torch.nan_to_num(grad)  # a row whose gradient is not finite leaves; it must not stain the masks below
        state["mean"] = BETA1 * state["mean"] + (1 - BETA1) * grad
        state["square"] = BETA2 * state["square"] + (1 - BETA2) * grad.square()
        step, rate = state["step"].view(-1, 1, 1), state["learning_rate"].view(-1, 1, 1)
        mean = state["mean"] / (1 - BETA1**step)
        square = state["square"] / (1 - BETA2**step)
        moved = state["embeds"] * (1 - rate * WEIGHT_DECAY) - rate * mean / (square.sqrt() + EPS)
        state["embeds"] = torch.where(state["soft"][..., None], moved, state["embeds"])
        return torch.ones(len(loss), dtype=torch.bool, device=loss.device)

    def rebase(self, state: State, embeds: Tensor, rows: Tensor) -> None:
        """Nothing to do: AdamW remembers no point."""


class LBFGS:
    """Limited-memory BFGS (Liu and Nocedal, 1989), one evaluation a step and a row.

    Each row is on a line of its own: `point + rate · direction`. A trial that does not decrease the loss enough
    shortens the line, one that is still steep lengthens it, any other is the next point.
    """

    def begin(self, embeds: Tensor, config: TuneConfig) -> State:
        size = embeds.numel()
        device = embeds.device
        number = {"device": device, "dtype": torch.float32}
        return {
            "point": embeds.reshape(size).clone(),
            "point_loss": torch.tensor(torch.inf, **number),
            "point_grad": torch.zeros(size, **number),
            "direction": torch.zeros(size, **number),
            "rate": torch.tensor(0.0, **number),
            "low": torch.tensor(0.0, **number),
            "high": torch.tensor(torch.inf, **number),
            "trials": torch.tensor(0, device=device),
            "placed": torch.tensor(False, device=device),
            "stuck": torch.tensor(False, device=device),
            "moves": torch.zeros(config.memory, size, **number),
            "turns": torch.zeros(config.memory, size, **number),
            "inverse_curvature": torch.zeros(config.memory, **number),
            "pairs": torch.tensor(0, device=device),
            "scale": torch.tensor(1.0, **number),
        }

    def update(self, state: State, loss: Tensor, grad: Tensor) -> Tensor:
        rows = len(loss)
        finite = torch.isfinite(loss) & torch.isfinite(grad).flatten(1).all(1)
        loss = torch.where(finite, loss, torch.inf)
        grad = torch.where(finite.view(-1, 1, 1), grad, 0.0) * state["soft"][..., None]
        trial, grad = state["embeds"].reshape(rows, -1), grad.reshape(rows, -1)
        first = ~state["placed"]
        steepness = (state["point_grad"] * state["direction"]).sum(1)
        enough = loss <= state["point_loss"] + SUFFICIENT_DECREASE * state["rate"] * steepness
        flat = (grad * state["direction"]).sum(1) >= CURVATURE * steepness
        state["trials"] = state["trials"] + 1
        spent = state["trials"] >= MOST_TRIALS
        accepted = finite & (first | (enough & (flat | spent)))
        failed = ~first & ~enough & spent
        state["stuck"] = failed & (state["pairs"] == 0)  # not even the gradient's own direction leads down
        self._narrow(state, enough, loss, steepness)
        self._remember(state, trial, grad, accepted & ~first)
        state["pairs"] = torch.where(failed, 0, state["pairs"])
        taken = accepted[:, None]
        state["point"] = torch.where(taken, trial, state["point"])
        state["point_grad"] = torch.where(taken, grad, state["point_grad"])
        state["point_loss"] = torch.where(accepted, loss, state["point_loss"])
        state["placed"] = state["placed"] | accepted
        self._aim(state, accepted | failed)
        ahead = state["point"] + state["rate"][:, None] * state["direction"]
        moved = ahead.view_as(state["embeds"])
        state["embeds"] = torch.where(state["soft"][..., None], moved, state["embeds"])
        return accepted

    def rebase(self, state: State, embeds: Tensor, rows: Tensor) -> None:
        """Pairs are kept: the curvature along the soft tokens changes little with one hard token."""
        state["point"] = torch.where(rows[:, None], embeds.reshape(len(embeds), -1), state["point"])
        state["embeds"] = torch.where(rows.view(-1, 1, 1), embeds, state["embeds"])
        state["placed"] = state["placed"] & ~rows
        state["trials"] = torch.where(rows, 0, state["trials"])
        state["stuck"] = state["stuck"] & ~rows

    @staticmethod
    def _narrow(state: State, enough: Tensor, loss: Tensor, steepness: Tensor) -> None:
        """The next rate on the present line: by the parabola through what is known, else by halving or doubling."""
        rate = state["rate"]
        state["high"] = torch.where(enough, state["high"], rate)
        state["low"] = torch.where(enough, rate, state["low"])
        rise = (loss - state["point_loss"] - steepness * rate).clamp_min(1e-30)
        parabola = torch.nan_to_num(-steepness * rate.square() / (2 * rise))
        between = torch.where(state["low"] > 0, (state["low"] + state["high"]) / 2, parabola)
        inside = torch.maximum(torch.minimum(between, state["high"] * 0.9), rate * 0.1)
        state["rate"] = torch.where(torch.isfinite(state["high"]), inside, 2 * rate)

    @staticmethod
    def _remember(state: State, trial: Tensor, grad: Tensor, accepted: Tensor) -> None:
        """Keep the step and the change of the gradient along it, the oldest pair making room."""
        move, turn = trial - state["point"], grad - state["point_grad"]
        product = (move * turn).sum(1)
        sure = product > LEAST_COSINE * torch.linalg.vector_norm(move, dim=1) * torch.linalg.vector_norm(turn, dim=1)
        which = (accepted & sure).nonzero()[:, 0]
        slot = state["pairs"][which] % state["moves"].shape[1]
        for name, values in (("moves", move), ("turns", turn), ("inverse_curvature", 1 / product)):
            state[name][which, slot] = values[which]
        state["scale"] = state["scale"].index_put((which,), product[which] / turn[which].square().sum(1))
        state["pairs"] = state["pairs"].index_add(0, which, torch.ones_like(which))

    def _aim(self, state: State, rows: Tensor) -> None:
        """A new line for some rows: along the quasi-Newton direction, or down the gradient where nothing is known."""
        direction = self._quasi_newton(state)
        grad = state["point_grad"]
        downhill = (direction * grad).sum(1) < 0
        state["pairs"] = torch.where(rows & ~downhill, 0, state["pairs"])
        fresh = state["pairs"] == 0
        direction = torch.where(fresh[:, None], -grad, direction)
        # After a failed search the gradient's own direction is tried with a tenth of the usual first move.
        reach = torch.where(state["trials"] >= MOST_TRIALS, 0.1 * FIRST_MOVE, FIRST_MOVE)
        rate = torch.where(fresh, reach / torch.linalg.vector_norm(grad, dim=1).clamp_min(1e-12), 1.0)
        state["direction"] = torch.where(rows[:, None], direction, state["direction"])
        for name, value in (("rate", rate), ("low", 0.0), ("high", torch.inf), ("trials", 0)):
            state[name] = torch.where(rows, value, state[name])

    @staticmethod
    def _quasi_newton(state: State) -> Tensor:
        """The two-loop recursion (Nocedal and Wright, Algorithm 7.4) over each row's pairs, `(rows pos·hidden)`."""
        pairs, memory = state["pairs"], state["moves"].shape[1]
        rows = torch.arange(len(pairs), device=pairs.device)
        newest_first = []
        for age in range(min(int(pairs.max()), memory)):
            slot = (pairs - 1 - age) % memory
            weight = state["inverse_curvature"][rows, slot] * (age < pairs.clamp_max(memory))
            newest_first.append((state["moves"][rows, slot], state["turns"][rows, slot], weight))
        direction, alphas = state["point_grad"].clone(), []
        for move, turn, weight in newest_first:
            alphas.append(weight * (move * direction).sum(1))
            direction -= alphas[-1][:, None] * turn
        direction *= torch.where(pairs > 0, state["scale"], 1.0)[:, None]
        for (move, turn, weight), alpha in zip(reversed(newest_first), reversed(alphas), strict=True):
            direction += (alpha - weight * (turn * direction).sum(1))[:, None] * move
        return -direction
