"""The statistics behind claims, against mathematics and the book."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from dpexplore.experiments.statistics import (
    bootstrap_interval,
    correlation,
    curve_correlation,
    difference_of_means,
    line,
    mean_interval,
    over_seeds,
    paired,
    r_squared,
    rise_and_fall,
    unimodal_r2,
)

numbers = st.lists(st.floats(-100, 100), min_size=3, max_size=12)


@given(numbers, st.floats(-5, 5), st.floats(0.5, 3))
def test_a_mean_interval_moves_and_stretches_with_its_values(values: list[float], shift: float, scale: float) -> None:
    found, moved = mean_interval(values), mean_interval([scale * value + shift for value in values])
    for name in ("value", "low", "high"):
        expected = scale * getattr(found, name) + shift
        assert getattr(moved, name) == pytest.approx(expected, abs=1e-6, rel=1e-6)
    assert found.low <= found.value <= found.high


def test_a_mean_interval_by_the_book() -> None:
    """n = 4, mean 5, s = 2.582, t(0.975, 3) = 3.182."""
    found = mean_interval([2, 4, 6, 8])
    assert found.value == 5
    assert found.high - 5 == pytest.approx(3.182446 * math.sqrt(20 / 3) / 2, rel=1e-5)
    assert (found.verdict(), found.verdict(beyond=100)) == (
        "supported" if found.low > 0 else "undecided",
        "not supported",
    )
    assert math.isnan(mean_interval([1.0]).low)
    assert mean_interval([1.0]).verdict() == "undecided"


def test_a_bootstrap_interval_holds_the_mean_and_covers_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for number in range(30):
        found = bootstrap_interval(rng.normal(1.0, 1.0, 25), seed=number)
        assert found.low < found.value < found.high
        hits += found.low <= 1.0 <= found.high
    assert 23 <= hits <= 30  # 95 % of 30 is 28.5; fewer than 23 has a probability below 1e-4


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.lists(st.floats(0, 10), min_size=1, max_size=8))
def test_rising_then_falling_curves_are_explained_in_full(up: list[float], down: list[float]) -> None:
    curve = np.array(sorted(up) + sorted(down, reverse=True))
    assert unimodal_r2(curve) == pytest.approx(1.0, abs=1e-9)


def test_a_valley_is_not_unimodal() -> None:
    assert unimodal_r2(np.array([5.0, 1.0, 0.0, 1.0, 5.0])) < 0.5


def hump(peak: float, seeds: int, noise: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"seed": seed, "bits": bits, "loss": 5 - (bits - peak) ** 2 / 4 + rng.normal(0, noise)}
        for seed in range(seeds)
        for bits in range(9)
    )


def test_rise_and_fall_of_a_hump() -> None:
    found = rise_and_fall(hump(4, 3, 0.01), "bits", "loss", "seed")
    assert found is not None
    assert found.peak == 4
    assert found.smaller.value == pytest.approx(4.0, abs=0.1)
    assert found.smaller.verdict() == "supported"


def test_a_curve_that_only_rises_is_not_called_unimodal() -> None:
    found = rise_and_fall(hump(20, 3, 0.01), "bits", "loss", "seed")
    assert found is not None
    assert found.smaller.verdict() != "supported"
    assert rise_and_fall(hump(4, 1, 0.0), "bits", "loss", "seed") is None


def test_a_planted_null_is_rarely_called_supported() -> None:
    """Equal losses with an effect that all targets of a seed share, in 1,000 stores of 4 seeds and 6 entropies.

    As pairs of seed and entropy they come out supported far more often than the 2.5 % that the interval promises.
    """
    rng = np.random.default_rng(1)
    index = pd.MultiIndex.from_product([range(6), range(4)], names=["bits", "seed"])
    supported = naive = 0
    for _ in range(1000):
        difference = pd.Series(np.tile(rng.normal(0, 1, 4), 6) + rng.normal(0, 1, 24), index)
        supported += over_seeds(difference).verdict() == "supported"
        naive += mean_interval(difference).verdict() == "supported"
    assert supported <= 30
    assert naive > 100


def test_curves_correlate_over_seeds_and_two_noisy_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 12)
    seeds = pd.RangeIndex(4, name="seed")
    curves = pd.DataFrame(np.sin(3 * x) + rng.normal(0, 0.05, (4, 12)), index=seeds)
    noise = pd.DataFrame(rng.normal(0, 1, (4, 12)), index=seeds)
    alike, apart = curve_correlation(curves, 2 * curves + 1 + 0.05 * noise), curve_correlation(curves, noise)
    assert alike.low < np.corrcoef(curves.mean(), (2 * curves + 1 + 0.05 * noise).mean())[0, 1] < alike.high
    assert alike.low > 0.9
    assert apart.low < 0 < apart.high
    assert math.isnan(curve_correlation(curves.iloc[:1], noise.iloc[:1]).low)


def test_r_squared_is_low_only_where_the_interval_says_so() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    weak, strong = r_squared(x, rng.normal(size=200)), r_squared(x, x + 0.1 * rng.normal(size=200))
    assert 0 == weak.low <= weak.value < weak.high < 0.25
    assert strong.low > 0.9


def test_the_difference_of_means_by_the_book() -> None:
    """Welch: 2 and 3 values, means 3 and 11, s² 2 and 4: t with (1 + 4/3)² / (1 + (4/3)²/2) degrees of freedom."""
    found = difference_of_means([2.0, 4.0], [9.0, 11.0, 13.0])
    freedom = (1 + 4 / 3) ** 2 / (1 + (4 / 3) ** 2 / 2)
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(1 + 4 / 3)
    assert (found.value, found.low, found.high) == pytest.approx((-8, -8 - half, -8 + half))


def test_pairs_are_of_the_same_target() -> None:
    table = pd.DataFrame(
        {"group": ["a", "b", "a", "b", "a"], "seed": [0, 0, 1, 1, 2], "loss": [3.0, 1.0, 5.0, 4.0, 100.0]}
    )
    assert paired(table, "loss", "group", "a", "b", ["seed"]).tolist() == [2.0, 1.0]
    assert paired(table, "loss", "group", "a", "c", ["seed"]).empty


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_a_line_is_found_again(slope: float, intercept: float) -> None:
    x = pd.Series([0.0, 1.0, 2.0, 4.0])
    found = line(x, slope * x + intercept)
    assert found[:2] == pytest.approx((slope, intercept), abs=1e-9)
    assert all(map(math.isnan, line(x[:2], x[:2])))


def test_the_interval_of_a_correlation_narrows_with_more_points() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    y = x + rng.normal(size=400)
    few, many = correlation(x[:20], y[:20]), correlation(x, y)
    assert many.low < math.sqrt(0.5) < many.high
    assert many.high - many.low < few.high - few.low
