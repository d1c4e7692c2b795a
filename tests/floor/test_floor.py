"""The floor of small heads, held to independent solvers, to hand calculation and to random points of the ball."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import NonlinearConstraint, minimize
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.floor import FloorSolver
from dpexplore.floor.search import sampled_hessian
from dpexplore.floor.subspace import quadratic_on_ball

FLOAT64_EXACT = 1e-9


def random_head(
    seed: int, vocab: int = 60, hidden: int = 6, *, bias: bool = False, zero_mean: bool = False
) -> FloorSolver:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64)
    b = torch.randn(vocab, generator=generator, dtype=torch.float64) if bias else None
    return FloorSolver(matrix, b, math.sqrt(hidden), zero_mean=zero_mean)


def random_targets(seed: int, vocab: int, sharpness: float, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return (sharpness * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)).softmax(-1)


def kl(solver: FloorSolver, probs: Tensor, points: Tensor) -> Tensor:
    """KL(p ‖ softmax(Au + b)) in plain float64, `(rows vocab)`, `(rows hidden)` -> `(rows,)`."""
    if solver.products.zero_mean:
        points = points - points.mean(-1, keepdim=True)
    logits = points @ solver.products.matrix.double().T + solver.bias
    terms = torch.where(probs > 0, probs * (probs.clamp_min(1e-300).log() - logits.log_softmax(-1)), 0.0)
    return terms.sum(-1)


def in_ball(solver: FloorSolver, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(2000 + seed)
    points = torch.randn(count, solver.hidden_size, generator=generator, dtype=torch.float64)
    if solver.products.zero_mean:
        points = points - points.mean(-1, keepdim=True)
    lengths = solver.radius * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    lengths[::3] = solver.radius
    return points / points.norm(dim=1, keepdim=True) * lengths


def by_scipy(solver: FloorSolver, probs: Tensor) -> float:
    """The minimum over the ball by SciPy's interior-point solver, with exact derivatives."""
    a = solver.products.matrix.double().numpy()
    if solver.products.zero_mean:
        a = a - a.mean(1, keepdims=True)
    b, p = solver.bias.numpy(), probs.numpy()

    def q_of(u: np.ndarray) -> np.ndarray:
        z = a @ u + b
        e = np.exp(z - z.max())
        return e / e.sum()

    def value(u: np.ndarray) -> tuple[float, np.ndarray]:
        z = a @ u + b
        return np.logaddexp.reduce(z) - p @ z, a.T @ (q_of(u) - p)

    def hessian(u: np.ndarray) -> np.ndarray:
        q = q_of(u)
        mean = a.T @ q
        return (a.T * q) @ a - np.outer(mean, mean)

    eye = np.eye(a.shape[1])
    # Derivatives are functions in SciPy's documentation, and texts in its annotations.
    derivatives: dict[str, Any] = {"jac": lambda u: 2 * u[None], "hess": lambda _u, v: 2 * v[0] * eye}
    ball = NonlinearConstraint(lambda u: u @ u, -np.inf, solver.radius**2, **derivatives)
    found = minimize(
        value,
        np.zeros(a.shape[1]),
        jac=True,
        hess=hessian,
        constraints=ball,
        method="trust-constr",
        options={"gtol": 1e-12, "xtol": 1e-14, "barrier_tol": 1e-12, "maxiter": 3000},
    )
    point = torch.from_numpy(found.x)
    point = point * min(1.0, solver.radius / float(point.norm()))
    return float(kl(solver, probs[None], point[None]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("zero_mean", [False, True])
@pytest.mark.parametrize("sharpness", [0.3, 2.0, 8.0])
def test_optimum_agrees_with_an_independent_solver(bias: bool, zero_mean: bool, sharpness: float) -> None:
    for seed in range(2):
        solver = random_head(seed, bias=bias, zero_mean=zero_mean)
        probs = random_targets(seed, solver.vocab_size, sharpness)
        floor = solver.solve(probs, gap_nats=1e-7, ladder=False)[0]
        assert floor.status == "converged"
        assert floor.gap_nats <= 1e-7
        assert floor.kl_nats == pytest.approx(by_scipy(solver, probs[0]), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sharpness=st.floats(0.0, 30.0),
    bias=st.booleans(),
    zero_mean=st.booleans(),
    zeros=st.booleans(),
)
def test_any_point_certifies_a_bound_that_no_other_point_breaks(
    seed: int, sharpness: float, bias: bool, zero_mean: bool, zeros: bool
) -> None:
    solver = random_head(seed, vocab=40, hidden=5, bias=bias, zero_mean=zero_mean)
    probs = random_targets(seed, 40, sharpness)
    if zeros:
        probs[:, ::2] = 0
        probs = probs / probs.sum()
    certifying = in_ball(solver, 8, seed)
    found = solver.certify(probs.expand(8, -1), certifying)
    others = kl(solver, probs, in_ball(solver, 400, seed + 1))
    assert (found.lower_bound_nats <= others.min()).all()
    assert (found.lower_bound_nats >= 0).all()
    assert torch.allclose(found.kl_nats, kl(solver, probs.expand(8, -1), certifying).clamp_min(0), atol=FLOAT64_EXACT)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), sharpness=st.floats(0.0, 40.0), bias=st.booleans(), zero_mean=st.booleans())
def test_ladder_is_in_order_and_no_point_of_the_ball_is_below_the_floor(
    seed: int, sharpness: float, bias: bool, zero_mean: bool
) -> None:
    solver = random_head(seed, vocab=50, hidden=7, bias=bias, zero_mean=zero_mean)
    probs = random_targets(seed, 50, sharpness)
    floor = solver.solve(probs)[0]
    assert floor.unconstrained_kl_nats is not None
    assert floor.head_optimum_nats is not None
    assert 0 <= floor.unconstrained_kl_nats <= floor.lower_bound_nats <= floor.kl_nats <= floor.head_optimum_nats
    assert floor.status == "converged"
    assert floor.gap_nats <= 1e-3
    values = kl(solver, probs, in_ball(solver, 2000, seed))
    assert floor.lower_bound_nats <= values.min()
    if solver.hidden_size - zero_mean > 1:
        on_sphere = in_ball(solver, 2000, seed)[::3]
        # An estimate from a few starts: a local minimum, so better than nearly all of the sphere.
        assert floor.head_optimum_nats <= kl(solver, probs, on_sphere).quantile(0.02) + 1e-3
        assert floor.head_point is not None
        assert float(floor.head_point.norm()) == pytest.approx(solver.radius, rel=1e-9)
        assert float(kl(solver, probs, floor.head_point[None])) == pytest.approx(floor.head_optimum_nats, abs=1e-6)


def test_gradient_of_the_certificate_by_finite_differences() -> None:
    solver = random_head(3, bias=True, zero_mean=True)
    probs = random_targets(3, solver.vocab_size, 2.0)
    point = in_ball(solver, 2, 3)[1:]
    found = solver.certify(probs, point)
    gradient = solver.products.backward(found.log_probs.exp() - probs)[0]
    step = 1e-5
    for axis in range(solver.hidden_size):
        move = torch.zeros_like(point)
        move[0, axis] = step
        slope = (kl(solver, probs, point + move) - kl(solver, probs, point - move)) / (2 * step)
        assert gradient[axis].item() == pytest.approx(slope.item(), abs=1e-8)
    inward = float(gradient @ point[0])
    expected = float(found.kl_nats) - inward - solver.radius * float(gradient.norm())
    assert float(found.lower_bound_nats) == pytest.approx(max(0.0, expected), abs=1e-9)


def test_preconditioner_of_a_whole_vocabulary_is_the_hessian() -> None:
    """Second differences of KL against Aᵀ(diag q − qqᵀ)A."""
    solver = random_head(4, vocab=30, hidden=4)
    probs = random_targets(4, 30, 1.0)
    point = in_ball(solver, 2, 4)[1:]
    q = solver.certify(probs, point).log_probs[0].exp()
    hessian = sampled_hessian(solver.products, q).double()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        move = torch.randn(1, 4, generator=generator, dtype=torch.float64) * 1e-3
        second = kl(solver, probs, point + move) - 2 * kl(solver, probs, point) + kl(solver, probs, point - move)
        assert float(move[0] @ hessian @ move[0]) == pytest.approx(second.item(), rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.0, 1.0))
def test_kl_is_convex_along_any_chord(seed: int, share: float) -> None:
    solver = random_head(seed, bias=True)
    probs = random_targets(seed, solver.vocab_size, 3.0)
    start, end = in_ball(solver, 4, seed)[:2, None]
    between = kl(solver, probs, (1 - share) * start + share * end)
    assert between <= (1 - share) * kl(solver, probs, start) + share * kl(solver, probs, end) + 1e-10


def test_one_token_head_in_closed_form() -> None:
    """Two tokens, logits ±u, |u| ≤ R: the best q for p = (1, 0) is σ(2R), so the floor is log(1 + e^(−2R))."""
    solver = FloorSolver(torch.tensor([[1.0], [-1.0]], dtype=torch.float64), None, 3.0)
    floor = solver.solve(torch.tensor([1.0, 0.0]), gap_nats=1e-10)[0]
    assert floor.kl_nats == pytest.approx(math.log1p(math.exp(-6.0)), abs=1e-10)
    assert floor.lower_bound_nats == pytest.approx(floor.kl_nats, abs=1e-10)
    assert floor.unconstrained_kl_nats == pytest.approx(0.0, abs=1e-4)


def test_one_hot_target_on_an_orthogonal_head_in_closed_form() -> None:
    """A = I, p one-hot: by symmetry and convexity u = (s, −t, …, −t), t = s/(n−1), on the sphere."""
    n, radius = 7, 2.5
    solver = FloorSolver(torch.eye(n, dtype=torch.float64), None, radius)
    probs = torch.zeros(n, dtype=torch.float64)
    probs[2] = 1
    s = radius * math.sqrt((n - 1) / n)
    expected = math.log1p((n - 1) * math.exp(-s - s / (n - 1)))
    floor = solver.solve(probs, gap_nats=1e-9)[0]
    assert floor.kl_nats == pytest.approx(expected, abs=1e-8)
    assert floor.head_optimum_nats == pytest.approx(expected, abs=1e-8)


def test_uniform_target_without_bias_is_reached_at_the_centre_but_not_on_the_sphere() -> None:
    solver = random_head(5)
    uniform = torch.full((solver.vocab_size,), 1 / solver.vocab_size, dtype=torch.float64)
    floor = solver.solve(uniform)[0]
    assert floor.lower_bound_nats == 0.0
    assert floor.kl_nats == pytest.approx(0.0, abs=1e-3)
    assert floor.head_optimum_nats is not None
    assert floor.head_optimum_nats > 0.1


def test_uniform_target_with_a_bias_that_the_head_cannot_see() -> None:
    """With A = 0 every prompt gives softmax(b), so every number of the ladder is KL(p ‖ softmax(b))."""
    bias = torch.linspace(-2, 2, 9, dtype=torch.float64)
    solver = FloorSolver(torch.zeros(9, 3, dtype=torch.float64), bias, 1.7)
    uniform = torch.full((9,), 1 / 9, dtype=torch.float64)
    expected = float(-math.log(9) - bias.log_softmax(0).mean())
    floor = solver.solve(uniform)[0]
    assert floor.kl_nats == pytest.approx(expected, abs=1e-12)
    assert floor.lower_bound_nats == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("zero_mean", [False, True])
def test_what_the_head_can_say_has_floor_zero_and_one_changed_token_does_not(zero_mean: bool) -> None:
    solver = random_head(6, bias=True, zero_mean=zero_mean)
    point = in_ball(solver, 3, 6)
    reachable = solver.certify(torch.ones(3, solver.vocab_size, dtype=torch.float64), point).log_probs.exp()
    for floor in solver.solve(reachable, gap_nats=1e-7, ladder=False):
        assert floor.lower_bound_nats == 0.0
        assert floor.kl_nats <= 1e-7
    # Off by float32 rounding: still nothing that may be quoted above zero but the rounding itself.
    for floor in solver.solve(reachable.float(), gap_nats=1e-9, ladder=False):
        assert 0.0 <= floor.lower_bound_nats <= 1e-12
    changed = reachable.clone()
    changed[:, 0] = 0
    changed[:, 1] += reachable[:, 0]
    for floor in solver.solve(changed, gap_nats=1e-7, ladder=False):
        assert floor.lower_bound_nats > 1e-5


def test_float32_head_pays_for_the_rounding_of_its_entries() -> None:
    """The bound from a rounded A must also hold for the exact one it stands for."""
    generator = torch.Generator().manual_seed(7)
    exact = torch.randn(300, 16, generator=generator, dtype=torch.float64) * 10
    rounded = FloorSolver(exact.float(), None, 4.0, rounding=2.0**-24)
    truth = FloorSolver(exact, None, 4.0)
    for sharpness in (0.5, 3.0, 10.0):
        probs = random_targets(7, 300, sharpness)
        bound = rounded.solve(probs, gap_nats=1e-4, ladder=False)[0]
        optimum = truth.solve(probs, gap_nats=1e-8, ladder=False)[0]
        assert bound.status == "converged"
        assert bound.lower_bound_nats <= optimum.kl_nats
        assert optimum.lower_bound_nats - bound.lower_bound_nats <= 2e-4


def test_smaller_gaps_than_float32_products_reach_are_reached() -> None:
    generator = torch.Generator().manual_seed(8)
    solver = FloorSolver(torch.randn(500, 24, generator=generator), None, math.sqrt(24))
    floor = solver.solve(random_targets(8, 500, 2.0), gap_nats=1e-8, ladder=False)[0]
    assert floor.status == "converged"
    assert floor.gap_nats <= 1e-8


def test_a_vocabulary_larger_than_the_sample_still_converges() -> None:
    generator = torch.Generator().manual_seed(9)
    solver = FloorSolver(torch.randn(3000, 20, generator=generator), None, math.sqrt(20))
    for sharpness in (0.0, 0.5, 2.0, 8.0, 30.0):
        floor = solver.solve(random_targets(9, 3000, sharpness), ladder=False)[0]
        assert floor.status == "converged"
        assert floor.iterations <= 40


def test_batches_and_starts_change_nothing_but_the_work() -> None:
    solver = random_head(10, vocab=80, hidden=12)
    probs = torch.cat([random_targets(seed, 80, 0.5 * seed) for seed in range(20)])
    together = solver.solve(probs, gap_nats=1e-8, ladder=False)
    assert len(together) == 20
    for row in (0, 7, 19):
        alone = solver.solve(probs[row], gap_nats=1e-8, ladder=False)[0]
        assert alone.kl_nats == pytest.approx(together[row].kl_nats, abs=2e-8)
        warm = solver.solve(probs[row], gap_nats=1e-8, ladder=False, start=alone.point[None])[0]
        assert warm.kl_nats == pytest.approx(alone.kl_nats, abs=2e-8)
        assert warm.iterations <= 2
        assert torch.allclose(alone.log_probs.double().exp().sum(), torch.ones((), dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize("sphere", [False, True])
def test_without_curvature_the_slope_leads_to_the_edge(sphere: bool) -> None:
    """Where q is 1 on one token the Hessian is 0 in float64: −R c/‖c‖ minimises c·w (targets near 0.3 bits stuck)."""
    linear = torch.tensor([[0.3, -0.4], [1e-9, 0.0]], dtype=torch.float64)
    found = quadratic_on_ball(torch.zeros(2, 2, 2, dtype=torch.float64), linear, 24.0, sphere)
    assert torch.allclose(found, -24 * linear / linear.norm(dim=1, keepdim=True))


def test_where_a_cards_eigenvalue_solver_gives_up_lapack_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cuSOLVER's batched solver did in the floors of a sweep (NVIDIA H200, torch 2.11)."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(5, 8, 3, generator=generator, dtype=torch.float64)
    hessian, linear = factors @ factors.mT, torch.randn(5, 8, generator=generator, dtype=torch.float64)
    expected = quadratic_on_ball(hessian, linear, 0.7, sphere=True)
    eigh, calls = torch.linalg.eigh, [0]

    def failing_first(matrices: Tensor) -> Any:
        calls[0] += 1
        if calls[0] == 1:
            raise RuntimeError("the algorithm failed to converge")
        return eigh(matrices)

    monkeypatch.setattr(torch.linalg, "eigh", failing_first)
    assert torch.equal(quadratic_on_ball(hessian, linear, 0.7, sphere=True), expected)
    assert calls == [2]


def test_an_unfinished_search_still_certifies() -> None:
    solver = random_head(11)
    probs = random_targets(11, solver.vocab_size, 4.0)
    hasty = solver.solve(probs, max_iterations=1, gap_nats=1e-9, ladder=False)[0]
    best = solver.solve(probs, gap_nats=1e-9, ladder=False)[0]
    assert hasty.status == "max_iterations"
    assert hasty.lower_bound_nats <= best.kl_nats <= hasty.kl_nats + 1e-12


@pytest.mark.parametrize(
    "probs",
    [
        torch.ones(59) / 59,
        torch.full((60,), torch.nan),
        torch.zeros(60),
        -torch.ones(60),
    ],
)
def test_targets_that_are_none_are_refused(probs: Tensor) -> None:
    with pytest.raises(InputError):
        random_head(0).solve(probs)


def test_heads_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="matrix"):
        FloorSolver(torch.ones(3), None, 1.0)
    with pytest.raises(InputError, match="radius"):
        FloorSolver(torch.ones(3, 2), None, 0.0)
    with pytest.raises(InputError, match="bias"):
        FloorSolver(torch.ones(3, 2), torch.ones(4), 1.0)
