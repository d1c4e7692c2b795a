"""Floors of random distributions over ever more tokens: held to plain optimisation of a small head."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from dpexplore.errors import InputError
from dpexplore.floor import FloorSolver
from dpexplore.floor.dials import MOST_TOKENS, Dials, dials_of
from dpexplore.models import LanguageModel

HIDDEN, VOCAB, RADIUS = 12, 100, 60.0


@pytest.fixture(scope="module")
def solver() -> FloorSolver:
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(VOCAB, HIDDEN, generator=generator, dtype=torch.float64)
    return FloorSolver(matrix, torch.randn(VOCAB, generator=generator, dtype=torch.float64), RADIUS)


@pytest.fixture(scope="module")
def dials(solver: FloorSolver) -> Dials:
    return Dials(solver, torch.arange(VOCAB))


def test_every_distribution_over_no_more_tokens_than_dials_can_be_said_and_none_beyond(dials: Dials) -> None:
    assert dials.dials == HIDDEN
    assert all(dials.at(size).kl_nats < 2e-3 for size in range(2, HIDDEN + 1))
    beyond = [dials.at(size).lower_bound_nats for size in (20, 40, 100)]
    assert beyond[0] > 0.02
    assert beyond == sorted(beyond)


@pytest.mark.parametrize("tokens", [8, 14, 60])
def test_the_floor_is_the_smallest_kl_over_those_tokens_alone(solver: FloorSolver, dials: Dials, tokens: int) -> None:
    ids = dials._ids[:tokens]
    matrix, bias = solver.products.matrix[ids].numpy(), solver.bias[ids].numpy()
    p = dials._log_odds[:tokens].softmax(0).numpy()

    def kl(u: np.ndarray) -> float:
        logits = matrix @ u + bias
        return float(p @ (np.log(p) - logits) + np.logaddexp.reduce(logits))

    inside = {"type": "ineq", "fun": lambda u: RADIUS**2 - u @ u}
    best = minimize(kl, np.zeros(HIDDEN), constraints=[inside], method="SLSQP", options={"maxiter": 500}).fun
    found = dials.at(tokens)
    assert found.lower_bound_nats <= best + 1e-9
    assert found.lower_bound_nats == pytest.approx(best, abs=2e-3)
    uniform = float(p @ np.log(p)) + math.log(tokens)
    assert found.alike_nats == pytest.approx(uniform)


def test_draws_are_nested_and_the_same_again(solver: FloorSolver, dials: Dials) -> None:
    again = Dials(solver, torch.arange(VOCAB))
    assert again.at(30) == dials.at(30)
    assert Dials(solver, torch.arange(VOCAB), seed=1).at(30) != dials.at(30)
    assert dials.at(30) is dials.at(30)


def test_sizes_rise_from_two_to_all_by_way_of_the_dials(dials: Dials) -> None:
    sizes = dials.sizes()
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (2, VOCAB)
    assert HIDDEN + 1 in sizes
    for tokens in (1, VOCAB + 1):
        with pytest.raises(InputError, match="use 2 to 100"):
            dials.at(tokens)


def test_a_model_has_as_many_dials_as_its_states_have_free_numbers(tiny_lm: Callable[[str], LanguageModel]) -> None:
    llama, gpt2 = tiny_lm("llama"), tiny_lm("gpt2")
    assert dials_of(llama).dials == llama.embedding_table.shape[1]
    assert dials_of(gpt2).dials == gpt2.embedding_table.shape[1] - 1  # LayerNorm takes the mean off
    assert dials_of(llama) is dials_of(llama)
    assert dials_of(llama).most_tokens == min(len(llama.ordinary_ids), MOST_TOKENS)
