"""What a head can rank first, held to linear programmes, to grids of u and to the model itself."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.floor import FloorSolver
from dpexplore.floor.proof import margin_bound
from dpexplore.floor.rankings import Ranking, RankingSolver


def random_solver(
    seed: int, vocab: int = 30, hidden: int = 3, *, bias: float = 0.0, zero_mean: bool = False
) -> RankingSolver:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64)
    b = bias * torch.randn(vocab, generator=generator, dtype=torch.float64) if bias else None
    return RankingSolver(FloorSolver(matrix, b, math.sqrt(hidden), zero_mean=zero_mean))


def rows_and_leads(solver: RankingSolver, order: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """margin(u) = min(rows·u + leads), written out again without the solver."""
    matrix, bias = solver.products.matrix.numpy(), solver.bias.numpy()
    if solver.products.zero_mean:
        matrix = matrix - matrix.mean(1, keepdims=True)
    others = [j for j in range(len(matrix)) if j not in order]
    pairs = [*itertools.pairwise(order), *((order[-1], j) for j in others)]
    above, below = np.array(pairs).T
    return matrix[above] - matrix[below], bias[above] - bias[below]


def largest_margin_in_polygon(rows: np.ndarray, leads: np.ndarray, radius: float, sides: int) -> float:
    """max min(rows·u + leads) over the regular polygon around the disc, by HiGHS."""
    angles = 2 * np.pi * np.arange(sides) / sides
    polygon = np.column_stack([np.cos(angles), np.sin(angles), np.zeros(sides)])
    constraints = np.vstack([np.column_stack([-rows, np.ones(len(rows))]), polygon])
    limits = np.concatenate([leads, np.full(sides, radius)])
    found = linprog([0, 0, -1], A_ub=constraints, b_ub=limits, bounds=[(None, None)] * 3, method="highs")
    assert found.status == 0
    return -found.fun


def check(solver: RankingSolver, found: Ranking) -> None:
    """The point has the margin that is claimed, and the proof proves what it says, by the solver's stranger."""
    rows, leads = rows_and_leads(solver, found.ids)
    at_point = (rows @ found.point.numpy() + leads).min()
    assert found.margin_nats <= at_point <= found.margin_nats + 1e-4  # what float32 costs in bulk
    if found.can:
        assert found.kind == "sphere"
        assert found.margin_nats > found.resolution_nats
        assert float(found.point.norm()) == pytest.approx(solver.radius, rel=1e-9)
    if found.proof is not None:
        record = {"ids": found.ids, "proof": {"pairs": found.proof.pairs, "weights": found.proof.weights}}
        proved = margin_bound(record, head_of(solver))
        assert found.margin_bound_nats is not None
        assert proved <= found.margin_bound_nats <= proved + 1e-6
    if found.can is False:
        assert found.kind == "ball"
        assert found.proof is not None
        assert found.margin_bound_nats is not None
        assert found.margin_bound_nats <= found.resolution_nats


def head_of(solver: RankingSolver) -> dict[str, object]:
    return {
        "matrix": solver.products.matrix.numpy(),
        "bias": solver.bias.numpy(),
        "radius": solver.radius,
        "zero_mean": solver.products.zero_mean,
    }


@pytest.mark.parametrize("bias", [0.0, 0.5, 3.0])
def test_the_largest_margin_of_a_disc_agrees_with_linear_programmes(bias: float) -> None:
    solver = random_solver(1, vocab=25, hidden=2, bias=bias)
    sides = 400
    for order in [*([i] for i in range(0, 25, 2)), [3, 7], [11, 2, 19]]:
        found = solver.decide(order, gap_nats=1e-7)
        check(solver, found)
        rows, leads = rows_and_leads(solver, order)
        outside = largest_margin_in_polygon(rows, leads, solver.radius, sides)
        # The disc holds the polygon with corners on it, which is the one around it, smaller by cos(π/sides).
        inside = largest_margin_in_polygon(rows, leads, solver.radius * math.cos(math.pi / sides), sides)
        if found.can:
            assert found.margin_bound_nats is not None
            assert inside - 1e-6 <= found.margin_bound_nats
            assert found.margin_nats <= outside + 1e-9
            if not bias:
                assert found.margin_bound_nats <= outside + 1e-6
        elif found.can is False:
            assert inside <= found.resolution_nats + 1e-9
        else:
            assert outside > 0


@pytest.mark.parametrize("zero_mean", [False, True])
@pytest.mark.parametrize("hidden", [5, 9])
def test_without_a_bias_the_answer_is_the_linear_programme_s(hidden: int, zero_mean: bool) -> None:
    """Some direction ranks the token first if a programme over a box of directions has a positive optimum."""
    solver = random_solver(2, vocab=60, hidden=hidden, zero_mean=zero_mean)
    for index in range(60):
        rows, _ = rows_and_leads(solver, [index])
        system = np.column_stack([-rows, np.ones(len(rows))])
        box = [(-1, 1)] * hidden + [(None, None)]
        exact = -linprog([0] * hidden + [-1], A_ub=system, b_ub=np.zeros(len(rows)), bounds=box, method="highs").fun
        found = solver.decide([index])
        check(solver, found)
        assert found.can is (exact > 1e-7)


def grid(dimension: int, radius: float, sphere: bool) -> Tensor:
    if dimension == 2:
        angles = torch.linspace(0, 2 * math.pi, 4000, dtype=torch.float64)
        points = torch.stack([angles.cos(), angles.sin()], 1)
    else:  # Fibonacci's sphere
        place = torch.arange(20000, dtype=torch.float64)
        height = 1 - 2 * (place + 0.5) / len(place)
        around = math.pi * (1 + math.sqrt(5)) * place
        flat = (1 - height.square()).sqrt()
        points = torch.stack([flat * around.cos(), flat * around.sin(), height], 1)
    lengths = [1.0] if sphere else [0.1, 0.3, 0.5, 0.7, 0.9, 1.0]
    return torch.cat([radius * length * points for length in lengths])


@pytest.mark.parametrize("hidden", [2, 3])
@pytest.mark.parametrize("bias", [0.0, 1.0, 6.0])
def test_answers_agree_with_a_grid(hidden: int, bias: float) -> None:
    solver = random_solver(5, vocab=40, hidden=hidden, bias=bias)
    matrix = solver.products.matrix

    def winners(sphere: bool) -> set[int]:
        logits = grid(hidden, solver.radius, sphere) @ matrix.T + solver.bias
        best = logits.topk(2, 1)
        return set(best.indices[best.values[:, 0] - best.values[:, 1] > 1e-3, 0].tolist())

    on_sphere, in_ball = winners(True), winners(False)
    answers = {}
    for one in solver.decide_each(range(40)):
        check(solver, one)
        answers[one.ids[0]] = one.can
    assert {index for index, can in answers.items() if can} >= on_sphere
    assert not {index for index, can in answers.items() if can is False} & in_ball
    # What is left open could be said inside the ball, where no final norm puts u.
    assert sum(can is None for can in answers.values()) <= len(in_ball - on_sphere) + 1


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    bias=st.sampled_from([0.0, 1.0, 5.0]),
    zero_mean=st.booleans(),
    length=st.integers(1, 3),
)
def test_no_order_that_occurs_is_ever_refused(seed: int, bias: float, zero_mean: bool, length: int) -> None:
    solver = random_solver(seed, vocab=20, hidden=4, bias=bias, zero_mean=zero_mean)
    generator = torch.Generator().manual_seed(seed + 1)
    u = torch.randn(4, generator=generator, dtype=torch.float64)
    u = solver.products.centre(u)
    u = u * solver.radius / u.norm()
    logits = solver.products.forward(u[None])[0] + solver.bias
    best = logits.topk(length + 1)
    if (best.values[:-1] - best.values[1:]).min() <= solver.resolution_nats:
        return
    order = best.indices[:length].tolist()
    found = solver.decide(order)
    check(solver, found)
    assert found.can is not False
    seen = solver.decide(order, start=u)
    check(solver, seen)
    assert seen.can is True


def test_a_row_between_others_and_a_twin_can_never_be_first() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    matrix[3] = 0.5 * matrix[4] + 0.5 * matrix[5]
    matrix[6] = matrix[7]
    solver = RankingSolver(FloorSolver(matrix, None, 2.0))
    for index in (3, 6, 7):
        found = solver.decide([index])
        check(solver, found)
        assert found.can is False
    assert {one.ids[0] for one in solver.decide_each(range(20)) if one.can is False} >= {3, 6, 7}


def test_many_tokens_together_are_decided_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rivals join at a time, so that it takes rounds."""
    monkeypatch.setattr("dpexplore.floor.rankings.ADDED_RIVALS", 4)
    solver = random_solver(8, vocab=300, hidden=7)
    together = {one.ids[0]: one for one in solver.decide_each(range(300))}
    later = [index for index, one in together.items() if one.can]
    for index in later[::6]:
        check(solver, together[index])
        assert solver.decide([index]).can is True
    refused = [index for index, one in together.items() if not one.can]
    assert all(solver.decide([index]).can is False for index in refused[::6])
    assert min(len(later), len(refused)) > 30


def test_a_word_sayable_only_inside_the_ball_is_left_open() -> None:
    """Its bias leads at u = 0; on the sphere one of the others always stands above it."""
    matrix = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)
    bias = torch.tensor([0.5, 0, 0, 0, 0], dtype=torch.float64)
    solver = RankingSolver(FloorSolver(matrix, bias, 10.0))
    found = solver.decide([0])
    assert found.can is None
    assert found.kind == "ball"
    assert found.margin_nats == pytest.approx(0.5, abs=1e-5)
    short = RankingSolver(FloorSolver(matrix, bias, 0.6)).decide([0])
    assert short.can is True  # along a diagonal every other logit is 0.6/√2


@pytest.mark.parametrize(
    ("ids", "message"), [([], "Name at least one"), ([1, 1], "twice"), ([99], "no token id 99"), ([-1], "no token id")]
)
def test_bad_orders_are_refused(ids: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        random_solver(0).decide(ids)


def test_the_check_refuses_proofs_that_prove_something_else() -> None:
    solver = random_solver(0, vocab=30, hidden=2)
    found = next(one for one in solver.decide_each(range(30)) if one.can is False)
    assert found.proof is not None
    record = {"ids": found.ids, "proof": {"pairs": found.proof.pairs, "weights": found.proof.weights}}
    head = head_of(solver)
    assert margin_bound(record, head) <= found.resolution_nats
    other = found.ids[0] - 1 if found.ids[0] else 1
    with pytest.raises(ValueError, match="does not ask"):
        margin_bound(record | {"ids": [other]}, head)
    halved = [0.5 * weight for weight in found.proof.weights]
    with pytest.raises(ValueError, match="sum to 1"):
        margin_bound(record | {"proof": {"pairs": found.proof.pairs, "weights": halved}}, head)
