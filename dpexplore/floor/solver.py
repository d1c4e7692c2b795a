"""The certified softmax floor of a head: plain tensors in, `FloorResult` out.

KL(p ‖ softmax(Au + b)) is convex in u, and the floor is its minimum over ‖u‖ ≤ R. What costs time is the pair of
products with A that gives one gradient, so every pair is made to count: the new direction is the gradient
preconditioned by the Hessian over a sample of tokens, and f is then minimised exactly over the span of the current
point and the last few directions (sequential subspace optimisation, Narkiss and Zibulevsky 2005), where A does
not enter any more. Near the optimum this is preconditioned conjugate gradients on the ball.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.floor import subspace
from dpexplore.floor.certificate import Certificate, certify, cross_entropy
from dpexplore.floor.products import HeadProducts

SAMPLED_TOKENS_PER_DIMENSION = 8
"""Tokens in the preconditioner for each hidden dimension: enough for a condition number of about 3."""
DIRECTIONS = 8
KEPT_DIRECTIONS = 4
REFRESH = 0.2
"""Mean change of log q, weighted by √q, after which a preconditioner is rebuilt."""
JITTER = 1e-9
NOISE = 1e-9
ON_EDGE = 1e-9
SMALLEST = 1e-300
ROWS_AT_ONCE = 16
UNCONSTRAINED_RADII = 16.0
LADDER_ITERATIONS = 40
SPHERE_GAP = 1e-3


@dataclass(frozen=True, eq=False)
class FloorResult:
    """How close a head can come to a target; all numbers in nats of KL(p‖q), p the target."""

    kl_nats: float
    """At the best point found in the ball: an upper end for the minimum over the ball."""
    lower_bound_nats: float
    """No prompt of any length comes below this (what exactly is certified: `dpexplore.floor.certificate`)."""
    gap_nats: float
    """`kl_nats - lower_bound_nats`: how far the bound may be from the ball's true minimum."""
    unconstrained_kl_nats: float | None
    """Estimate without the final norm's limit on ‖u‖, the classical softmax bottleneck; None if not asked for."""
    head_optimum_nats: float | None
    """Estimate, not a bound: best point found with ‖u‖ = R, where the final norm puts u; None if not asked for."""
    status: str
    """`converged` (gap within what was asked for) or `max_iterations` (the bound holds all the same)."""
    iterations: int
    seconds: float
    """Wall time; of targets solved together, each one's share."""
    log_probs: Tensor = field(repr=False)
    """log q at the best point of the ball, `(vocab,)` float32: where it falls short of p is what is unreachable."""
    point: Tensor = field(repr=False)
    """That u, `(hidden,)` float64: a good start for a similar target."""


class FloorSolver:
    """A head prepared for floors of many targets.

    matrix A `(vocab hidden)` and bias b `(vocab,)` or None: logits = A u + b. radius R: ‖u‖ ≤ R. zero_mean: u has
    zero mean (LayerNorm). rounding: relative error of A's entries as they are stored. Everything runs on A's
    device in float64, by blocks, so that A is never copied.
    """

    def __init__(
        self,
        matrix: Tensor,
        bias: Tensor | None,
        radius: float,
        *,
        zero_mean: bool = False,
        rounding: float = 0.0,
    ) -> None:
        if matrix.ndim != 2 or not matrix.is_floating_point():
            raise InputError("A head is a matrix of numbers, one row for each token of the vocabulary.")
        if not radius > 0:
            raise InputError(f"The radius of a head is a positive number, not {radius}.")
        self.products = HeadProducts(matrix, zero_mean)
        self.radius = float(radius)
        self.rounding = rounding
        self.device = matrix.device
        self.vocab_size, self.hidden_size = matrix.shape
        self.bias = (
            torch.zeros(self.vocab_size, dtype=torch.float64, device=self.device)
            if bias is None
            else bias.to(self.device, torch.float64)
        )
        if self.bias.shape != (self.vocab_size,):
            raise InputError(f"The head's bias has shape {tuple(self.bias.shape)}; one number per token is accepted.")
        self.row_norms = self.products.row_norms()

    def certify(self, probs: Tensor, points: Tensor) -> Certificate:
        """What `points` `(rows hidden)` prove about targets `probs` `(rows vocab)`, both float64."""
        return certify(
            self.products,
            self.bias,
            self.radius,
            probs,
            points,
            row_norms=self.row_norms,
            rounding=self.rounding,
        )

    def solve(
        self,
        probs: Tensor,
        *,
        gap_nats: float = 1e-3,
        max_iterations: int = 200,
        start: Tensor | None = None,
        ladder: bool = True,
    ) -> list[FloorResult]:
        """Floors of targets `probs` `(rows vocab)` or `(vocab,)`.

        gap_nats: stop when the certified gap is at most this. start: `(rows hidden)` points to start from, for
        example `FloorResult.point` of similar targets. ladder: also estimate `unconstrained_kl_nats` and
        `head_optimum_nats`.
        """
        probs = self._checked(probs)
        results: list[FloorResult] = []
        for first in range(0, probs.shape[0], ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            began = time.perf_counter()
            points = None if start is None else start[rows].to(self.device, torch.float64)
            results += self._solve_rows(probs[rows], gap_nats, max_iterations, points, ladder, began)
        return results

    def _checked(self, probs: Tensor) -> Tensor:
        probs = probs[None] if probs.ndim == 1 else probs
        if probs.ndim != 2 or probs.shape[1] != self.vocab_size:
            raise InputError(
                f"The target has {probs.shape[-1]:,} tokens and the model {self.vocab_size:,}; "
                "a floor needs a target over the model's own vocabulary."
            )
        probs = probs.to(self.device, torch.float64)
        if not torch.isfinite(probs).all() or (probs < 0).any() or (probs.sum(1) <= 0).any():
            raise InputError("A target holds finite probabilities from 0 to 1, and not all of them are 0.")
        return probs / probs.sum(1, keepdim=True)

    def _solve_rows(self, probs, gap_nats, max_iterations, start, ladder, began) -> list[FloorResult]:
        search = _Search(self, probs, self.radius, sphere=False)
        points, iterations = search.run(start, gap_nats, max_iterations)
        found = self.certify(probs, points)
        gaps = found.kl_nats - found.lower_bound_nats
        if (gaps > gap_nats).any() and self.products.matrix.dtype != torch.float64:
            # The head's own precision was not enough for a gap this small.
            search = _Search(self, probs, self.radius, sphere=False, exact=True)
            points, more = search.run(points, gap_nats, max_iterations)
            iterations = iterations + more
            found = self.certify(probs, points)
            gaps = found.kl_nats - found.lower_bound_nats
        unconstrained = sphere = [None] * len(points)
        if ladder:
            unconstrained = self._unconstrained(probs, points, found)
            sphere = self._head_optimum(probs, points, found)
        seconds = (time.perf_counter() - began) / len(points)
        return [
            FloorResult(
                kl_nats=found.kl_nats[row].item(),
                lower_bound_nats=found.lower_bound_nats[row].item(),
                gap_nats=gaps[row].item(),
                unconstrained_kl_nats=unconstrained[row],
                head_optimum_nats=sphere[row],
                status="converged" if gaps[row] <= gap_nats else "max_iterations",
                iterations=int(iterations[row]),
                seconds=seconds,
                log_probs=found.log_probs[row].float(),
                point=points[row],
            )
            for row in range(len(points))
        ]

    def _on_sphere(self, points: Tensor) -> Tensor:
        return points.norm(dim=1) > self.radius * (1 - 1e-6)

    def _unconstrained(self, probs: Tensor, points: Tensor, found: Certificate) -> list[float | None]:
        """An optimum inside the ball is the optimum everywhere; others are followed outwards."""
        values = found.kl_nats.clone()
        outside = self._on_sphere(points).nonzero()[:, 0]
        if len(outside):
            radius = self.radius * UNCONSTRAINED_RADII
            search = _Search(self, probs[outside], radius, sphere=False)
            far, _ = search.run(points[outside], SPHERE_GAP, LADDER_ITERATIONS)
            values[outside] = self._kl(probs[outside], far)
        return torch.minimum(values, found.lower_bound_nats).tolist()

    def _head_optimum(self, probs: Tensor, points: Tensor, found: Certificate) -> list[float | None]:
        values = found.kl_nats.clone()
        for row in (~self._on_sphere(points)).nonzero()[:, 0].tolist():
            starts = self._sphere_starts(points[row], found.log_probs[row].exp())
            targets = probs[row].expand(len(starts), -1)
            ends, _ = _Search(self, targets, self.radius, sphere=True).run(starts, SPHERE_GAP, LADDER_ITERATIONS)
            values[row] = self._kl(targets, ends).min()
        return torch.maximum(values, found.kl_nats).tolist()

    def _sphere_starts(self, point: Tensor, q: Tensor) -> Tensor:
        """The ball's optimum pushed out to the sphere, both ways along the Hessian's two flattest directions."""
        hessian = sampled_hessian(self.products, q)
        if self.products.zero_mean:
            # Away from the constant vector, which the head does not see and u may not use.
            hessian = hessian + hessian.trace()
        _, vectors = torch.linalg.eigh(hessian)
        flattest = self.products.centre(vectors[:, :2].T.double())
        flattest = flattest / flattest.norm(dim=1, keepdim=True)
        along = flattest @ point
        reach = (along.square() + self.radius**2 - point.square().sum()).clamp_min(0).sqrt()
        return torch.cat(
            [
                point + (-along + reach)[:, None] * flattest,
                point + (-along - reach)[:, None] * flattest,
            ]
        )

    def _kl(self, probs: Tensor, points: Tensor) -> Tensor:
        log_probs = (self.products.forward(points) + self.bias).log_softmax(-1)
        return (cross_entropy(probs, log_probs) - torch.special.entr(probs).sum(-1)).clamp_min(0)


def sampled_hessian(products: HeadProducts, q: Tensor) -> Tensor:
    """Aᵀ(diag q − qqᵀ)A over the likeliest tokens and a systematic sample of the others, `(hidden hidden)`.

    q `(vocab,)`. In float32: it only shapes the steps. Half the sample are the likeliest tokens; the rest are picked
    at equal spacing in the cumulative probability of the others, so it is deterministic and spread over ids.
    """
    matrix = products.matrix
    count = SAMPLED_TOKENS_PER_DIMENSION * products.hidden_size
    if count >= products.vocab_size:
        ids = torch.arange(products.vocab_size, device=q.device)
        weights = q.double()
    else:
        top = torch.topk(q, count // 2, sorted=False)
        rest = q.double().scatter(0, top.indices, 0.0).cumsum(0)
        spacing = rest[-1] / (count - count // 2)
        marks = (torch.arange(count - count // 2, device=q.device, dtype=torch.float64) + 0.5) * spacing
        picked = torch.searchsorted(rest, marks).clamp_max(products.vocab_size - 1)
        ids = torch.cat([top.indices, picked])
        weights = torch.cat([top.values.double(), spacing.expand(len(picked))])
    weights = (weights / weights.sum()).to(torch.float32)
    rows = products.matrix[ids].to(torch.float32) if matrix.dtype != torch.float32 else matrix[ids]
    rows = rows - weights @ rows
    if products.zero_mean:
        rows = rows - rows.mean(1, keepdim=True)
    rows = rows * weights.sqrt()[:, None]
    return rows.T @ rows


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(SMALLEST)


class _Search:
    """Sequential subspace optimisation for a batch of targets, over a ball or on its sphere."""

    def __init__(
        self, solver: FloorSolver, probs: Tensor, radius: float, *, sphere: bool, exact: bool = False
    ) -> None:
        self.solver = solver
        self.exact = exact
        self.products = solver.products
        self.bias = solver.bias
        self.radius = radius
        self.sphere = sphere
        self.probs = probs
        self.rows = torch.arange(len(probs), device=probs.device)
        self.dimensions = max(1, solver.hidden_size - solver.products.zero_mean)
        self.room = min(DIRECTIONS, self.dimensions)

    def run(self, start: Tensor | None, gap_nats: float, max_iterations: int) -> tuple[Tensor, Tensor]:
        """-> points `(rows hidden)` with the smallest gap (on the sphere: KL) met, and iterations `(rows,)`."""
        count, hidden = len(self.probs), self.solver.hidden_size
        options = {"dtype": torch.float64, "device": self.probs.device}
        if start is None:
            start = torch.zeros(count, hidden, **options)
        start = self.products.centre(start)
        start = start * (self.radius / start.norm(dim=1, keepdim=True).clamp_min(SMALLEST)).clamp_max(1)
        best_points, best_scores = start.clone(), torch.full((count,), torch.inf, **options)
        iterations = torch.zeros(count, dtype=torch.long, device=self.probs.device)
        self._begin(start)
        for step in range(max_iterations + 1):
            gradient, points, kl, gap = self._measure()
            score = kl if self.sphere else gap
            better = score < best_scores[self.rows]
            best_scores[self.rows[better]] = score[better]
            best_points[self.rows[better]] = points[better]
            iterations[self.rows] = step
            # Half of what was asked for, since the certificate also pays for rounding.
            going = gap > 0.5 * gap_nats
            if not going.any() or step == max_iterations:
                break
            if not going.all():
                self._keep_rows(going)
                gradient, points = gradient[going], points[going]
            self._add_direction(self._descent(gradient, points))
            self.weights = subspace.minimise(
                self.images, self.bias, self.target_images, self.weights, self.radius, self.sphere
            )
        return best_points, iterations

    def _begin(self, start: Tensor) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.directions = start.new_zeros(len(start), 1, start.shape[1])
        self.directions = self._orthogonal(start)[:, None]
        self.weights = start.norm(dim=1, keepdim=True)
        self.images = self.products.forward(self.directions[:, 0], exact=self.exact)[:, None]
        self.target_images = (self.images @ self.probs[..., None])[..., 0]
        self.target_entropy = torch.special.entr(self.probs).sum(-1)
        self.hessians = torch.zeros(len(start), self.solver.hidden_size, self.solver.hidden_size)
        self.hessians = self.hessians.to(start.device)
        self.hessian_log_probs = torch.full_like(self.probs, torch.nan)

    def _measure(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = torch.baddbmm(self.bias.expand(len(self.rows), 1, -1), self.weights[:, None], self.images)[:, 0]
        self.log_probs = logits.log_softmax(-1)
        kl = cross_entropy(self.probs, self.log_probs) - self.target_entropy
        gradient = self.products.backward(self.log_probs.exp() - self.probs, exact=self.exact)
        points = (self.weights[:, None] @ self.directions)[:, 0]
        inward = (gradient * points).sum(-1)
        if self.sphere:
            multiplier = -inward / self.radius**2
            gap = self.radius * (gradient + multiplier[:, None] * points).norm(dim=-1)
        else:
            # No KL is negative, so the gap is never wider than the KL itself.
            gap = torch.minimum(inward + self.radius * gradient.norm(dim=-1), kl)
        return gradient, points, kl, gap

    def _keep_rows(self, going: Tensor) -> None:
        for name in (
            "rows",
            "probs",
            "directions",
            "weights",
            "images",
            "target_images",
            "target_entropy",
            "hessians",
            "hessian_log_probs",
            "log_probs",
        ):
            setattr(self, name, getattr(self, name)[going])

    def _descent(self, gradient: Tensor, points: Tensor) -> Tensor:
        """−(H + λ)⁻¹(g + λu): the Newton direction of the Lagrangian, with the sampled Hessian for H."""
        q = self.log_probs.exp()
        # √q lets the tail count: where the head tokens are satisfied, its curvature is all there is.
        share = (0.5 * self.log_probs).softmax(-1)
        moved = (share * (self.log_probs - self.hessian_log_probs).abs()).sum(-1)
        for row in (~(moved <= REFRESH)).nonzero()[:, 0].tolist():
            self.hessians[row] = sampled_hessian(self.products, q[row])
            self.hessian_log_probs[row] = self.log_probs[row]
        multiplier = -(gradient * points).sum(-1) / self.radius**2
        if not self.sphere:
            on_edge = points.norm(dim=1) > self.radius * (1 - ON_EDGE)
            multiplier = torch.where(on_edge, multiplier, 0.0).clamp_min(0)
        residual = gradient + multiplier[:, None] * points
        trace = self.hessians.diagonal(dim1=1, dim2=2).sum(1).double()
        jitter = JITTER * trace + SMALLEST
        while True:
            shifted = self.hessians.double()
            shifted.diagonal(dim1=1, dim2=2).add_((multiplier + jitter)[:, None])
            factor, failed = torch.linalg.cholesky_ex(shifted)
            if not failed.any():
                return -torch.cholesky_solve(residual[..., None], factor)[..., 0]
            # On the sphere the multiplier is negative, at most by the Hessian's flattest curvature.
            multiplier = torch.where((failed > 0) & (multiplier < 0), 0.5 * multiplier + 0.5 * jitter, multiplier)
            jitter = torch.where(failed > 0, 3 * jitter, jitter)

    def _add_direction(self, direction: Tensor) -> None:
        if self.directions.shape[1] >= self.room:
            self._compress()
        if self.directions.shape[1] >= self.dimensions:
            return
        direction = self._orthogonal(self.products.centre(direction))
        image = self.products.forward(direction, exact=self.exact)
        self.directions = torch.cat([self.directions, direction[:, None]], 1)
        self.images = torch.cat([self.images, image[:, None]], 1)
        self.target_images = torch.cat([self.target_images, (image * self.probs).sum(-1, keepdim=True)], 1)
        self.weights = torch.cat([self.weights, torch.zeros_like(self.weights[:, :1])], 1)

    def _orthogonal(self, direction: Tensor) -> Tensor:
        """`direction` `(rows hidden)` as unit vectors orthogonal to the directions in use.

        A trace of noise goes in, so that a direction that adds nothing becomes a new one rather than rounding error.
        """
        noise = self.products.centre(torch.randn(direction.shape, generator=self.generator).to(direction))
        direction = _unit(direction) + NOISE * _unit(noise)
        # Twice is enough for orthogonality to rounding (Giraud, Langou and Rozloznik 2005).
        for _ in range(3):
            along = (self.directions @ direction[..., None]).mT
            direction = _unit(direction - (along @ self.directions)[:, 0])
        return direction

    def _compress(self) -> None:
        """Keep the span of the current point and the newest directions."""
        count, size = self.weights.shape
        kept = max(1, min(KEPT_DIRECTIONS, self.room - 1))
        basis = torch.zeros(count, size, kept, dtype=torch.float64, device=self.weights.device)
        basis[:, :, 0] = self.weights
        for column in range(1, kept):
            basis[:, -column, column] = 1
        basis, _ = torch.linalg.qr(basis)
        self.directions = basis.mT @ self.directions
        self.images = basis.mT @ self.images
        self.target_images = (basis.mT @ self.target_images[..., None])[..., 0]
        self.weights = (basis.mT @ self.weights[..., None])[..., 0]
