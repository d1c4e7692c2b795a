"""The figures of a card, as JSON lines while they come, inside four minutes.

    python -m tests.benchmarks.gpu
    python -m tests.benchmarks.gpu --device cpu --tiny    # the same code on a tiny model, on any machine

Every time is read after the card has done its work. Each part has a time limit of its own and says what it got to;
a part that fails says why, and the others go on. `docs/benchmarks.md` has what one card gave.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

import dpexplore as dp
from dpexplore.experiments.problems import Problem
from dpexplore.experiments.spec import load_spec
from dpexplore.experiments.worker import Progress, Results, Worker
from tests.benchmarks.clock import median_seconds, seconds

LENGTH = 5
PEAK_FLOPS = 989e12
"""An H100's bfloat16 products without sparsity, in operations a second."""
LARGE = "random:llama-3-8b"
TINY = "random:bytes-llama"
DIE = 'tokens({"1": 1, "2": 1, "3": 1, "4": 1, "5": 1, "6": 1})'


@dataclass(frozen=True)
class Bench:
    """What the parts share."""

    device: torch.device
    tiny: bool
    limit: float
    """Seconds for a part of ordinary size."""
    large: str = LARGE
    """The model of the part `large`."""

    @property
    def model(self) -> str:
        return TINY if self.tiny else dp.DEFAULT_MODEL

    def counts(self, *counts: int) -> list[int]:
        """Numbers of rows; the smallest alone for a tiny bench."""
        return list(counts[:1] if self.tiny else counts)

    def load(self) -> tuple[dp.LanguageModel, dp.Target]:
        lm = dp.load_model(self.model, device=str(self.device))
        return lm, dp.entropy(bits=3 if self.tiny else 7, seed=0).build(lm)


def soft_and_hard(bench: Bench) -> Iterator[dict[str, Any]]:
    """Steps a second of one run: AdamW, L-BFGS, Eq. 4 and the search."""
    lm, target = bench.load()
    kinds = {
        "adamw": {"method": "soft", "soft_rule": "adamw"},
        "lbfgs": {"method": "soft", "soft_rule": "lbfgs"},
        "eq4": {"method": "hard", "hard_rule": "eq4"},
        "search": {"method": "hard", "hard_rule": "search"},
    }
    for name, how in kinds.items():
        for rows in bench.counts(5) if name == "search" else bench.counts(1, 5, 30):
            engine = dp.Engine(lm)
            engine.submit(target, dp.TuneConfig(**how, length=LENGTH, restarts=rows, steps=1_000, patience=None))  # pyright: ignore[reportArgumentType]
            engine.step()
            step, times = median_seconds(engine.step, lm.device, bench.limit / 10)
            yield {"rule": name, "rows": rows, "steps_a_second": 1 / step, "steps": times}


def many_runs(bench: Bench) -> Iterator[dict[str, Any]]:
    """One step of separate runs of one row: 30 people, and a sweep."""
    lm, target = bench.load()
    for count in bench.counts(30, 1_000):
        engine = dp.Engine(lm, max_rows=count)
        configs = (
            dp.TuneConfig(length=LENGTH, restarts=1, steps=1_000, patience=None, seed=seed) for seed in range(count)
        )
        engine.submit_many((target, config) for config in configs)
        engine.step()
        step, times = median_seconds(engine.step, lm.device, bench.limit / 3)
        yield {"runs": count, "step_ms": 1e3 * step, "updates_a_second_for_each": 1 / step, "steps": times}


def precision(bench: Bench) -> Iterator[dict[str, Any]]:
    """`fast` in each precision, TF32 products among them; every KL is scored in float32."""
    for name in ("float32", "tf32", "bfloat16"):
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        lm = dp.load_model(bench.model, device=str(bench.device), dtype="bfloat16" if name == "bfloat16" else "float32")
        for recipe in ("entropy(bits=3, seed=0)",) if bench.tiny else (DIE, "entropy(bits=3, seed=0)"):
            target = dp.parse_recipe(recipe).build(lm)
            config = dp.TuneConfig.preset("fast", method="soft", restarts=5, seconds=max(1, int(bench.limit / 3)))
            result = dp.tune(lm, target, replace(config, steps=3) if bench.tiny else config).result
            yield {
                "precision": name,
                "target": recipe,
                "kl_nats": result.kl_nats,
                "kl_search_nats": result.kl_search_nats,
                "seconds": result.seconds,
                "why": lm.dtype_reason,
            }
    torch.set_float32_matmul_precision("highest")


def sweep(bench: Bench) -> Iterator[dict[str, Any]]:
    """`fig1-paper` for as long as the limit allows: problems done, and the time that all of them would take."""
    spec = load_spec("fig1-small" if bench.tiny else "fig1-paper")
    worker = Worker(bench.model, str(bench.device))
    facts = worker.facts()
    groups = tuple(replace(group, models=(bench.model,)) for group in spec.groups)
    problems: list[Problem] = [problem for problem, _, _ in replace(spec, groups=groups).problems(facts)]
    problems = problems[:4] if bench.tiny else problems
    began, done, doing = time.perf_counter(), 0, 0.0
    for event in worker.run(problems, stop=lambda: time.perf_counter() - began > bench.limit):
        if isinstance(event, Results):
            done += len(event.rows)
        elif isinstance(event, Progress):
            doing = event.doing
    taken = time.perf_counter() - began
    share = min(1.0, (done + doing) / len(problems))
    whole = taken / share if share else None
    yield {"problems": len(problems), "done": done, "share": share, "seconds": taken, "whole_s": whole}


def large_model(bench: Bench) -> Iterator[dict[str, Any]]:
    """Llama-3-8B's shape at random weights in bfloat16: ready in, and its share of the card's peak at capacity."""
    name = TINY if bench.tiny else bench.large
    loaded: list[dp.LanguageModel] = []
    ready = seconds(
        lambda: loaded.append(dp.load_model(name, device=str(bench.device), dtype="bfloat16")), bench.device
    )
    lm = loaded[0]
    yield {"model": name, "ready_s": ready}
    target = dp.entropy(bits=3, seed=0).build(lm)
    for rows in bench.counts(5, 100, 1_000, 2_000):
        engine = dp.Engine(lm)
        engine.submit(target, dp.TuneConfig(length=LENGTH, restarts=rows, steps=1_000, patience=None))
        engine.step()
        step, times = median_seconds(engine.step, lm.device, bench.limit / 4)
        head = lm.vocab_size * lm.hidden_size
        operations = 4.0 * rows * (LENGTH * max(lm.parameter_count - 2 * head, 0) + head)
        share = operations / step / PEAK_FLOPS
        yield {"model": name, "rows": rows, "step_ms": 1e3 * step, "share_of_peak": share, "steps": times}


PARTS: dict[str, Callable[[Bench], Iterator[dict[str, Any]]]] = {
    "steps": soft_and_hard,
    "runs": many_runs,
    "precision": precision,
    "sweep": sweep,
    "large": large_model,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few rows, to run the same code anywhere")
    parser.add_argument("--limit", type=float, default=40.0, help="seconds for each part")
    parser.add_argument("--large", default=LARGE, help="the model of the part `large`")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here; give --device cpu --tiny to run the same code.", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(json.dumps({"card": card, "torch": torch.__version__, "tiny": options.tiny}), flush=True)
    bench = Bench(device, options.tiny, options.limit, options.large)
    for name in options.parts:
        try:
            began = time.perf_counter()
            for record in PARTS[name](bench):
                print(json.dumps({"part": name, **record}), flush=True)
                if time.perf_counter() - began > bench.limit:
                    print(json.dumps({"part": name, "stopped": f"after {bench.limit:g} s"}), flush=True)
                    break
        except (dp.InputError, RuntimeError) as error:
            print(json.dumps({"part": name, "error": f"{type(error).__name__}: {error}"}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
