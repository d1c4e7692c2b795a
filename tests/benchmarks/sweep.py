"""Problems a minute of the small Fig. 1: the sweep's way against the paper's, same protocol, same machine.

    python -m tests.benchmarks.sweep             # all of the small Fig. 1, and 8 of its problems the paper's way
    python -m tests.benchmarks.sweep --problems 64 --steps 10 --sample 3

The paper's way is one problem after the other, one initialisation at a time. Both ways compute the same problems (ids)
from the same beginnings, which is checked: the first KL of every problem must agree. Later ones need not, because AdamW
at 0.1 amplifies how batches round in float32; the mean of the lowest KL is printed for both. Beside wall time stands
the processor time of this process: on a machine that others use too, only its ratio means something.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import dpexplore as dp
from dpexplore.experiments import Problem, load_spec
from dpexplore.experiments.costs import matrix_product_speed, model_size, operations_of
from dpexplore.experiments.worker import Results, Worker

FIRST_KL_TOLERANCE = 1e-3
"""Nats between the first KL of a prompt that is scored alone and in a batch of a hundred, in float32."""


def measure(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What the work gives, its wall time and this process's processor time, in seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - wall, time.process_time() - processor


def sweeps_way(worker: Worker, problems: Sequence[Problem]) -> dict[str, dict[str, Any]]:
    rows = (row for event in worker.run(problems) if isinstance(event, Results) for row in event.rows)
    return {row["id"]: row for row in rows}


def papers_way(lm: dp.LanguageModel, problems: Sequence[Problem]) -> dict[str, tuple[float, float]]:
    """First and lowest KL of each."""
    found = {}
    for problem in problems:
        target = dp.parse_recipe(problem.recipe).build(lm)
        run = dp.tune(lm, target, problem.config)
        first, *_ = [step.kl_nats[0] for step in run]
        assert first is not None
        found[problem.id] = first, run.outcomes[0].kl_nats
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, help="only the first so many of the sweep")
    parser.add_argument("--steps", type=int, help="at most so many steps of each, in place of the spec's 80")
    parser.add_argument("--sample", type=int, default=8, help="problems that the paper's way computes")
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    spec = load_spec("fig1-small")
    if options.steps:
        groups = [dataclasses.replace(g, tune={**g.tune, "steps": options.steps}) for g in spec.groups]
        spec = dataclasses.replace(spec, groups=tuple(groups))
    worker = Worker(spec.models[0], options.device)
    facts = worker.facts()
    problems = [problem for problem, _, _ in spec.problems(facts) if problem.kind == "tune"][: options.problems]
    sample = problems[:: max(1, len(problems) // options.sample)][: options.sample]
    lm = dp.load_model(spec.models[0], device=options.device)
    papers_way(lm, [Problem.tune(facts, "entropy(bits=7, seed=9)", dp.TuneConfig(steps=2), 0)])  # warm up
    alone, wall_alone, processor_alone = measure(lambda: papers_way(lm, sample))
    together, wall, processor = measure(lambda: sweeps_way(worker, problems))
    worst = max(abs(together[name]["first_kl_nats"] - first) for name, (first, _) in alone.items())
    assert worst <= FIRST_KL_TOLERANCE, f"the two ways begin {worst:.1e} nats apart"
    steps = sum(row["steps"] for row in together.values())
    size = model_size(spec.models[0], options.device)
    assert size is not None
    share = operations_of(size, 5 * steps, steps) / wall / matrix_product_speed(lm.dtype, options.device)
    print(f"{len(problems)} problems of {spec.name} on {lm.device.type}, at most {problems[0].config.steps} steps each")
    for name, count, w, p in (("the paper's way", len(sample), wall_alone, processor_alone),
                              ("the sweep's way", len(problems), wall, processor)):  # fmt: skip
        print(f"{name}: {60 * count / w:.2f} problems a minute, {60 * count / p:.2f} a minute of processor time")
    faster, cheaper = (
        (len(problems) / wall) / (len(sample) / wall_alone),
        ((len(problems) / processor) / (len(sample) / processor_alone)),
    )
    print(f"the sweep's way is {faster:.1f} times as fast by wall time, {cheaper:.1f} times by processor time")
    print(f"{steps / wall:.1f} rows a second, {share:.0%} of what a matrix product reaches here")
    means = fmean(kl for _, kl in alone.values()), fmean(together[name]["kl_nats"] for name in alone)
    print(f"{len(alone)} problems computed both ways: first KL at most {worst:.1e} nats apart; "
          f"mean of the lowest KL {means[0]:.3f} (paper's way), {means[1]:.3f} (sweep's way)")  # fmt: skip


if __name__ == "__main__":
    main()
