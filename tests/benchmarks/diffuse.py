"""Distributions over strings: what one packed pass saves, and how far prompt and LoRA come, family by family.

    python -m tests.benchmarks.diffuse ratio
    python -m tests.benchmarks.diffuse ten      --out ten.jsonl
    python -m tests.benchmarks.diffuse families --out families.jsonl
    python -m tests.benchmarks.diffuse tables   ten.jsonl families.jsonl

`ten` and `families` end with their table of docs/strings.md, in Markdown. Records are written as they come, one JSON
object a line, and `tables` prints those of several files as one table.

Leave-one-out and leave-one-in are a command of their own, `python -m dpexplore generalise`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import dpexplore as dp
from dpexplore.diffuse.adapter import Adapter
from dpexplore.diffuse.config import PRESETS, AdapterConfig
from dpexplore.diffuse.families import SIX, Task, family
from dpexplore.diffuse.metrics import perplexity
from dpexplore.diffuse.prompts import prompt_config
from dpexplore.diffuse.report import answers, held_out_text
from dpexplore.diffuse.training import AdapterRun
from dpexplore.tuning.objectives.sequences import packed_log_probs, plain_log_probs
from tests.benchmarks.engine import paired


class Record:
    """What was measured so far, and a file of JSON lines that grows with it."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def add(self, **fields: Any) -> None:
        line = json.dumps(fields, ensure_ascii=False)
        print(line, flush=True)
        self.rows.append(json.loads(line))
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def ratio(lm: dp.LanguageModel, pairs: int) -> None:
    """Loss and gradient of numbers 1 to 100, packed against one sequence for each outcome."""
    target = next(task for task in family("numbers", "full") if task.name == "1-100").strings.build(lm)
    prompt = lm.embed(torch.tensor([target.request_ids])).detach()
    losses: dict[str, float] = {}

    def work(score: Any, name: str) -> None:
        leaf = prompt.clone().requires_grad_()
        loss = -(target.weights.float() * score(lm, leaf, target.tree)[0, 0]).sum()
        torch.autograd.grad(loss, leaf)
        losses[name] = float(loss.detach())

    plain, packed, gain = paired(
        lambda: work(plain_log_probs, "plain"), lambda: work(packed_log_probs, "packed"), pairs, lm.device
    )
    print(f"  plain {plain:.2f} s   packed {packed:.2f} s   ratio {gain:.1f}")
    print(f"  losses {losses['plain']:.6f} and {losses['packed']:.6f} nats")


def soft(lm: dp.LanguageModel, task: Task, steps: int) -> tuple[torch.Tensor, float]:
    """A tuned prompt `(pos hidden)` from one start, and the seconds it took."""
    config = prompt_config(lm, task.strings, "soft", restarts=1, steps=steps, screen=1)
    run = dp.tune(lm, task.strings.build(lm), config)
    return run.result.prompt_embeds, run.seconds


def tell(record: Record, lm: dp.LanguageModel, name: str, tasks: list[Task], samples: int, **more: Any) -> None:
    """Answers to every request, one record each; `prompts` are the tuned ones, if any."""
    prompts = more.pop("prompts", [None] * len(tasks))
    for task, prompt in zip(tasks, prompts, strict=True):
        told = answers(lm, task.name, task.strings.build(lm), samples=samples, prompt=prompt)
        record.add(family=name, **more, **told.to_dict())


def ten(lm: dp.LanguageModel, record: Record, ways: list[str], samples: int, steps: int) -> None:
    task = next(task for task in family("numbers") if task.name == "1-10")
    text = held_out_text()
    if "untuned" in ways:
        tell(record, lm, "ten", [task], samples, way="untuned", perplexity=perplexity(lm, text), seconds=0.0)
    for preset in [preset for preset in PRESETS if preset in ways]:
        run = AdapterRun(lm, [task.strings.build(lm)], AdapterConfig.preset(preset)).finish()
        cost = perplexity(run.adapter.lm, text)
        tell(record, run.adapter.lm, "ten", [task], samples, way=f"lora {preset}", perplexity=cost, seconds=run.seconds)
    if "soft" in ways:
        prompt, seconds = soft(lm, task, steps)
        tell(record, lm, "ten", [task], samples, way="soft", perplexity=None, seconds=seconds, prompts=[prompt])


def families(lm: dp.LanguageModel, record: Record, names: Sequence[str], samples: int, passes: int, steps: int) -> None:
    text = held_out_text()
    before = perplexity(lm, text)
    for name in names:
        tasks = family(name)
        tell(record, lm, name, tasks, samples, way="untuned", perplexity=before, seconds=0.0)
        config = AdapterConfig.preset("fast", passes=passes)
        run = AdapterRun(lm, [task.strings.build(lm) for task in tasks], config).finish()
        adapter: Adapter = run.adapter
        cost = perplexity(adapter.lm, text)
        tell(record, adapter.lm, name, tasks, samples, way="lora fast", perplexity=cost, seconds=run.seconds)
        tuned = [soft(lm, task, steps) for task in tasks]
        spent = sum(seconds for _, seconds in tuned)
        prompts = [prompt for prompt, _ in tuned]
        tell(record, lm, name, tasks, samples, way="soft", perplexity=None, seconds=spent, prompts=prompts)


def read(paths: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def table(told: list[dict[str, Any]]) -> None:
    print("| requests | way | KL, nats | valid mass | sample entropy, nats | coverage-10 | coverage-100 | invalid "
          "| new valid | perplexity |\n|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for name, way in dict.fromkeys((record["family"], record["way"]) for record in told):
        rows = [record for record in told if (record["family"], record["way"]) == (name, way)]
        facts = [row["samples"] for row in rows]
        cells = [
            f"{fmean(row['kl_nats'] for row in rows):.4f}",
            f"{fmean(row['valid_mass'] for row in rows):.1%}",
            f"{fmean(fact['entropy_nats'] for fact in facts):.2f}",
            *(_coverage(facts, size) for size in ("10", "100")),
            f"{fmean(fact['invalid_share'] for fact in facts):.1%}",
            str(sum(fact["unseen"] for fact in facts)),
            "unchanged" if rows[0]["perplexity"] is None else f"{rows[0]['perplexity']:.2f}",
        ]
        print(f"| {name} | {way} | {' | '.join(cells)} |")


def _coverage(facts: list[dict[str, Any]], size: str) -> str:
    """The mean over requests; nothing where fewer answers were drawn."""
    return (
        f"{fmean(fact['coverage'][size] for fact in facts):.1f}"
        if all(size in fact["coverage"] for fact in facts)
        else ""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ratio", "ten", "families", "tables"])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--model", default=dp.DEFAULT_MODEL)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--passes", type=int, default=50, help="passes of a training of families")
    parser.add_argument("--steps", type=int, help="steps of a soft prompt; by default 40 for ten, 60 for families")
    parser.add_argument("--families", nargs="+", default=SIX, choices=SIX, help="families of families")
    parser.add_argument("--ways", nargs="+", default=["untuned", *PRESETS, "soft"], help="ways of ten")
    options = parser.parse_args()
    if options.what == "tables":
        table(read(options.files))
        return
    lm = dp.load_model(options.model)
    print(f"{lm.name}, {lm.dtype}, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}")
    began = time.monotonic()
    record = Record(options.out)
    if options.what == "ratio":
        ratio(lm, options.pairs)
    elif options.what == "ten":
        ten(lm, record, options.ways, options.samples, options.steps or 40)
    else:
        families(lm, record, options.families, options.samples, options.passes, options.steps or 60)
    print(f"{time.monotonic() - began:.0f} s\n")
    if record.rows:
        table(record.rows)


if __name__ == "__main__":
    main()
