"""A model's last states as a picture: how long each one is, and how far from the best one it points.

Every prompt, of any length, ends in one vector u with ‖u‖ ≤ R, from which the head makes q = softmax(Au + b)
(`dpexplore.models.head`). With more tokens than dimensions q gives u back exactly: centred over the vocabulary,
log q − b = Au is a linear system with one solution. So whatever a model said has a place here, seen from the best
state u* for a target: its length ‖u‖/R and its angle to u*. What is left out is the direction around that axis, so two
states in one place may say different things; KL is shown on the plane through one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dpexplore.floor.certificate import cross_entropy
from dpexplore.floor.products import HeadProducts
from dpexplore.floor.search import SMALLEST, sampled_hessian
from dpexplore.floor.solver import FloorSolver

MOST_ITERATIONS = 30
RESIDUAL = 1e-6
"""Relative; what float32 products leave."""
JITTER = 1e-9
POINTS_AT_ONCE = 64
"""Of a plane: 13 MB of logits at 49,152 tokens."""
TWO_DIRECTIONS = 1e-3
"""Radians between two states below which they span no plane."""


@dataclass(frozen=True)
class Place:
    """Where a state stands, seen from the best one."""

    radius: float
    """‖u‖/R, from 0 to 1."""
    angle: float
    """To the best state, radians from 0 to π."""


def last_states(solver: FloorSolver, log_q: Tensor) -> Tensor:
    """The u that says each of `log_q` `(rows vocab)`, `(rows hidden)` float64.

    Least squares on centred log q − b by conjugate gradients, preconditioned with the covariance of A's rows; for
    distributions of another head it is the nearest u, of whatever length.
    """
    products = solver.products
    wanted = _centred(log_q.to(solver.device, torch.float64) - solver.bias)
    factor = _gram_factor(products)
    residual = products.backward(wanted, exact=False)
    states = torch.zeros_like(residual)
    start = residual.norm(dim=1).clamp_min(SMALLEST)
    direction = ready = torch.cholesky_solve(residual.T, factor).T
    weight = (residual * ready).sum(1)
    for _ in range(MOST_ITERATIONS):
        image = _centred(products.forward(direction, exact=False))
        size = (weight / image.square().sum(1).clamp_min(SMALLEST))[:, None]
        states = states + size * direction
        residual = residual - size * products.backward(image, exact=False)
        if (residual.norm(dim=1) <= RESIDUAL * start).all():
            break
        ready = torch.cholesky_solve(residual.T, factor).T
        before, weight = weight, (residual * ready).sum(1)
        direction = ready + (weight / before.clamp_min(SMALLEST))[:, None] * direction
    return products.centre(states)


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(1, keepdim=True)


def _gram_factor(products: HeadProducts) -> Tensor:
    """Cholesky factor of V times the covariance of A's rows, of a sample of them where that is not known."""
    gram = products.covariance
    if gram is None:
        uniform = torch.full((products.vocab_size,), 1 / products.vocab_size, device=products.matrix.device)
        gram = sampled_hessian(products, uniform)
    gram = products.vocab_size * gram.double()
    if products.zero_mean:  # the constant vector, which the head does not see
        gram = gram + gram.trace() / products.hidden_size
    gram.diagonal().add_(JITTER * gram.trace() + SMALLEST)
    return torch.linalg.cholesky(gram)


def places(solver: FloorSolver, best: Tensor, states: Tensor) -> list[Place]:
    """Where `states` `(rows hidden)` stand, seen from `best` `(hidden,)`, which is not 0."""
    lengths = states.norm(dim=1)
    across = (states - lengths[:, None] * best / best.norm()).norm(dim=1)
    # Half the chord gives small angles to rounding, where the cosine loses half the digits.
    angles = 2 * torch.asin((across / (2 * lengths.clamp_min(SMALLEST))).clamp_max(1))
    return [
        Place(length, angle) for length, angle in zip((lengths / solver.radius).tolist(), angles.tolist(), strict=True)
    ]


def plane_kl(solver: FloorSolver, probs: Tensor, best: Tensor, through: Tensor, x: Tensor, y: Tensor) -> Tensor | None:
    """KL(p‖q) in nats on the plane through 0, `best` and `through`, `(len(y) len(x))` float64.

    x and y are in units of R: x along `best` `(hidden,)`, y towards the side on which `through` `(hidden,)` lies. None
    where the two point the same way, or opposite ways, and so span no plane.
    """
    ahead = best / best.norm()
    aside = through - (through @ ahead) * ahead
    if float(aside.norm()) < TWO_DIRECTIONS * float(through.norm().clamp_min(SMALLEST)):
        return None
    axes = torch.stack([ahead, aside / aside.norm()])
    images = solver.products.forward(axes, exact=False)
    gain, offset = images @ probs, solver.bias @ probs
    entropy = torch.special.entr(probs).sum()
    across, up = torch.meshgrid(x, y, indexing="xy")
    points = solver.radius * torch.stack([across.flatten(), up.flatten()], 1).to(images)
    single = images.float()
    spread = [
        torch.logsumexp(block.float() @ single + solver.bias.float(), 1).double()
        for block in points.split(POINTS_AT_ONCE)
    ]
    kl = torch.cat(spread) - points @ gain - offset - entropy
    return kl.clamp_min(0).reshape(len(y), len(x))


def state_kl(solver: FloorSolver, probs: Tensor, states: Tensor) -> Tensor:
    """KL(p‖q) in nats at `states` `(rows hidden)`, `(rows,)` float64."""
    log_probs = (solver.products.forward(states, exact=False) + solver.bias).log_softmax(-1)
    return (cross_entropy(probs, log_probs) - torch.special.entr(probs).sum()).clamp_min(0)


def degrees(place: Place) -> float:
    """The angle as people read it."""
    return math.degrees(place.angle)
