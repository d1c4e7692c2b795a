"""Outlier targets: Eq. 2 and the entropy hold over the whole range, and m is App. A's bound."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.targets import exact_outlier_mass, outlier_mass, outlier_range, outlier_target
from dpexplore.targets.outliers import DELTA, Mass, random_outliers

VOCABULARY = 49_152


def bits_of(probs: Tensor) -> float:
    return math.fsum(-p * math.log2(p) for p in probs.tolist() if p > 0)


def largest_bits(vocab_size: int, k: int, mass: float) -> float:
    """App. A's left side: entropy of the distribution that is uniform on both parts, from its probabilities."""
    outlier, other = mass / k, (1 - mass) / (vocab_size - k)
    return -sum(count * p * math.log2(p) for count, p in ((k, outlier), (vocab_size - k, other)) if p > 0)


def check(vocab_size: int, bits: float, ids: list[int], seed: int, mass_of: Mass = "own") -> tuple[float, float]:
    """(entropy − request, outlier mass − (m − δ)) of a target, after checking that it is a distribution."""
    probs = outlier_target(vocab_size, bits, ids, seed, mass_of)
    assert (probs >= 0).all()
    assert math.fsum(probs.tolist()) == pytest.approx(1, abs=1e-12)
    mass = math.fsum(probs[i].item() for i in ids)
    return bits_of(probs) - bits, mass - (outlier_mass(vocab_size, len(ids), bits, mass_of) - DELTA)


def test_both_conditions_over_a_grid_of_entropies_and_k() -> None:
    print("\n  k  bits    entropy off       m  mass above m − δ")
    for k in (1, 2, 5, 20, 50, 100):
        ids = random_outliers(torch.arange(VOCABULARY), k, seed=k)
        for bits in (0.0, 0.01, 0.1, 1, 2, math.log2(k), 4, 7, 10, 13, 15, outlier_range(VOCABULARY, k).max_bits):
            off, above = check(VOCABULARY, bits, ids, seed=k)
            print(f"{k:3} {bits:5.2f} {off:14.1e} {outlier_mass(VOCABULARY, k, bits):7.2f} {above:17.4f}")
            assert abs(off) < 0.01
            assert above >= 0


def test_both_conditions_when_the_chosen_tokens_start_lowest() -> None:
    # Where the paper's loss, run as it stands, gives the mass to the tokens that lead.
    start = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lowest = start.argsort()[:5].tolist()
    for bits in (0.05, 0.5, 1, 3):
        off, above = check(VOCABULARY, bits, lowest, seed=0)
        assert abs(off) < 0.01
        assert above >= 0


@given(st.integers(2, 2000), st.data(), st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=200)
def test_both_conditions_for_any_vocabulary_k_entropy_and_seed(vocab_size: int, data: st.DataObject, seed: int) -> None:
    k = data.draw(st.integers(1, min(100, vocab_size - 1)))
    bits = data.draw(st.floats(0, 1)) * math.log2(vocab_size)
    ids = random_outliers(torch.arange(vocab_size), k, seed)
    off, above = check(vocab_size, bits, ids, seed)
    assert abs(off) < 1e-5
    assert above >= 0


@given(st.integers(2, 100_000), st.data())
@settings(deadline=None)
def test_m_solves_appendix_a(vocab_size: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, min(100, vocab_size - 1)))
    bits = data.draw(st.floats(0, math.log2(vocab_size) - 1e-6))
    exact = exact_outlier_mass(vocab_size, k, bits)
    if bits <= math.log2(k):
        assert exact == 1
    else:
        root = brentq(lambda mass: largest_bits(vocab_size, k, mass) - bits, k / vocab_size, 1.0, xtol=1e-14)
        assert exact == pytest.approx(root, abs=1e-6)
    rounded = outlier_mass(vocab_size, k, bits)
    assert 0 <= exact - rounded + 1e-9 < DELTA + 2e-9
    assert round(rounded * 100) == pytest.approx(rounded * 100, abs=1e-9)


def test_the_papers_m_is_that_of_one_outlier_for_every_k() -> None:
    """App. A's own equation, −m log m − (1 − m) log((1 − m)/(n − 1)) = e, solved apart and rounded down to 0.01."""
    for bits, known in ((0.01, 0.99), (0.1, 0.99), (1, 0.95), (4, 0.79), (7, 0.61), (10, 0.42), (13, 0.21)):
        root: Any = brentq(
            lambda m, at: largest_bits(VOCABULARY, 1, m) - at, 1 / VOCABULARY, 1.0, args=(bits,), xtol=1e-14
        )
        for k in (1, 2, 5, 20, 100):
            assert outlier_mass(VOCABULARY, k, bits, "paper") == math.floor(root * 100) / 100 == known
            ids = random_outliers(torch.arange(VOCABULARY), k, seed=k)
            off, above = check(VOCABULARY, bits, ids, k, "paper")
            assert abs(off) < 1e-5
            assert above >= 0
            if k > 1 and bits >= 0.5:  # Eq. 3 stops once Eq. 2 is satisfied
                assert above < 1e-6
    assert [outlier_mass(VOCABULARY, 20, bits) for bits in (4, 7, 10)] == [1.0, 0.82, 0.58]


def test_the_range_is_where_outliers_stand_out() -> None:
    for vocab_size, k in ((VOCABULARY, 1), (VOCABULARY, 100), (300, 100), (100, 99), (2, 1)):
        found = outlier_range(vocab_size, k)
        assert found.max_k == vocab_size - 1
        assert 0 <= found.max_bits <= math.log2(vocab_size)
        if k / vocab_size < 0.9:
            inside = outlier_mass(vocab_size, k, found.max_bits * (1 - 1e-9)) - DELTA
            assert inside > k / vocab_size


def test_at_7_bits_five_outliers_hold_most_of_the_mass_and_the_rest_little_each() -> None:
    ids = [5, 17, 400, 30_000, 49_151]
    probs = outlier_target(VOCABULARY, 7, ids, seed=0)
    assert set(probs.topk(5).indices.tolist()) == set(ids)
    assert probs[ids].sum() > 0.69
    rest = probs.clone()
    rest[ids] = 0
    assert rest.max() < 0.001


@pytest.mark.parametrize("k", [0, 100, 101])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(InputError, match="use 1 to 99"):
        outlier_target(100, 3, list(range(k)), seed=0)
