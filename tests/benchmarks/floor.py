"""What a certified floor costs, beside SciPy's L-BFGS on the same problems with the same certificate.

    python -m tests.benchmarks.floor                    # the default model
    python -m tests.benchmarks.floor --random 128256x4096    # a random head of that size instead

Both solvers stop at a certified gap below 1e-3 nats. SciPy knows no ball, so it minimises KL + λ/2·‖u‖² with λ known
(the multiplier that our solution ended with), which is more than it would be given in earnest, in coordinates whitened
by the covariance of A's rows; both use the same two products with A. Times are those of one run,
one after the other for each target, so that a busy machine is busy for both; `passes` counts products with A.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import platform
import resource
import statistics
import time

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

import dpexplore as dp
from dpexplore.floor import FloorResult, FloorSolver
from dpexplore.floor.prepared import floor_solver
from dpexplore.floor.sweep import sweep
from dpexplore.models.head import extract_head
from dpexplore.targets import vanilla_targets

GAP_NATS = 1e-3
BITS = (0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 15.5)
SCIPY_EVALUATIONS = 200


class PassCounter:
    """Counts the products of one solver with A."""

    def __init__(self, solver: FloorSolver) -> None:
        self.count = 0
        for name in ("forward", "backward"):
            setattr(solver.products, name, self._counted(getattr(solver.products, name)))

    def _counted(self, product):
        def counted(*args, **named):
            self.count += 1
            return product(*args, **named)

        return counted


def whitening(solver: FloorSolver) -> Tensor:
    """C^(−1/2), C the covariance of A's rows, `(hidden hidden)` float64: SciPy's preparation."""
    matrix = solver.products.matrix
    rows = matrix - matrix.mean(0)
    values, vectors = torch.linalg.eigh((rows.T @ rows / len(rows)).double())
    return vectors * values.clamp_min(1e-12 * values[-1]).rsqrt() @ vectors.T


class _Certified(Exception):
    pass


def by_scipy(solver: FloorSolver, probs: Tensor, ours: FloorResult, white: Tensor) -> float:
    """Smallest certified gap SciPy's L-BFGS reaches (it stops once below GAP_NATS)."""
    gradient = solver.products.backward((ours.log_probs.double().exp() - probs)[None])[0]
    point = ours.point
    on_edge = float(point.norm()) > solver.radius * (1 - 1e-6)
    multiplier = max(0.0, -float(gradient @ point)) / solver.radius**2 if on_edge else 0.0
    target_entropy = float(torch.special.entr(probs).sum())
    best = [math.inf, 0.0]

    def value(v: np.ndarray) -> tuple[float, np.ndarray]:
        u = white @ torch.from_numpy(v)
        logits = solver.products.forward(u[None], exact=False) + solver.bias
        log_probs = logits.log_softmax(-1)
        kl = -float(log_probs[0] @ probs) - target_entropy
        slope = solver.products.backward(log_probs.exp() - probs, exact=False)[0]
        bound = kl - float(slope @ u) - solver.radius * float(slope.norm())
        best[1] = max(best[1], bound)
        if float(u.norm()) <= solver.radius * (1 + 1e-6):
            best[0] = min(best[0], kl)
        if best[0] - best[1] <= GAP_NATS:
            raise _Certified
        full = slope + multiplier * u
        return kl + 0.5 * multiplier * float(u @ u), (white @ full).numpy()

    options = {"maxcor": 30, "maxfun": SCIPY_EVALUATIONS, "maxiter": SCIPY_EVALUATIONS, "ftol": 0, "gtol": 0}
    with contextlib.suppress(_Certified):
        minimize(value, np.zeros(solver.hidden_size), jac=True, method="L-BFGS-B", options=options)
    return best[0] - best[1]


def against_scipy(solver: FloorSolver, counter: PassCounter, seed: int, every: int) -> None:
    white = whitening(solver)
    times, ratios = [], []
    entropies = [bits for bits in BITS[::every] if bits < math.log2(solver.vocab_size)]
    probs = vanilla_targets(solver.vocab_size, entropies, seed)
    solver.solve(probs[0], ladder=False)
    print(" bits   floor     gap      s  passes | SciPy gap      s  passes | ratio of times")
    for bits, row in zip(entropies, probs, strict=True):
        counter.count = 0
        start = time.perf_counter()
        ours = solver.solve(row, gap_nats=GAP_NATS, ladder=False)[0]
        seconds, passes = time.perf_counter() - start, counter.count
        counter.count = 0
        start = time.perf_counter()
        gap = by_scipy(solver, row, ours, white)
        scipy_seconds = time.perf_counter() - start
        times.append(seconds)
        ratios.append(scipy_seconds / seconds)
        print(
            f"{bits:5.1f} {ours.lower_bound_nats:7.4f} {ours.gap_nats:.1e} {seconds:6.2f} {passes:7} |"
            f"   {gap:.1e} {scipy_seconds:6.2f} {counter.count:7} | {ratios[-1]:6.1f}",
            flush=True,
        )
    print(f"median {statistics.median(times):.2f} s, worst {max(times):.2f} s; SciPy {statistics.median(ratios):.1f} x")


def curve(solver: FloorSolver, seed: int, points: int = 100) -> None:
    limit = min(15.5, math.log2(solver.vocab_size) - 0.05)
    probs = vanilla_targets(solver.vocab_size, torch.linspace(0.5, limit, points).tolist(), seed)
    start = time.perf_counter()
    found = sweep(solver, probs, gap_nats=GAP_NATS)
    widest = max(floor.gap_nats for floor in found)
    print(f"{points}-point curve: {time.perf_counter() - start:.1f} s, widest gap {widest:.1e} nats")


def random_head(size: str, seed: int, bits: list[float]) -> None:
    vocab, hidden = map(int, size.split("x"))
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.empty(vocab, hidden)
    for block in matrix.split(4096):
        block.copy_(torch.randn(block.shape, generator=generator) * 0.25)
    start = time.perf_counter()
    solver = FloorSolver(matrix, None, math.sqrt(hidden))
    print(f"preparation {time.perf_counter() - start:.1f} s")
    counter = PassCounter(solver)
    for row, one in zip(vanilla_targets(vocab, bits, seed), bits, strict=True):
        counter.count = 0
        found = solver.solve(row, gap_nats=GAP_NATS, ladder=False)[0]
        print(
            f"{one:5.1f} bits: floor {found.lower_bound_nats:.4f}, gap {found.gap_nats:.1e}, {found.iterations} "
            f"iterations, {counter.count} passes, {found.seconds:.1f} s",
            flush=True,
        )
    print(f"head matrix {matrix.nbytes / 2**20:,.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=dp.DEFAULT_MODEL)
    parser.add_argument("--random", metavar="VOCABxHIDDEN", help="time a random head of this size instead")
    parser.add_argument("--bits", type=float, nargs="+", default=[7.0, 12.0], help="entropies for --random")
    parser.add_argument("--every", type=int, default=1, help="take every n-th entropy")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if options.random:
        random_head(options.random, options.seed, options.bits)
    else:
        lm = dp.load_model(options.model, device="cpu")
        start = time.perf_counter()
        head = extract_head(lm)
        print(f"{options.model}: head {tuple(head.matrix.shape)}, extracted in {time.perf_counter() - start:.1f} s")
        solver = floor_solver(lm)
        curve(solver, options.seed)
        against_scipy(solver, PassCounter(solver), options.seed, options.every)
    # Kilobytes on Linux.
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} MiB")


if __name__ == "__main__":
    main()
