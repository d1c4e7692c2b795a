"""The statistics that the figures and the table of claims use; all by SciPy, named where they are shown.

A sweep's sample are its seeds: targets of one seed at several entropies, of several kinds or for several models share
the seed's logits, so they are no independent values. Every interval of a claim is therefore over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import optimize, stats

from dpexplore.experiments.tables import Table

LEVEL = 0.95
LEAST_FOR_BAND = 3
"""Fewest values of which figures show an interval."""
Verdict = Literal["supported", "not supported", "undecided"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval at `LEVEL`; the ends are NaN where there are too few values to say."""

    value: float
    low: float
    high: float
    count: int

    def verdict(self, beyond: float = 0.0) -> Verdict:
        """Whether the interval lies above `beyond`, below it, or across."""
        if self.low > beyond:
            return "supported"
        return "not supported" if self.high < beyond else "undecided"


def mean_interval(values: Any) -> Interval:
    """Mean with its t interval (scipy.stats.t)."""
    found = np.asarray(values, dtype=float)
    found = found[np.isfinite(found)]
    if len(found) < 2:
        return Interval(float(found.mean()) if len(found) else np.nan, np.nan, np.nan, len(found))
    mean, error = float(found.mean()), float(stats.sem(found))
    if error == 0:
        return Interval(mean, mean, mean, len(found))
    low, high = stats.t.interval(LEVEL, len(found) - 1, loc=mean, scale=error)
    return Interval(mean, float(low), float(high), len(found))


def band_interval(values: Any) -> Interval:
    """Mean and t interval as a figure shows them: of two values it would fill the page and say nothing."""
    found = mean_interval(values)
    return found if found.count >= LEAST_FOR_BAND else Interval(found.value, np.nan, np.nan, found.count)


def bootstrap_interval(values: Any, seed: int = 0) -> Interval:
    """Mean with its BCa bootstrap interval (scipy.stats.bootstrap), for values that are far from normal."""
    found = np.asarray(values, dtype=float)
    found = found[np.isfinite(found)]
    if len(found) < LEAST_FOR_BAND or np.ptp(found) == 0:
        return band_interval(found)
    done = stats.bootstrap(
        (found,), np.mean, confidence_level=LEVEL, method="BCa", n_resamples=9999, rng=np.random.default_rng(seed)
    )
    ends = done.confidence_interval
    return Interval(float(found.mean()), float(ends.low), float(ends.high), len(found))


def standard_error(values: Table) -> float:
    """Of the mean; 0 for a single value, which has no spread to show."""
    return float(stats.sem(values)) if len(values) > 1 else 0.0


def over_seeds(values: Table) -> Interval:
    """Mean of the seeds' means with its t interval over seeds; `values` has a level `seed` in its index."""
    return mean_interval(values.groupby(level="seed").mean())


def paired(table: Table, value: str, by: str, left: str, right: str, on: Sequence[str]) -> Table:
    """`value` where `by` is `left` minus where it is `right`, for each combination of `on` that has both."""
    wide = table.groupby([*on, by], dropna=False)[value].mean().unstack(by)
    if left not in wide or right not in wide:
        return pd.Series(dtype=float)
    return (wide[left] - wide[right]).dropna()


def line(x: Table, y: Table) -> tuple[float, float, float]:
    """Slope, intercept and R² of the least-squares line (scipy.stats.linregress); NaN with fewer than 3 points."""
    if len(x) < 3 or np.ptp(np.asarray(x, dtype=float)) == 0:
        return np.nan, np.nan, np.nan
    fit: Any = stats.linregress(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    return float(fit.slope), float(fit.intercept), float(fit.rvalue**2)


def correlation(x: np.ndarray, y: np.ndarray) -> Interval:
    """Pearson's r of independent pairs with its Fisher interval (scipy.stats.pearsonr)."""
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Interval(np.nan, np.nan, np.nan, len(x))
    found: Any = stats.pearsonr(x, y)
    ends = found.confidence_interval(LEVEL)
    return Interval(float(found.statistic), float(ends.low), float(ends.high), len(x))


def r_squared(x: np.ndarray, y: np.ndarray) -> Interval:
    """R² of the line through independent points, with the squares of r's Fisher interval; from 0 where r may be 0."""
    r = correlation(x, y)
    ends = sorted((r.low**2, r.high**2))
    return Interval(r.value**2, 0.0 if r.low < 0 < r.high else ends[0], ends[1], r.count)


def curve_correlation(left: Table, right: Table) -> Interval:
    """Pearson's r of two mean curves, each table one row a seed and one column an entropy, with seeds left out in turn.

    Points along a curve are no sample, so the interval is over seeds: the jackknife's t interval of atanh r.
    """
    seeds, points = left.index.intersection(right.index), left.columns.intersection(right.columns)
    left, right = left.loc[seeds, points], right.loc[seeds, points]
    count = len(seeds)
    if count < 2 or len(points) < 4:
        return Interval(np.nan, np.nan, np.nan, count)

    def transformed(kept: Any) -> float:
        r = float(np.corrcoef(left.loc[kept].mean(), right.loc[kept].mean())[0, 1])
        return float(np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)))

    whole = transformed(seeds)
    found = mean_interval([count * whole - (count - 1) * transformed(seeds.drop(seed)) for seed in seeds])
    return Interval(float(np.tanh(whole)), float(np.tanh(found.low)), float(np.tanh(found.high)), count)


def difference_of_means(left: Any, right: Any) -> Interval:
    """Mean of independent values minus that of others, with Welch's t interval (scipy.stats.ttest_ind)."""
    count = len(left) + len(right)
    if min(len(left), len(right)) < 2:
        return Interval(np.nan, np.nan, np.nan, count)
    found: Any = stats.ttest_ind(left, right, equal_var=False)
    ends = found.confidence_interval(LEVEL)
    return Interval(float(np.mean(left) - np.mean(right)), float(ends.low), float(ends.high), count)


@dataclass(frozen=True)
class Rise:
    """How far a curve rises to its peak and falls again."""

    peak: float
    """Where the mean curve is highest."""
    smaller: Interval
    """The smaller of rise and fall: the curve's value at the peak minus that at the nearer end in value."""
    fit_r2: float
    """Share of the variance that the best rising-then-falling curve explains."""


def rise_and_fall(table: Table, x: str, y: str, unit: str) -> Rise | None:
    """Does y rise with x up to a point and fall after it? None with fewer than three x or two units.

    For each unit (a seed) the peak is chosen on all the others and read off on this one, so that choosing it lends
    nothing; t interval over units. The fit is the best isotonic-then-antitonic one (scipy.optimize).
    """
    curves = table.pivot_table(index=unit, columns=x, values=y, aggfunc="mean").dropna()
    if curves.shape[0] < 2 or curves.shape[1] < 3:
        return None
    rises, falls = [], []
    for name in curves.index:
        others = curves.drop(index=name).mean()
        peak = others.idxmax()
        own = curves.loc[name]
        rises.append(own[peak] - own.iloc[0])
        falls.append(own[peak] - own.iloc[-1])
    rise, fall = mean_interval(rises), mean_interval(falls)
    mean = curves.mean()
    return Rise(float(mean.idxmax()), rise if rise.value <= fall.value else fall, unimodal_r2(mean.to_numpy()))


def unimodal_r2(values: np.ndarray) -> float:
    """Share of the variance of a curve that the best rising-then-falling curve explains, 0 to 1."""
    total = float(((values - values.mean()) ** 2).sum())
    if total == 0:
        return 1.0
    best = np.inf
    for rising in range(len(values) + 1):  # a rising part and a falling part are unimodal, whichever ends higher
        up = optimize.isotonic_regression(values[:rising]).x if rising else values[:0]
        down = optimize.isotonic_regression(values[rising:], increasing=False).x if rising < len(values) else values[:0]
        best = min(best, float(((values - np.concatenate([up, down])) ** 2).sum()))
    return 1 - best / total
