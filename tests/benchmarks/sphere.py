"""What lies between the ball and the sphere, and how much of it two bounds for the sphere could close.

    python -m tests.benchmarks.sphere                          # the default model, 10 targets
    python -m tests.benchmarks.sphere --model gemma-3-270m --targets 5 --no-bounds

The certified floor holds for the ball ‖u‖ ≤ R; the final norm puts u on the sphere, where the head optimum is an
estimate from above. A bound for the sphere would lie between. Targets are `entropy(bits=…, seed=…)`, from 4 to 15.5
bits. Neither bound is part of the package: both are computed without regard to rounding, and the second optimistically,
to learn whether it is worth making rigorous. With u* the ball's optimum, q* its distribution, s = u − u* and
X = (a − E a)·s, KL exceeds the ball's by log(1 + E φ(X)) at least, φ(x) = eˣ − 1 − x, expectations under q*.

- `closed`: φ(x) ≥ x²(b − 1 + e⁻ᵇ)/b² for x ≥ −b, b = κσ, κ the largest Mahalanobis distance of a token: with
  E X² = σ² ≥ λ₁(R − ‖u*‖)², λ₁ the smallest curvature, E φ(X) ≥ (b − 1 + e⁻ᵇ)/κ².
- `moments`: φ(x) ≥ x²/(2 + x⁻) and Cauchy-Schwarz give E φ(X) ≥ σ³/(2σ + √(E X⁴)). Directions are put into groups
  by their curvature; in a group E X⁴ ≤ k⁴σ⁴ with k⁴ = 1 + λmax(Cov(yyᵀ)), y whitened, and by Minkowski
  √(E X⁴) ≤ (Σ kσ)². What is printed is the smallest value met on the sphere in a random search over the groups' shares,
  with ideal moments for all but the 63 flattest directions: the bound itself can only be worse.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time

import torch
from torch import Tensor

import dpexplore as dp
from dpexplore.floor import FloorResult, FloorSolver
from dpexplore.floor.prepared import floor_solver

ROWS = 4096
GROUPS = (1, 1, 2, 4, 8, 16, 32)
GAUSSIAN = 3.0
"""Fourth moment of an ideal direction."""
SHARES = 20_000
LEAST_GAP = 1e-2
"""Nats between ball and sphere below which there is nothing to close."""


def hessian(solver: FloorSolver, q: Tensor) -> tuple[Tensor, Tensor]:
    """Aᵀ(diag q − qqᵀ)A `(hidden hidden)` and the mean row E a `(hidden,)`, float64."""
    matrix, mean = solver.products.matrix, solver.products.backward(q[None])[0]
    total = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for start in range(0, len(q), ROWS):
        rows = matrix[start : start + ROWS] - mean.float()
        total += ((rows * q[start : start + ROWS, None].float()).T @ rows).double()
    return total, mean


def closed_bound(solver: FloorSolver, found: FloorResult, values: Tensor, vectors: Tensor, mean: Tensor) -> float:
    """Excess over the ball's optimum, in nats."""
    white = (vectors / values.sqrt()).float()
    rows = solver.products.matrix.split(ROWS)
    kappa = max(float(((block - mean.float()) @ white).norm(dim=1).max()) for block in rows)
    sigma = math.sqrt(float(values[0])) * (solver.radius - float(found.point.norm()))
    b = kappa * sigma
    return math.log1p((b - 1 + math.exp(-b)) / kappa**2)


def fourth_moment(solver: FloorSolver, q: Tensor, mean: Tensor, white: Tensor) -> float:
    """Most that E (θ·y)⁴ can be for a unit vector θ, y = white·(a − E a); white `(hidden group)`."""
    size = white.shape[1]
    above = torch.triu_indices(size, size)
    scale = torch.where(above[0] == above[1], 1.0, math.sqrt(2))
    moments = torch.zeros(len(scale), len(scale), dtype=torch.float64)
    for start in range(0, len(q), ROWS):
        y = (solver.products.matrix[start : start + ROWS] - mean.float()) @ white.float()
        products = y[:, above[0]] * y[:, above[1]] * scale
        moments += ((products * q[start : start + ROWS, None].float()).T @ products).double()
    identity = (above[0] == above[1]).double()
    return 1 + float(torch.linalg.eigvalsh(moments - torch.outer(identity, identity))[-1])


def moments_bound(
    solver: FloorSolver, found: FloorResult, q: Tensor, values: Tensor, vectors: Tensor, mean: Tensor
) -> float:
    """The smallest excess met on the sphere, in nats: no bound from these moments is larger."""
    sizes = [*GROUPS, len(values) - sum(GROUPS)]
    fourths, least, own = [], [], []
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        start += size
        ideal = size == sizes[-1]
        fourths.append(GAUSSIAN if ideal else fourth_moment(solver, q, mean, vectors[:, part] / values[part].sqrt()))
        least.append(float(values[part][0]))
        own.append(float((vectors[:, part].T @ found.point).norm()))
    curvature, centre = torch.tensor(least), torch.tensor(own)
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(SHARES, len(sizes), generator=generator) ** 8
    ways = torch.cat([torch.eye(len(sizes)), shares / shares.norm(dim=1, keepdim=True)])
    outwards = ways / curvature.sqrt()
    # ‖centre + size·outwards‖ = R
    square, along = outwards.square().sum(1), outwards @ centre
    left = solver.radius**2 - centre.square().sum()
    size = (-along + (along.square() + square * left).sqrt()) / square
    root = (ways @ torch.tensor(fourths).pow(0.25)).square() * size.square()
    excess = size**3 / (2 * size + root)
    return float(excess.log1p().min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=dp.DEFAULT_MODEL)
    parser.add_argument("--targets", type=int, default=10)
    parser.add_argument("--no-bounds", action="store_true", help="only the ball and the head optimum")
    options = parser.parse_args()
    lm = dp.load_model(options.model, device="cpu")
    solver = floor_solver(lm)
    print(f"{options.model}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(" bits    ball  head optimum    gap      s" + ("" if options.no_bounds else "   closed  moments"))
    gaps, closed, moments = [], [], []
    for seed, bits in enumerate(torch.linspace(4, 15.5, options.targets).tolist()):
        target = dp.entropy(bits=bits, seed=seed).build(lm)
        began = time.perf_counter()
        found = dp.softmax_floor(lm, target)
        seconds = time.perf_counter() - began
        assert found.head_optimum_nats is not None
        gap = found.head_optimum_nats - found.lower_bound_nats
        line = f"{bits:5.1f} {found.lower_bound_nats:7.4f} {found.head_optimum_nats:13.4f} {gap:7.4f} {seconds:6.1f}"
        gaps.append(gap)
        if not options.no_bounds and gap > LEAST_GAP:
            q = found.log_probs.double().exp()
            curvature, mean = hessian(solver, q)
            values, vectors = torch.linalg.eigh(curvature)
            one = closed_bound(solver, found, values, vectors, mean)
            many = moments_bound(solver, found, q, values, vectors, mean)
            closed.append(one / gap)
            moments.append(many / gap)
            line += f"   {one / gap:6.1%}  {many / gap:7.1%}"
        print(line, flush=True)
    print(f"gap: median {statistics.median(gaps):.3f}, largest {max(gaps):.3f} nats; {len(gaps)} targets")
    if closed:
        print(
            f"of the gap, medians of {len(closed)} targets with a gap above {LEAST_GAP} nats: closed form "
            f"{statistics.median(closed):.1%}, moments at most {statistics.median(moments):.1%}"
        )


if __name__ == "__main__":
    main()
