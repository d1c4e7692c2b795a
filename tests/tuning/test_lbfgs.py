"""L-BFGS of many rows, against quadratics and torch."""

from __future__ import annotations

import math

import pytest
import torch

from dpexplore.tuning import TuneConfig
from dpexplore.tuning.init.layout import NO_TOKEN
from dpexplore.tuning.rules.lbfgs import LBFGS
from dpexplore.tuning.rules.state import PromptState


def begun(starts: torch.Tensor, budget: float = torch.inf) -> PromptState:
    """Rows of soft tokens alone, starts `(rows pos hidden)`."""
    soft = torch.ones(starts.shape[:2], dtype=torch.bool)
    ids, budgets = torch.full(soft.shape, NO_TOKEN), torch.full((len(starts),), budget)
    return PromptState.of(
        ids, starts, soft, ~soft, torch.zeros(len(starts)).bool(), budgets, torch.zeros(len(starts)).long()
    )


def quadratic_rows(curvatures: torch.Tensor, starts: torch.Tensor, steps: int) -> torch.Tensor:
    """Loss of every step of L-BFGS on ½ Σ c x², rows side by side; curvatures and starts `(rows size)`."""
    rule, prompts = LBFGS(10), begun(starts[:, None])
    state = rule.begin(prompts.embeds, [TuneConfig()] * len(starts))
    losses = []
    for _ in range(steps):
        x = prompts.embeds[:, 0]
        losses.append((curvatures * x.square()).sum(1) / 2)
        rule.update(state, prompts, losses[-1], (curvatures * x)[:, None])
    return torch.stack(losses)


def test_lbfgs_solves_quadratics_row_by_row() -> None:
    rng = torch.Generator().manual_seed(0)
    curvatures = 10 ** (3 * torch.rand(4, 8, generator=rng))  # condition numbers up to a thousand
    starts = torch.randn(4, 8, generator=rng)
    together = quadratic_rows(curvatures, starts, 80)
    assert (together.min(0).values < 1e-8 * together[0]).all()
    for row in range(4):
        alone = quadratic_rows(curvatures[row : row + 1], starts[row : row + 1], 80)
        assert torch.allclose(alone[:40, 0], together[:40, row], rtol=1e-3, atol=1e-6)


def test_lbfgs_finds_the_minimum_of_a_quadratic_over_a_ball() -> None:
    """½ xᵀDx − bᵀx over ‖x‖ ≤ 1: x = (D + λ)⁻¹b, λ by bisection (Moré and Sorensen 1983)."""
    rng = torch.Generator().manual_seed(2)
    curvature, slope = 10 ** (2 * torch.rand(8, generator=rng)), 60 * torch.randn(8, generator=rng)
    low, high = 0.0, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (slope / (curvature + middle)).norm() > 1 else (low, middle)
    wanted = slope / (curvature + low)
    rule, prompts = LBFGS(10), begun(torch.randn(1, 1, 8, generator=rng), budget=1.0)
    state, best = rule.begin(prompts.embeds, [TuneConfig()]), torch.inf
    for _ in range(80):
        x = prompts.embeds[0, 0]
        assert x.norm() <= 1 + 1e-5
        loss = (curvature * x.square()).sum() / 2 - slope @ x
        best = min(best, float(loss))
        rule.update(state, prompts, loss[None], (curvature * x - slope)[None, None])
    assert best == pytest.approx(float((curvature * wanted.square()).sum() / 2 - slope @ wanted), rel=1e-5)


def test_lbfgs_needs_no_more_evaluations_than_torchs() -> None:
    rng = torch.Generator().manual_seed(1)
    curvature, start = 10 ** (3 * torch.rand(1, 8, generator=rng)), torch.randn(1, 8, generator=rng)
    x = start.clone().requires_grad_()
    evaluations: list[float] = []

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (curvature * x.square()).sum() / 2
        loss.backward()
        evaluations.append(float(loss.detach()))
        return loss

    optimiser = torch.optim.LBFGS([x], history_size=10, max_iter=100, line_search_fn="strong_wolfe")
    optimiser.step(closure)
    goal = 1e-6 * evaluations[0]
    theirs = next(i for i, loss in enumerate(evaluations) if loss < goal)
    ours = next(i for i, loss in enumerate(quadratic_rows(curvature, start, 200)[:, 0].tolist()) if loss < goal)
    assert ours <= 1.5 * theirs


def test_lbfgs_comes_back_from_where_nothing_is_finite() -> None:
    """−log x + x beyond a wall: trials over the wall are infinite, and the rule stays on this side."""
    rule, prompts = LBFGS(5), begun(torch.tensor([[[0.05]]]))
    state = rule.begin(prompts.embeds, [TuneConfig()])
    best = math.inf
    for _ in range(60):
        x = prompts.embeds[0]
        loss = torch.where(x > 0, x - x.clamp_min(1e-9).log(), torch.nan).reshape(1)
        best = min(best, float(loss.nan_to_num(math.inf)))
        rule.update(state, prompts, loss, (1 - 1 / x)[None])
    assert best == pytest.approx(1, abs=1e-5)
