"""The certified softmax floor of a head: plain tensors in, `FloorResult` out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.floor.certificate import Certificate, bound_nats, certify, cross_entropy
from dpexplore.floor.products import HeadProducts
from dpexplore.floor.search import SMALLEST, Search, Watch, preconditioner
from dpexplore.floor.subspace import quadratic_on_ball

ROWS_AT_ONCE = {"cpu": 16}
DEFAULT_ROWS_AT_ONCE = 128
"""A card takes hardly longer for as many."""
UNCONSTRAINED_RADII = 16.0
LADDER_ITERATIONS = 40
LADDER_GAP = 1e-3


Report = Callable[[float, Tensor], None]
"""A certified lower bound in nats, never lower than the last one, and the point `(hidden,)` reached."""


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
    head_point: Tensor | None = field(repr=False)
    """The u with ‖u‖ = R at which the head has `head_optimum_nats`, `(hidden,)` float64; None if not asked for."""


def rows_at_once(device: torch.device) -> int:
    """Targets whose floors are searched for together on a device."""
    return ROWS_AT_ONCE.get(device.type, DEFAULT_ROWS_AT_ONCE)


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
            raise InputError(f"The head's bias has shape {tuple(self.bias.shape)}; it needs one number per token.")
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
        report: Report | None = None,
    ) -> list[FloorResult]:
        """Floors of targets `probs` `(rows vocab)` or `(vocab,)`.

        gap_nats: stop when the certified gap is at most this. start: `(rows hidden)` points to start from, for
        example `FloorResult.point` of similar targets. ladder: also estimate `unconstrained_kl_nats` and
        `head_optimum_nats`. report: for a single target, called with each higher bound; what it raises ends the work.
        """
        probs = self._checked(probs)
        if report is not None and len(probs) != 1:
            raise InputError(f"The rise of a floor can be reported for one target alone, not for {len(probs)}.")
        results: list[FloorResult] = []
        together = rows_at_once(self.device)
        for first in range(0, probs.shape[0], together):
            rows = slice(first, first + together)
            began = time.perf_counter()
            points = None if start is None else start[rows].to(self.device, torch.float64)
            results += self._solve_rows(probs[rows], gap_nats, max_iterations, points, ladder, began, report)
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

    def _solve_rows(self, probs, gap_nats, max_iterations, start, ladder, began, report) -> list[FloorResult]:
        search = Search(self.products, self.bias, probs, self.radius, sphere=False)
        watch = None if report is None else self._rising(probs, report)
        points, iterations = search.run(start, gap_nats, max_iterations, watch)
        found = self.certify(probs, points)
        gaps = found.kl_nats - found.lower_bound_nats
        wide = (gaps > gap_nats).nonzero()[:, 0]
        if len(wide) and self.products.matrix.dtype != torch.float64:
            # The head's own precision was not enough for a gap this small.
            search = Search(self.products, self.bias, probs[wide], self.radius, sphere=False, exact=True)
            points[wide], more = search.run(points[wide], gap_nats, max_iterations)
            iterations[wide] += more
            found = self.certify(probs, points)
            gaps = found.kl_nats - found.lower_bound_nats
        watch = None if report is None else self._staying(float(found.lower_bound_nats), points[0], report)
        unconstrained = sphere = sphere_points = [None] * len(points)
        if ladder:
            unconstrained = self._unconstrained(probs, points, found, watch)
            sphere, sphere_points = self._head_optimum(probs, points, found, watch)
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
                head_point=sphere_points[row],
            )
            for row in range(len(points))
        ]

    def _rising(self, probs: Tensor, report: Report) -> Watch:
        """Reports what each iterate proves, from the product that the search makes anyway."""
        highest = 0.0

        def watch(points: Tensor, log_probs: Tensor, product: Tensor, rounding: float) -> None:
            nonlocal highest
            found = bound_nats(
                self.products,
                self.bias,
                self.radius,
                probs,
                log_probs,
                row_norms=self.row_norms,
                rounding=self.rounding + rounding,
                product=product,
            )
            highest = max(highest, float(found))
            report(highest, points[0])

        return watch

    @staticmethod
    def _staying(bound: float, point: Tensor, report: Report) -> Watch:
        """Reports the floor itself, and again at every iterate of the ladder: the work may still be ended."""

        def watch(*_iterate: object) -> None:
            report(bound, point)

        watch()
        return watch

    def _on_sphere(self, points: Tensor) -> Tensor:
        return points.norm(dim=1) > self.radius * (1 - 1e-6)

    def _unconstrained(
        self, probs: Tensor, points: Tensor, found: Certificate, watch: Watch | None
    ) -> list[float | None]:
        """An optimum inside the ball is the optimum everywhere; others are followed outwards."""
        values = found.kl_nats.clone()
        outside = self._on_sphere(points).nonzero()[:, 0]
        if len(outside):
            radius = self.radius * UNCONSTRAINED_RADII
            search = Search(self.products, self.bias, probs[outside], radius, sphere=False)
            far, _ = search.run(points[outside], LADDER_GAP, LADDER_ITERATIONS, watch)
            values[outside] = self._kl(probs[outside], far)
        return torch.minimum(values, found.lower_bound_nats).tolist()

    def _head_optimum(
        self, probs: Tensor, points: Tensor, found: Certificate, watch: Watch | None
    ) -> tuple[list[float], list[Tensor]]:
        """The smallest KL found on the sphere, and where."""
        values = found.kl_nats.clone()
        ends = points * (self.radius / points.norm(dim=1, keepdim=True).clamp_min(SMALLEST))
        for row in (~self._on_sphere(points)).nonzero()[:, 0].tolist():
            target = probs[row : row + 1]
            starts = self._sphere_starts(points[row], found.log_probs[row].exp())
            # One after the other: on a processor the searches of a batch wait for each other's slowest step.
            tried = [self._descend_sphere(target, start, watch) for start in starts]
            best = min(tried, key=lambda end: end[1])[0]
            # A search can stall in the span it has built up; a fresh one from its end costs little.
            ends[row], values[row] = self._descend_sphere(target, best, watch)
        return torch.maximum(values, found.kl_nats).tolist(), list(ends)

    def _descend_sphere(self, target: Tensor, start: Tensor, watch: Watch | None) -> tuple[Tensor, float]:
        """From a point `(hidden,)` of the sphere to one that no step betters, and the KL there; target `(1 vocab)`."""
        search = Search(self.products, self.bias, target, self.radius, sphere=True)
        end, _ = search.run(start[None], LADDER_GAP, LADDER_ITERATIONS, watch)
        return end[0], float(self._kl(target, end))

    def _sphere_starts(self, point: Tensor, q: Tensor) -> Tensor:
        """The sphere's minimum of the quadratic around the ball's optimum, and its mirror image, `(2 hidden)`.

        The flattest direction of the Hessian leads to the sphere both ways, and either end may be the better one
        (Moré and Sorensen 1983 for the minimum; the mirror is across that direction).
        """
        hessian = preconditioner(self.products, q).double()
        if self.products.zero_mean:
            # Away from the constant vector, which the head does not see and u may not use.
            hessian = hessian + hessian.trace()
        nearest = quadratic_on_ball(hessian[None], -(hessian @ point)[None], self.radius, sphere=True)[0] - point
        _, vectors = torch.linalg.eigh(hessian)
        flattest = vectors[:, 0]
        moves = self.products.centre(torch.stack([nearest, nearest - 2 * (nearest @ flattest) * flattest]))
        moves = moves / moves.norm(dim=1, keepdim=True).clamp_min(SMALLEST)
        along = moves @ point
        reach = (along.square() + self.radius**2 - point.square().sum()).clamp_min(0).sqrt() - along
        return point + reach[:, None] * moves

    def _kl(self, probs: Tensor, points: Tensor) -> Tensor:
        log_probs = (self.products.forward(points) + self.bias).log_softmax(-1)
        return (cross_entropy(probs, log_probs) - torch.special.entr(probs).sum(-1)).clamp_min(0)
