"""States from distributions, the plane through two of them, and three words' region: held to what models say."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.floor import FloorSolver, HeadProducts
from dpexplore.floor.disc import last_states, places, plane_kl, state_kl
from dpexplore.floor.prepared import floor_solver
from dpexplore.floor.three_words import closest_two, three_words
from dpexplore.models import LanguageModel

ARCHITECTURES = ["llama", "gpt2", "gemma3", "falcon"]


def said(lm: LanguageModel, rows: int, length: int = 3) -> Tensor:
    """log q of random prompts, `(rows vocab)`."""
    ids = torch.randint(0, lm.embedding_table.shape[0], (rows, length), generator=torch.Generator().manual_seed(0))
    return lm.log_probs_of_ids(ids)


def random_solver(vocab: int = 60, hidden: int = 8, *, zero_mean: bool = False) -> FloorSolver:
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64)
    bias = torch.randn(vocab, generator=generator, dtype=torch.float64)
    return FloorSolver(matrix, bias, math.sqrt(hidden), zero_mean=zero_mean)


@pytest.mark.parametrize("zero_mean", [False, True])
def test_a_distribution_gives_its_state_back(zero_mean: bool) -> None:
    solver = random_solver(zero_mean=zero_mean)
    states = solver.products.centre(torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    log_q = (solver.products.forward(states) + solver.bias).log_softmax(-1)
    torch.testing.assert_close(last_states(solver, log_q), states, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whatever_a_model_says_stands_on_the_rim(tiny_lm: Callable[[str], LanguageModel], architecture: str) -> None:
    lm = tiny_lm(architecture)
    solver, log_q = floor_solver(lm), said(lm, 6)
    states = last_states(solver, log_q)
    again = (solver.products.forward(states) + solver.bias).log_softmax(-1)
    torch.testing.assert_close(again.float(), log_q, atol=2e-4, rtol=0)
    assert [place.radius for place in places(solver, states[0], states)] == pytest.approx([1.0] * 6, abs=2e-3)
    assert places(solver, states[0], states)[0].angle < 1e-3


def test_the_state_is_what_the_final_norm_makes(lm: LanguageModel) -> None:
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        output = lm.model(ids, output_hidden_states=True)
    normed = output.hidden_states[-1][:, -1] / lm.model.model.norm.weight
    states = last_states(floor_solver(lm), output.logits[:, -1].log_softmax(-1))
    torch.testing.assert_close(states.float(), normed, atol=2e-3, rtol=0)


def test_angles_are_exact_down_to_the_smallest() -> None:
    solver = random_solver()
    best = torch.zeros(8, dtype=torch.float64)
    best[0] = 2.0
    turns = [0.0, 1e-9, 0.3, math.pi / 2, 3.0, math.pi]
    lengths = [0.1, 0.5, 0.9, 1.0, 0.2, 1.0]
    states = torch.zeros(len(turns), 8, dtype=torch.float64)
    for row, (turn, length) in enumerate(zip(turns, lengths, strict=True)):
        states[row, 0] = length * solver.radius * math.cos(turn)
        states[row, 3] = length * solver.radius * math.sin(turn)
    found = places(solver, best, states)
    assert [place.angle for place in found] == pytest.approx(turns, rel=1e-6, abs=1e-12)
    assert [place.radius for place in found] == pytest.approx(lengths)


def test_the_map_has_the_kl_of_its_states() -> None:
    solver = random_solver()
    generator = torch.Generator().manual_seed(2)
    best, through = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    probs = torch.randn(60, generator=generator, dtype=torch.float64).softmax(0)
    x, y = torch.linspace(-1, 1, 5, dtype=torch.float64), torch.linspace(0, 1, 3, dtype=torch.float64)
    kl = plane_kl(solver, probs, best, through, x, y)
    assert kl is not None
    ahead = best / best.norm()
    aside = through - (through @ ahead) * ahead
    aside = aside / aside.norm()
    assert through @ aside > 0
    for row, up in enumerate(y):
        points = solver.radius * (x[:, None] * ahead + up * aside)
        torch.testing.assert_close(kl[row], state_kl(solver, probs, points), atol=1e-4, rtol=1e-4)
    assert plane_kl(solver, probs, best, -2 * best, x, y) is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whatever_a_model_says_of_three_words_lies_in_their_region(
    tiny_lm: Callable[[str], LanguageModel], architecture: str
) -> None:
    lm = tiny_lm(architecture)
    log_q = said(lm, 400)
    for ids in ([3, 90, 200], [10, 11, 12], [250, 5, 77]):
        found = three_words(floor_solver(lm), ids)
        assert all(found.can_say(weights) for weights in log_q[:, ids].double().exp().tolist())
        assert found.outline.sum(1).tolist() == pytest.approx([1.0] * len(found.outline))


def test_the_region_ends_where_a_state_reaches_and_no_further() -> None:
    solver = random_solver()
    ids = [4, 20, 33]
    found = three_words(solver, ids)
    rows = solver.products.matrix[ids]
    for first, second in ((0, 1), (1, 2), (2, 0)):
        ahead = rows[first] - rows[second]
        logits = rows @ (solver.radius * ahead / ahead.norm()) + solver.bias[ids]
        assert found.most_log_odds(first, second) == pytest.approx(float(logits[first] - logits[second]))
        assert found.can_say(logits.softmax(0).tolist())
    edge = found.outline[17].log()
    off = edge[:2] - edge[2] - found.centre
    assert float(off @ torch.linalg.solve(found.shape, off)) == pytest.approx(1.0)
    beyond = torch.cat([found.centre + 1.01 * off, torch.zeros(1, dtype=torch.float64)]).softmax(0)
    assert not found.can_say(beyond.tolist())
    with pytest.raises(InputError, match="three different"):
        three_words(solver, [1, 1, 2])


def test_words_with_equal_rows_are_found_and_never_told_apart() -> None:
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(500, 16, generator=generator)
    matrix[431] = matrix[17]
    assert closest_two(HeadProducts(matrix, False)) == (17, 431)
    found = three_words(FloorSolver(matrix, None, 4.0), [17, 431, 3])
    assert found.most_log_odds(0, 1) == pytest.approx(0.0, abs=1e-6)
    assert found.can_say([0.3, 0.3, 0.4])
    assert not found.can_say([0.35, 0.25, 0.4])
    with pytest.raises(InputError, match="fewer than two"):
        closest_two(HeadProducts(matrix[:1], False))


@pytest.mark.parametrize("zero_mean", [False, True])
def test_a_bound_from_the_quick_product_is_below_the_exact_one_by_its_rounding_alone(zero_mean: bool) -> None:
    generator = torch.Generator().manual_seed(11)
    matrix = torch.randn(5000, 12, generator=generator)
    solver = FloorSolver(matrix, None, math.sqrt(12), zero_mean=zero_mean)
    difference = torch.randn(3, 5000, generator=generator, dtype=torch.float64).softmax(1) - 1 / 5000
    quick, rounding = solver.products.backward_certified(difference)
    off = (quick - solver.products.backward(difference)).norm(dim=1)
    assert (off <= rounding * (difference.abs() @ solver.row_norms)).all()
    assert rounding < 1e-4
    probs = torch.randn(5000, generator=generator, dtype=torch.float64).mul(3).softmax(0)
    bounds: list[float] = []
    (found,) = solver.solve(probs, report=lambda bound, _point: bounds.append(bound))
    assert bounds == sorted(bounds)
    assert 0 < bounds[-1] <= found.lower_bound_nats + 1e-12
    assert min(bound for bound in bounds if bound) < found.lower_bound_nats


def test_what_a_report_raises_ends_the_work() -> None:
    def stop(_bound: float, _point: Tensor) -> None:
        raise InputError("enough")

    solver = random_solver()
    with pytest.raises(InputError, match="enough"):
        solver.solve(torch.full((60,), 1 / 60, dtype=torch.float64), report=stop)
    with pytest.raises(InputError, match="one target alone"):
        solver.solve(torch.full((2, 60), 1 / 60, dtype=torch.float64), report=stop)
