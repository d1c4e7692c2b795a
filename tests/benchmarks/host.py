"""What the host costs, on any machine: many runs of one row beside one run of as many rows, on a tiny model.

    python -m tests.benchmarks.host

Ratios are medians over interleaved pairs. `--profile` adds the functions in which Python spends one step.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import platform
import pstats
import statistics

import torch

import dpexplore as dp
from tests.benchmarks.clock import seconds

LENGTH = 2
BITS = 3


def configs(count: int) -> list[dp.TuneConfig]:
    """Runs of one row that none of the rules ends."""
    return [
        dp.TuneConfig(length=LENGTH, restarts=1, steps=1_000, patience=None, screen=1, seed=seed)
        for seed in range(count)
    ]


def many_runs(lm: dp.LanguageModel, target: dp.Target, count: int) -> tuple[dp.Engine, float]:
    """An engine with `count` runs of one row, and the seconds that submitting them took."""
    engine = dp.Engine(lm, max_rows=count)
    problems = configs(count)
    taken = seconds(lambda: engine.submit_many((target, config) for config in problems), lm.device)
    return engine, taken


def one_run(lm: dp.LanguageModel, target: dp.Target, rows: int) -> dp.Engine:
    """An engine with one run of `rows` rows."""
    engine = dp.Engine(lm, max_rows=rows)
    engine.submit(target, dp.TuneConfig(length=LENGTH, restarts=rows, steps=1_000, patience=None, screen=1))
    return engine


def compare(lm: dp.LanguageModel, target: dp.Target, count: int, pairs: int) -> dict[str, float]:
    """One step of `count` runs of one row over one step of one run of `count` rows, and runs submitted a second."""
    apart, taken = many_runs(lm, target, count)
    together = one_run(lm, target, count)
    apart.step()  # the first one draws the prompts
    together.step()
    times = [(seconds(apart.step, lm.device), seconds(together.step, lm.device)) for _ in range(pairs)]
    return {
        "runs": count,
        "step_of_runs_s": round(statistics.median(a for a, _ in times), 4),
        "step_of_one_run_s": round(statistics.median(b for _, b in times), 4),
        "ratio": round(statistics.median(a / b for a, b in times), 3),
        "submitted_a_second": round(count / taken, 1),
    }


def profile(lm: dp.LanguageModel, target: dp.Target, count: int) -> str:
    """The functions of one step of `count` runs by their own time, as cProfile prints them."""
    engine, _ = many_runs(lm, target, count)
    engine.step()
    profiler = cProfile.Profile()
    profiler.runcall(engine.step)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(20)
    return text.getvalue()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:bytes-llama")
    parser.add_argument("--runs", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--pairs", type=int, default=3, help="interleaved pairs of each comparison")
    parser.add_argument("--profile", action="store_true", help="print where Python spends a step of the last count")
    options = parser.parse_args(arguments)
    lm = dp.load_model(options.model)
    target = dp.entropy(bits=BITS, seed=0).build(lm)
    machine = f"{lm.device}, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}"
    print(json.dumps({"model": options.model, "machine": machine}), flush=True)
    for count in options.runs:
        print(json.dumps(compare(lm, target, count, options.pairs)), flush=True)
    if options.profile:
        print(profile(lm, target, options.runs[-1]))


if __name__ == "__main__":
    main()
