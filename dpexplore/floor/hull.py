"""The point of a convex hull closest to the origin, and the largest margin over a ball that follows from it."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq, nnls

KAPPA_RANGE = 8.0
KAPPA_TOLERANCE = 1e-6


def closest_to_origin(rows: np.ndarray) -> np.ndarray:
    """Weights `(n,)` ≥ 0 with sum 1 of the point of the rows' convex hull closest to the origin, rows `(n hidden)`.

    min ‖rowsᵀx‖² + c²(Σx − 1)² over x ≥ 0 has the same weights up to a factor, whatever c (both terms are
    homogeneous but for the 1): non-negative least squares (Lawson and Hanson 1974).
    """
    scale = max(float(np.linalg.norm(rows, axis=1).mean()), 1e-300)
    count, hidden = rows.shape
    system = np.vstack([rows.T / scale, np.ones((1, count))])
    goal = np.zeros(hidden + 1)
    goal[-1] = 1.0
    found, _ = nnls(system, goal, maxiter=50 * (count + hidden))
    return found / found.sum()


def largest_margin_biased(rows: np.ndarray, leads: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers `(n,)` and u `(hidden,)` of the largest min(rows·u + leads) over ‖u‖ ≤ radius.

    With one more coordinate κ(lead + m₀), m₀ so large that every such sum is positive, the point of the hull closest
    to the origin is (v, κs) with rows·v/(κ²s) + leads at its largest for the norm that v/(κ²s) happens to have. That
    norm falls as κ grows; κ is found for which it is the radius. If even a small κ leaves it below, the largest
    margin lies inside the ball. The multipliers bound the margin whatever κ is.
    """
    lift = radius * np.linalg.norm(rows, axis=1).max() + np.abs(leads).max() + 1.0
    lifted = leads + lift

    def solve(log_kappa: float) -> tuple[np.ndarray, np.ndarray]:
        kappa = math.exp(log_kappa)
        weights = closest_to_origin(np.column_stack([rows, kappa * lifted]))
        return weights, weights @ rows / (kappa**2 * (weights @ lifted))

    def excess(log_kappa: float) -> float:
        return math.log(max(float(np.linalg.norm(solve(log_kappa)[1])), 1e-300) / radius)

    middle = 0.5 * math.log(max(np.linalg.norm(rows, axis=1).mean(), 1e-300) / (radius * lift))
    low, high = middle - KAPPA_RANGE, middle + KAPPA_RANGE
    if excess(low) <= 0:
        return solve(low)
    if excess(high) >= 0:
        return solve(high)
    return solve(float(brentq(excess, low, high, xtol=KAPPA_TOLERANCE)))  # pyright: ignore[reportArgumentType]
