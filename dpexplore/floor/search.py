"""Minimise KL(p ‖ softmax(Au + b)) over a ball ‖u‖ ≤ R, or over its sphere, for a batch of targets.

KL is convex in u. What costs time is the pair of products with A that gives one gradient, so every pair is made to
count: the new direction is the gradient preconditioned by the Hessian over a sample of tokens, and KL is then
minimised exactly over the span of the current point and the last few directions (sequential subspace optimisation,
Narkiss and Zibulevsky 2005), where A does not enter any more. Near the optimum this is preconditioned conjugate
gradients on the ball.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dpexplore.floor import subspace
from dpexplore.floor.certificate import cross_entropy
from dpexplore.floor.products import HeadProducts
from dpexplore.wanted import check_wanted

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
SPHERE_PROGRESS = 1e-6
"""On the sphere, where nothing is certified, a target is done when a step gains less than this many nats."""
CHOLESKY_TRIES = 40
MOST_BLEND = 0.9
BLEND_FROM, BLEND_OVER = 0.7, 0.25
"""Shares of the largest entropy, log(vocab): where the covariance starts to stand in, and over how much it grows."""


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


def preconditioner(products: HeadProducts, q: Tensor) -> Tensor:
    """The sampled Hessian at q `(vocab,)`, blended with the covariance of A's rows where q is spread out.

    A spread q hardly knows A, so its Hessian is close to a multiple of the covariance, which holds no sampling noise.
    """
    hessian = sampled_hessian(products, q)
    spread = torch.special.entr(q.double()).sum() / math.log(max(products.vocab_size, 2))
    blend = MOST_BLEND * ((spread - BLEND_FROM) / BLEND_OVER).clamp(0, 1).float()
    if products.covariance is None or blend == 0:
        return hessian
    scale = hessian.trace() / products.covariance.trace().clamp_min(1e-30)
    return (1 - blend) * hessian + blend * scale * products.covariance


Watch = Callable[[Tensor, Tensor, Tensor, float], None]
"""Called with each iterate: points `(rows hidden)`, log q `(rows vocab)`, Aᵀ(q − p) `(rows hidden)`, its rounding."""


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(SMALLEST)


class Search:
    """Sequential subspace optimisation for a batch of targets, over a ball or on its sphere."""

    def __init__(
        self, products: HeadProducts, bias: Tensor, probs: Tensor, radius: float, *, sphere: bool, exact: bool = False
    ) -> None:
        self.exact = exact
        self.watch: Watch | None = None
        self.products = products
        self.bias = bias
        self.radius = radius
        self.sphere = sphere
        self.probs = probs
        self.rows = torch.arange(len(probs), device=probs.device)
        self.dimensions = max(1, products.hidden_size - products.zero_mean)
        self.room = min(DIRECTIONS, self.dimensions)

    def run(
        self,
        start: Tensor | None,
        gap_nats: float,
        max_iterations: int,
        watch: Watch | None = None,
    ) -> tuple[Tensor, Tensor]:
        """-> points `(rows hidden)` with the smallest gap (on the sphere: KL) met, and iterations `(rows,)`.

        watch: called at every iterate, for the rows that still go on.
        """
        self.watch = watch
        count, hidden = len(self.probs), self.products.hidden_size
        options = {"dtype": torch.float64, "device": self.probs.device}
        if start is None:
            start = torch.zeros(count, hidden, **options)
        start = self.products.centre(start)
        start = start * (self.radius / start.norm(dim=1, keepdim=True).clamp_min(SMALLEST)).clamp_max(1)
        best_points, best_scores = start.clone(), torch.full((count,), torch.inf, **options)
        previous = torch.full_like(best_scores, torch.inf)
        iterations = torch.zeros(count, dtype=torch.long, device=self.probs.device)
        self._begin(start)
        for step in range(max_iterations + 1):
            check_wanted()
            gradient, points, kl, gap = self._measure()
            score = kl if self.sphere else gap
            better = score < best_scores[self.rows]
            best_scores[self.rows[better]] = score[better]
            best_points[self.rows[better]] = points[better]
            iterations[self.rows] = step
            # Half of what was asked for, since the certificate also pays for rounding.
            going = gap > 0.5 * gap_nats
            if self.sphere:
                going &= previous[self.rows] - kl > SPHERE_PROGRESS
            previous[self.rows] = kl
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
        self.hessians = torch.zeros(len(start), self.products.hidden_size, self.products.hidden_size)
        self.hessians = self.hessians.to(start.device)
        self.hessian_log_probs = torch.full_like(self.probs, torch.nan)

    def _measure(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = torch.baddbmm(self.bias.expand(len(self.rows), 1, -1), self.weights[:, None], self.images)[:, 0]
        self.log_probs = logits.log_softmax(-1)
        kl = cross_entropy(self.probs, self.log_probs) - self.target_entropy
        points = (self.weights[:, None] @ self.directions)[:, 0]
        difference = self.log_probs.exp() - self.probs
        if self.watch is None:
            gradient = self.products.backward(difference, exact=self.exact)
        else:
            gradient, rounding = self.products.backward_certified(difference)
            self.watch(points, self.log_probs, gradient, rounding)
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
            self.hessians[row] = preconditioner(self.products, q[row])
            self.hessian_log_probs[row] = self.log_probs[row]
        multiplier = -(gradient * points).sum(-1) / self.radius**2
        if not self.sphere:
            on_edge = points.norm(dim=1) > self.radius * (1 - ON_EDGE)
            multiplier = torch.where(on_edge, multiplier, 0.0).clamp_min(0)
        residual = gradient + multiplier[:, None] * points
        trace = self.hessians.diagonal(dim1=1, dim2=2).sum(1).double()
        jitter = JITTER * trace + SMALLEST
        for _ in range(CHOLESKY_TRIES):
            shifted = self.hessians.double()
            shifted.diagonal(dim1=1, dim2=2).add_((multiplier + jitter)[:, None])
            factor, failed = torch.linalg.cholesky_ex(shifted)
            if not failed.any():
                return -torch.cholesky_solve(residual[..., None], factor)[..., 0]
            # On the sphere the multiplier is negative, at most by the Hessian's flattest curvature.
            multiplier = torch.where((failed > 0) & (multiplier < 0), 0.5 * multiplier + 0.5 * jitter, multiplier)
            jitter = torch.where(failed > 0, 3 * jitter, jitter)
        return -residual

    def _add_direction(self, direction: Tensor) -> None:
        if self.directions.shape[1] >= self.dimensions:
            return
        if self.directions.shape[1] >= self.room:
            self._compress()
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
