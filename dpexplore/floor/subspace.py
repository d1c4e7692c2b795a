"""Minimise KL over a few directions of the ball or the sphere: cheap, because A never enters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

MAX_STEPS = 12
MAX_HALVINGS = 12
SUFFICIENT_DECREASE = 0.05
RELATIVE_DECREMENT = 1e-3
SMALLEST_DECREMENT = 1e-20
VALUE_ROUNDING = 1e-14
SECULAR_STEPS = 12
STIFFNESS = 0.05
SMALLEST_LENGTH = 1e-150
"""Its square is still above 0."""


def quadratic_on_ball(hessian: Tensor, linear: Tensor, radius: float, sphere: bool) -> Tensor:
    """argmin of ½ wᵀHw + c·w over ‖w‖ ≤ R (or = R), `(rows m m)`, `(rows m)` -> `(rows m)`.

    Newton on 1/‖w(λ)‖ = 1/R from the left of the root, where it climbs monotonically (Moré and Sorensen 1983).
    """
    values, vectors = _eigh(hessian)
    linear = (vectors.mT @ linear[..., None])[..., 0]
    # A q that is 1 on one token has no curvature left in float64; then the slope alone sets the scale.
    largest = torch.maximum(values[:, -1:], linear.norm(dim=1, keepdim=True) / radius).clamp_min(1e-280)
    if sphere:
        # The global minimum on the sphere has λ ≥ −λ_min; starting just above it keeps w(λ) long.
        shift = -values[:, :1] + 1e-12 * largest
    else:
        values = values.clamp_min(1e-13 * largest)
        shift = torch.zeros_like(largest)
    for _ in range(SECULAR_STEPS):
        shifted = values + shift
        w = -linear / shifted
        length = w.norm(dim=1, keepdim=True).clamp_min(SMALLEST_LENGTH)
        slope = (w.square() / shifted).sum(1, keepdim=True) / length**2
        shift = shift + ((length / radius - 1) / slope.clamp_min(1e-300)).clamp_min(0)
    w = -linear / (values + shift)
    length = w.norm(dim=1, keepdim=True).clamp_min(SMALLEST_LENGTH)
    if sphere:
        # Moré and Sorensen's hard case: w stays short for every λ, and the flattest direction makes up for it.
        short = (radius**2 - length.square()).clamp_min(0).sqrt() * (length < radius)
        w = torch.cat([w[:, :1] + short * torch.where(w[:, :1] < 0, -1.0, 1.0), w[:, 1:]], 1)
        length = w.norm(dim=1, keepdim=True).clamp_min(SMALLEST_LENGTH)
    w = w * (radius / length if sphere else (radius / length).clamp_max(1))
    return (vectors @ w[..., None])[..., 0]


def _eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of `(rows m m)`; a card's batched solver sometimes gives up where LAPACK does not."""
    try:
        return torch.linalg.eigh(matrices)
    except RuntimeError:  # torch calls it LinAlgError
        values, vectors = torch.linalg.eigh(matrices.cpu())
        return values.to(matrices.device), vectors.to(matrices.device)


def minimise(
    images: Tensor, bias: Tensor, target_images: Tensor, weights: Tensor, radius: float, sphere: bool
) -> Tensor:
    """Minimise logsumexp(c·Z + b) − c·(Zp) over ‖c‖ ≤ R (or = R), from `weights`.

    images Z `(rows m vocab)`: A times orthonormal directions; target_images Zp `(rows m)`; weights c `(rows m)`.
    """

    def value(c: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.baddbmm(bias.expand(c.shape[0], 1, -1), c[:, None], images)[:, 0]
        return torch.logsumexp(logits, -1) - (target_images * c).sum(-1), logits

    current, logits = value(weights)
    first_decrement = None
    for _ in range(MAX_STEPS):
        q = logits.softmax(-1)
        mean = torch.bmm(images, q[..., None])[..., 0]
        gradient = mean - target_images
        hessian = torch.bmm(images * q[:, None], images.mT) - mean[:, :, None] * mean[:, None]
        linear = gradient - (hessian @ weights[..., None])[..., 0]
        best = quadratic_on_ball(hessian, linear, radius, sphere)
        step = best - weights
        curvature = ((hessian @ step[..., None])[..., 0] * step).sum(-1)
        decrement = (-(gradient * step).sum(-1) - 0.5 * curvature).clamp_min(0)
        if first_decrement is None:
            first_decrement = decrement
        if (decrement <= (RELATIVE_DECREMENT * first_decrement).clamp_min(SMALLEST_DECREMENT)).all():
            break
        path = partial(_sphere_path if sphere else _chord, weights, best, hessian, linear, gradient, radius)
        weights, current, logits, moved = _search(value, path, (weights, current, logits), decrement)
        if not moved:
            break
    return weights


def _chord(
    start: Tensor, end: Tensor, _hessian: Tensor, _linear: Tensor, _gradient: Tensor, _radius: float, size: Tensor
) -> Tensor:
    return start + size[:, None] * (end - start)


def _sphere_path(
    start: Tensor, _end: Tensor, hessian: Tensor, linear: Tensor, gradient: Tensor, radius: float, size: Tensor
) -> Tensor:
    """A chord leaves the sphere; instead the model is stiffened around the start, which tilts its linear term."""
    scale = hessian.diagonal(dim1=1, dim2=2).sum(1) + gradient.norm(dim=1) / radius
    stiffness = STIFFNESS * (1 / size - 1) * scale
    return quadratic_on_ball(hessian, linear - stiffness[:, None] * start, radius, sphere=True)


def _search(
    value: Callable[[Tensor], tuple[Tensor, Tensor]],
    path: Callable[[Tensor], Tensor],
    here: tuple[Tensor, Tensor, Tensor],
    decrement: Tensor,
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Halve each row's step along `path` until its value falls enough; -> weights, values, logits, any moved."""
    weights, current, logits = here
    size = torch.ones_like(current)
    # Without it the last Newton steps, whose decrease is below rounding, would be refused.
    slack = VALUE_ROUNDING * (1 + current.abs())
    trial, trial_value, trial_logits, worse = weights, current, logits, torch.ones_like(current, dtype=torch.bool)
    for _ in range(MAX_HALVINGS):
        trial = path(size)
        trial_value, trial_logits = value(trial)
        worse = ~(trial_value <= current + slack - SUFFICIENT_DECREASE * size * decrement)
        if not worse.any():
            return trial, trial_value, trial_logits, True
        size = torch.where(worse, 0.5 * size, size)
    # Rows that found no decrease have converged to rounding; they keep their point.
    keep = worse[:, None]
    return (
        torch.where(keep, weights, trial),
        torch.where(worse, current, trial_value),
        torch.where(keep, logits, trial_logits),
        bool((~worse).any()),
    )
