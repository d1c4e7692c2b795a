"""What the row engine costs and what it saves, as ratios measured side by side in one run.

    python -m tests.benchmarks.engine

Every ratio is the median over interleaved pairs, A B A B …, so that a machine whose speed drifts drifts for both.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable

import torch

import dpexplore as dp
from dpexplore.tuning.engine.rows import RowStack
from tests.benchmarks.clock import seconds

LENGTH = 5


def paired(
    a: Callable[[], object], b: Callable[[], object], pairs: int, device: torch.device
) -> tuple[float, float, float]:
    """Medians of a, of b and of their ratio a/b over interleaved pairs, after one pair that is not counted."""
    a()
    b()
    times = [(seconds(a, device), seconds(b, device)) for _ in range(pairs)]
    return (
        statistics.median(x for x, _ in times),
        statistics.median(y for _, y in times),
        statistics.median(x / y for x, y in times),
    )


def bare_pass(lm: dp.LanguageModel, embeds: torch.Tensor, probs: torch.Tensor) -> Callable[[], object]:
    """Forward and backward of plain transformers on the same rows: embeddings in, gradient of the KL out."""

    def work() -> torch.Tensor:
        leaf = embeds.detach().requires_grad_()
        logits = lm.model(inputs_embeds=leaf, logits_to_keep=1, use_cache=False).logits[:, -1]
        loss = torch.nn.functional.kl_div(logits.log_softmax(-1), probs.expand(len(leaf), -1), reduction="sum")
        return torch.autograd.grad(loss, leaf)[0]

    return work


def overhead(lm: dp.LanguageModel, target: dp.Target, rows: int, pairs: int) -> None:
    """An engine's step beside the bare pass it cannot do without."""
    for method in ("soft", "hard"):
        engine = dp.Engine(lm)
        config = dp.TuneConfig(method=method, length=LENGTH, restarts=rows, steps=10**6, patience=None)
        run = engine.submit(target, config)
        stack = RowStack(lm)
        stack.admit([(run, restart) for restart in range(rows)])
        step, bare, ratio = paired(
            engine.step, bare_pass(lm, stack.prompts.embeds, target.probs.float()), pairs, lm.device
        )
        print(
            f"  {method:5} {rows:4} rows   step {step:6.3f} s   bare pass {bare:6.3f} s   ratio {ratio:.3f}", flush=True
        )


def throughput(lm: dp.LanguageModel, target: dp.Target, counts: list[int], pairs: int) -> None:
    """Rows a second in one batch, against one row at a time."""

    def stepping(rows: int) -> Callable[[], object]:
        engine = dp.Engine(lm)
        engine.submit(target, dp.TuneConfig(length=LENGTH, restarts=rows, steps=10**6, patience=None))
        return engine.step

    one = stepping(1)
    for rows in counts:
        batch, single, ratio = paired(stepping(rows), one, pairs, lm.device)
        print(
            f"  {rows:4} rows {rows / batch:7.1f} rows/s   one at a time {1 / single:6.1f} rows/s   "
            f"ratio {rows / ratio:5.2f}",
            flush=True,
        )


def together(lm: dp.LanguageModel, target: dp.Target, runs: int, rows: int, steps: int, pairs: int) -> None:
    """Several runs submitted at once, against the same runs one after the other."""
    configs = [
        dp.TuneConfig(length=LENGTH, restarts=rows, steps=steps, patience=None, seed=seed) for seed in range(runs)
    ]

    def at_once() -> None:
        engine = dp.Engine(lm)
        for config in configs:
            engine.submit(target, config)
        while engine.step():
            pass

    def in_turn() -> None:
        for config in configs:
            list(dp.Engine(lm).submit(target, config))

    turn, once, ratio = paired(in_turn, at_once, pairs, lm.device)
    print(f"  in turn {turn:6.1f} s   together {once:6.1f} s   ratio {ratio:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=dp.DEFAULT_MODEL)
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs of each comparison")
    options = parser.parse_args()
    lm = dp.load_model(options.model)
    target = dp.entropy(bits=7, seed=0).build(lm)
    threads = torch.get_num_threads()
    machine = f"{lm.device}, {threads} threads, {platform.machine()}"
    print(f"{options.model}, {lm.dtype}, on {machine}, torch {torch.__version__}")
    print("an engine step over a bare transformers forward and backward pass on the same rows")
    for rows in (5, 25, 100):
        overhead(lm, target, rows, options.pairs)
    print("rows a second in one batch against one row at a time")
    throughput(lm, target, [1, 10, 30, 100], options.pairs)
    print("ten runs of 5 rows, 4 steps each, one after the other against together")
    together(lm, target, runs=10, rows=5, steps=4, pairs=max(1, options.pairs // 2))


if __name__ == "__main__":
    main()
