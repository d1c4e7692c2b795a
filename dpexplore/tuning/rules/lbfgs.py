"""L-BFGS with a line search, for every row by itself, one evaluation a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.rules.ball import inward
from dpexplore.tuning.rules.state import PromptState, RowState

# Line search of Lewis and Overton (2013): an interval that shrinks around a point of sufficient decrease.
SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9
MAX_TRIALS = 10
FIRST_STEP = 0.5
"""Length of the first step of a search, in units of an embedding; about a sixth of SmolLM2's token norm."""
MIN_COSINE = 1e-6
"""A pair of step and gradient change whose cosine is below this says nothing certain about curvature."""


@dataclass(eq=False)
class LBFGSState(RowState):
    """Each row's line `point + rate · direction`, and the pairs that its directions are made of."""

    point: Tensor
    """`(rows pos·hidden)` the latest accepted prompt."""
    point_loss: Tensor
    """`(rows,)` there."""
    point_grad: Tensor
    """`(rows pos·hidden)` there, 0 but at soft positions."""
    direction: Tensor
    """`(rows pos·hidden)`."""
    rate: Tensor
    """`(rows,)` of the trial under way."""
    low: Tensor
    """`(rows,)` the largest rate known to be too small,"""
    high: Tensor
    """`(rows,)` and the smallest known to be too large."""
    trials: Tensor
    """`(rows,)` made on this line."""
    placed: Tensor
    """`(rows,)` bool: whether there is a point."""
    stuck: Tensor
    """`(rows,)` bool: not even the gradient's own direction led down."""
    s: Tensor
    """`(rows history pos·hidden)` steps taken, a ring (Nocedal and Wright, chapter 7)."""
    y: Tensor
    """`(rows history pos·hidden)` changes of the gradient along them."""
    pairs: Tensor
    """`(rows,)` pairs kept so far; the ring holds the latest."""
    first_step: Tensor
    """`(rows,)` length of the first step of a search."""
    scale: Tensor
    """`(rows,)` sᵀy / yᵀy of the latest pair, the first guess of the inverse Hessian."""


class LBFGS:
    """Limited-memory BFGS (Liu and Nocedal, 1989).

    A trial that does not decrease the loss enough shortens the line, one that is still steep lengthens it, any other is
    the next point. Rows of one batch have one `history_size`.
    """

    def __init__(self, history_size: int) -> None:
        self._history_size = history_size

    def begin(self, embeds: Tensor, configs: Sequence[TuneConfig]) -> LBFGSState:
        point = embeds.flatten(1)
        vector, number = torch.zeros_like(point), torch.zeros_like(point[:, 0])
        count, flag = torch.zeros_like(number, dtype=torch.long), torch.zeros_like(number, dtype=torch.bool)
        history = torch.zeros(len(point), self._history_size, point.shape[1], device=point.device)
        return LBFGSState(
            point=point,
            point_loss=number + torch.inf,
            point_grad=vector,
            direction=vector,
            rate=number,
            low=number,
            high=number + torch.inf,
            trials=count,
            placed=flag,
            stuck=flag,
            s=history,
            y=history.clone(),
            pairs=count,
            first_step=number + FIRST_STEP,
            scale=number + 1,
        )

    def update(self, state: LBFGSState, prompts: PromptState, loss: Tensor, grad: Tensor) -> Tensor:
        finite = torch.isfinite(loss) & torch.isfinite(grad).flatten(1).all(1)
        loss = torch.where(finite, loss, torch.inf)
        grad = torch.where(finite.view(-1, 1, 1) & prompts.soft[..., None], grad, 0.0).flatten(1)
        # Where the budget holds a token, only what moves it along its sphere or inward counts as slope.
        grad = -inward(-grad.view_as(prompts.embeds), prompts.embeds, prompts.budget).flatten(1)
        trial = prompts.embeds.flatten(1)
        first = ~state.placed
        steepness = (state.point_grad * state.direction).sum(1)
        moved = trial - state.point  # rate · direction, less what the budget cut off
        promised = (state.point_grad * moved).sum(1)
        enough = loss <= state.point_loss + SUFFICIENT_DECREASE * promised.clamp_max(0)
        flat = (grad * state.direction).sum(1) >= CURVATURE * steepness
        state.trials = state.trials + 1
        spent = state.trials >= MAX_TRIALS
        accepted = finite & (first | (enough & (flat | spent)))
        failed = ~first & ~enough & spent
        state.stuck = failed & (state.pairs == 0)
        self._narrow(state, enough, loss, steepness)
        self._remember(state, trial, grad, accepted & ~first)
        state.assign(failed, pairs=0)
        state.assign(accepted, point=trial, point_grad=grad, point_loss=loss)
        state.placed = state.placed | accepted
        self._aim(state, accepted | failed, prompts.budget, prompts.embeds.shape)
        ahead = state.point + state.rate[:, None] * state.direction
        prompts.move_soft(ahead.view_as(prompts.embeds))
        return accepted

    def rebase(self, state: LBFGSState, prompts: PromptState, embeds: Tensor, rows: Tensor) -> None:
        """Pairs are kept: the curvature along the soft tokens changes little with one hard token."""
        state.assign(rows, point=embeds.flatten(1), trials=0)
        prompts.assign(rows, embeds=embeds)
        state.placed = state.placed & ~rows
        state.stuck = state.stuck & ~rows

    def ended(self, state: LBFGSState) -> Tensor:
        return state.stuck

    def returns(self, state: LBFGSState) -> Tensor:
        return state.placed & ~state.stuck

    @staticmethod
    def _narrow(state: LBFGSState, enough: Tensor, loss: Tensor, steepness: Tensor) -> None:
        """The next rate on the present line: by the parabola through what is known, else by halving or doubling."""
        rate = state.rate
        state.high = torch.where(enough, state.high, rate)
        state.low = torch.where(enough, rate, state.low)
        rise = (loss - state.point_loss - steepness * rate).clamp_min(1e-30)
        parabola = torch.nan_to_num(-steepness * rate.square() / (2 * rise))
        between = torch.where(state.low > 0, (state.low + state.high) / 2, parabola)
        inside = torch.maximum(torch.minimum(between, state.high * 0.9), rate * 0.1)
        state.rate = torch.where(torch.isfinite(state.high), inside, 2 * rate)

    @staticmethod
    def _remember(state: LBFGSState, trial: Tensor, grad: Tensor, accepted: Tensor) -> None:
        """Keep the step and the change of the gradient along it, the oldest pair making room.

        Every row writes its slot of the ring, those that keep nothing what stands there already.
        """
        s, y = trial - state.point, grad - state.point_grad
        product = (s * y).sum(1)
        sure = product > MIN_COSINE * torch.linalg.vector_norm(s, dim=1) * torch.linalg.vector_norm(y, dim=1)
        kept = accepted & sure
        slot = state.pairs % state.s.shape[1]
        wide = slot.view(-1, 1, 1).expand(-1, 1, s.shape[1])
        for ring, new in ((state.s, s), (state.y, y)):
            ring.scatter_(1, wide, torch.where(kept[:, None], new, ring.gather(1, wide)[:, 0])[:, None])
        state.assign(kept, scale=product / y.square().sum(1))
        state.pairs = state.pairs + kept

    def _aim(self, state: LBFGSState, rows: Tensor, budget: Tensor, shape: torch.Size) -> None:
        """A new line for some rows: along the quasi-Newton direction, or down the gradient where nothing is known."""
        direction = inward(self._quasi_newton(state).view(shape), state.point.view(shape), budget).flatten(1)
        grad = state.point_grad
        downhill = (direction * grad).sum(1) < 0
        state.assign(rows & ~downhill, pairs=0)
        fresh = state.pairs == 0
        direction = torch.where(fresh[:, None], -grad, direction)
        # After a failed search the gradient's own direction is tried with a tenth of the usual first step.
        reach = torch.where(state.trials >= MAX_TRIALS, 0.1 * state.first_step, state.first_step)
        rate = torch.where(fresh, reach / torch.linalg.vector_norm(grad, dim=1).clamp_min(1e-12), 1.0)
        state.assign(rows, direction=direction, rate=rate, low=0.0, high=torch.inf, trials=0)

    @staticmethod
    def _quasi_newton(state: LBFGSState) -> Tensor:
        """−H·gradient over each row's pairs, `(rows pos·hidden)`.

        The two-loop recursion (Nocedal and Wright, Algorithm 7.4) is two triangular systems in the products
        R = sᵢᵀyⱼ, i no later than j: Rα = Sᵀg, and with q = g − Yα and γ the scale, Rᵀδ = diag(R)α − γYᵀq; the
        direction is −(γq + Sδ).
        """
        history, device = state.s.shape[1], state.s.device
        age = torch.arange(history, 0, -1, device=device)
        slots = (state.pairs[:, None] - age) % history  # oldest first
        known = age <= state.pairs[:, None]

        def along(pairs: Tensor, vector: Tensor) -> Tensor:
            """Products of each pair with a vector `(rows pos·hidden)`, oldest first, `(rows history)`."""
            return torch.where(known, (pairs @ vector[..., None])[..., 0].gather(1, slots), 0.0)

        def combined(pairs: Tensor, weights: Tensor) -> Tensor:
            """The sum of pairs by weights `(rows history)`, oldest first, `(rows pos·hidden)`."""
            return (torch.zeros_like(weights).scatter(1, slots, weights)[:, None] @ pairs)[:, 0]

        products = state.s @ state.y.mT
        products = products.gather(1, slots[..., None].expand_as(products))
        products = products.gather(2, slots[:, None].expand_as(products))
        products = torch.where(known[:, None] & known[..., None], products, 0.0).triu()
        diagonal = products.diagonal(dim1=1, dim2=2)
        products = products + torch.diag_embed((~known).to(products.dtype))
        scale = torch.where(state.pairs > 0, state.scale, 1.0)[:, None]

        alpha = torch.linalg.solve_triangular(products, along(state.s, state.point_grad)[..., None], upper=True)[..., 0]
        rest = scale * (state.point_grad - combined(state.y, alpha))
        right = diagonal * alpha - along(state.y, rest)
        delta = torch.linalg.solve_triangular(products.mT, right[..., None], upper=False)[..., 0]
        return -(rest + combined(state.s, delta))
