"""Recovering prompts from what a model says after them: methods at equal work, by KL and by exact recovery.

    python -m tests.benchmarks.recovery --out recovery.jsonl                        # everything
    python -m tests.benchmarks.recovery --out recovery.jsonl --methods recover gcg --lengths 2 --seeds 0-9
    python -m tests.benchmarks.recovery --out recovery.jsonl --show                 # the table of what is there

Every line of the file is one target and one method; what is there already is not measured again, so a run that was
cut off goes on. Work is counted in floating-point operations (`Work`), the same for every method, and every method
stops at the same amount or where it has recovered the prompt. What is learnt once for a model and a length, and kept
(the regressions of `recover`, the table of `search`), is counted apart.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dpexplore as dp
from dpexplore.tuning.record.bounds import RECOVERED_NATS

METHODS = ("recover", "search", "gcg", "soda")
LENGTHS = (1, 2, 3, 5)
NATURAL = {1: ("Hello", "Paris"), 2: ("I love", "Good morning"), 3: ("Once upon a", "The capital of"),
           5: ("The cat sat on the", "I would like to eat")}  # fmt: skip
TERAFLOP = 3.0
"""Work a target and method, in 1e12 operations: 3 are about 7,000 prompts of two tokens on the default model."""
CONFIDENCE = 1.96
ONCE = ("Solving", "Learning", "Looking")
"""How a run begins to say what it does once for a target, or for a model and a length."""

SODA_TEMPERATURE, SODA_RATE, SODA_BETAS, SODA_DECAY = 0.05, 0.065, (0.9, 0.995), 0.9
SODA_RESET, SODA_RESTART = 50, 1500


class Work:
    """Floating-point operations of everything that a model computes in here.

    Two for each weight and position, those of the unembedding only for the positions whose logits are computed; a pass
    that a gradient is taken of counts three times. Attention's products and norms, a few per cent at these lengths, and
    what a method does beside the model are left out. A prefix that is computed once counts once.
    """

    def __init__(self, lm: dp.LanguageModel) -> None:
        self.flops = 0.0
        self._lm = lm
        head = lm.model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        self._head = head
        table = lm.model.get_input_embeddings()
        assert isinstance(table, nn.Module)
        outside = {id(weight) for module in (head, table) for weight in module.parameters()}
        self._body = sum(weight.numel() for weight in lm.model.parameters() if id(weight) not in outside)

    @contextmanager
    def counted(self) -> Generator[None]:
        """Within, every pass is counted."""

        def body(_module: nn.Module, _args: Any, given: dict[str, Any]) -> None:
            entered = given["inputs_embeds"] if given.get("inputs_embeds") is not None else given["input_ids"]
            self._add(self._body, entered.shape[0] * entered.shape[1])

        def head(module: nn.Linear, args: tuple[Tensor, ...]) -> None:
            self._add(module.weight.numel(), args[0].shape[:-1].numel())

        base = self._lm.model.base_model
        handles = [
            base.register_forward_pre_hook(body, with_kwargs=True),
            self._head.register_forward_pre_hook(head),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, weights: int, positions: int) -> None:
        self.flops += 2.0 * weights * positions * (3 if torch.is_grad_enabled() else 1)


def config_of(method: str, length: int, seed: int) -> dp.TuneConfig:
    """The method's settings without any limit but the work."""
    shared = {"method": "hard", "length": length, "restarts": 1, "patience": None, "seed": seed, "steps": 10**6}
    match method:
        case "recover":
            return dp.TuneConfig.preset("thorough", evaluations=10**7, **shared)
        case "search":
            return dp.TuneConfig.preset("thorough", init="lookup", evaluations=10**7, **shared)
        case "gcg":
            return dp.TuneConfig(hard_rule="gcg", **shared)  # pyright: ignore[reportArgumentType]
    raise ValueError(f"There is no method {method!r}.")


def tuned(lm: dp.LanguageModel, target: dp.Target, method: str, length: int, most: float) -> dict[str, Any]:
    """A run of the product, stopped at `most` operations; before what it prepares once for a model is counted apart."""
    work = Work(lm)
    engine = dp.Engine(lm)
    run = engine.submit(target, config_of(method, length, seed=0))
    once, began = 0.0, time.perf_counter()
    with work.counted():
        while not run.finished:
            engine.step()
            if run.preparation is not None and run.preparation.text.startswith(ONCE):
                once, began = work.flops, time.perf_counter()
            elif (run.steps and run.steps[-1].best_kl_nats <= RECOVERED_NATS) or work.flops - once >= most:
                run.cancel()
        seconds, flops = time.perf_counter() - began, work.flops - once
    result = run.result
    return {
        "kl_nats": result.kl_nats,
        "prompt_ids": result.prompt_ids,
        "claimed": result.recovered,
        "teraflop": flops / 1e12,
        "teraflop_once": once / 1e12,
        "prompts": result.evaluations,
        "seconds": seconds,
    }


def soda(lm: dp.LanguageModel, target: dp.Target, length: int, most: float) -> dict[str, Any]:
    """Relaxation with decay (SODA, arXiv 2507.01693) as published, reimplemented: softmax(θ/τ)·W for a prompt.

    Huber loss on all logits, Adam without bias correction, θ × decay at every step, moments reset every 50 steps and
    θ every 1,500; each new argmax is scored exactly.
    """
    work, began = Work(lm), time.perf_counter()
    table, probs = lm.embedding_table.float(), target.probs.to(lm.device)
    log_p = probs.log()
    wanted = (log_p - log_p.mean()).float()
    before = torch.tensor([lm.bos_ids], device=lm.device, dtype=torch.long)
    rng = torch.Generator().manual_seed(0)
    best, best_ids, scored, prompts, step = math.inf, [], set[tuple[int, ...]](), 0, 0
    theta = first = second = torch.zeros(length, len(table), device=lm.device)
    with work.counted():
        while work.flops < most and best > RECOVERED_NATS:
            if step % SODA_RESTART == 0:
                theta = torch.zeros_like(theta) if step == 0 else 0.1 * torch.randn(theta.shape, generator=rng)
            if step % SODA_RESET == 0:
                first, second = torch.zeros_like(theta), torch.zeros_like(theta)
            theta = theta.detach().requires_grad_()
            embeds = torch.cat([lm.embed(before).float(), ((theta / SODA_TEMPERATURE).softmax(-1) @ table)[None]], 1)
            log_q = lm.log_probs(embeds)[0]
            loss = nn.functional.huber_loss(log_q - log_q.mean(), wanted)
            (grad,) = torch.autograd.grad(loss, theta)
            with torch.no_grad():
                first = SODA_BETAS[0] * first + (1 - SODA_BETAS[0]) * grad
                second = SODA_BETAS[1] * second + (1 - SODA_BETAS[1]) * grad.square()
                theta = SODA_DECAY * (theta - SODA_RATE * first / (second.sqrt() + 1e-8))
                ids = (*lm.bos_ids, *theta.argmax(-1).tolist())
                prompts, step = prompts + 1, step + 1
                if ids not in scored:
                    scored.add(ids)
                    prompts += 1
                    kl = float((probs * (log_p - lm.log_probs_of_ids(torch.tensor([ids]))[0].double())).sum())
                    if kl < best:
                        best, best_ids = kl, list(ids)
    return {
        "kl_nats": best,
        "prompt_ids": best_ids,
        "claimed": best <= RECOVERED_NATS,
        "teraflop": work.flops / 1e12,
        "teraflop_once": 0.0,
        "prompts": prompts,
        "seconds": time.perf_counter() - began,
    }


def targets(lm: dp.LanguageModel, length: int, seeds: Iterable[int], natural: bool) -> Generator[tuple[str, dp.Target]]:
    """Recipes and targets: random prompts, and texts of as many tokens."""
    for seed in () if natural else seeds:
        recipe = dp.random_prompt(length=length, seed=seed)
        yield str(recipe), recipe.build(lm)
    for text in NATURAL.get(length, ()) if natural else ():
        if len(lm.encode(text, bos=False)) == length:
            recipe = dp.capture(text)
            yield str(recipe), recipe.build(lm)


def measure(lm: dp.LanguageModel, options: argparse.Namespace, done: list[dict[str, Any]]) -> None:
    """Whatever is not in the file yet, one line after another."""
    there = {(line["target"], line["length"], line["method"], line["budget"]) for line in done}
    for length in options.lengths:
        for kind in options.kinds:
            for name, target in targets(lm, length, options.seeds, kind == "natural"):
                for method in options.methods:
                    if (name, length, method, options.teraflop) in there:
                        continue
                    most = options.teraflop * 1e12
                    work_on = soda if method == "soda" else partial(tuned, method=method)
                    ran = work_on(lm, target, length=length, most=most)
                    exact = ran["prompt_ids"] == target.provenance["prompt_ids"]
                    line = {"target": name, "kind": kind, "length": length, "method": method, "model": lm.name,
                            "budget": options.teraflop, "exact": exact, **ran}  # fmt: skip
                    with options.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    shown = f"KL {ran['kl_nats']:.4f}  {'recovered' if exact else '':9}"
                    spent = f"{ran['teraflop']:6.2f} Tflop {ran['seconds']:6.0f} s"
                    print(f"{name:40}{method:8} {shown} {spent}", flush=True)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson)."""
    share, z2 = hits / count, CONFIDENCE**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = CONFIDENCE * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: recovery and KL of each length, kind and method."""
    heads = ("length", "prompts", "method", "recovered", "95 %", "mean KL (nats)", "mean work (Tflop)", "false claims")
    rows = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    groups: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["length"], line["kind"], line["method"]), []).append(line)
    order = {method: place for place, method in enumerate(METHODS)}
    for (length, kind, method), group in sorted(groups.items(), key=lambda item: (*item[0][:2], order[item[0][2]])):
        hits, count = sum(line["exact"] for line in group), len(group)
        low, high = wilson(hits, count)
        kl = sum(line["kl_nats"] for line in group) / count
        work = sum(line["teraflop"] for line in group) / count
        false = sum(line["claimed"] and not line["exact"] for line in group)
        share = f"{hits} of {count} | {low:.0%} to {high:.0%}"
        rows.append(f"| {length} | {kind} | {method} | {share} | {kl:.3f} | {work:.2f} | {false} |")
    return "\n".join(rows)


def seeds_of(text: str) -> list[int]:
    """`0-9` or `3`."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("recovery.jsonl"))
    parser.add_argument("--model", default=dp.DEFAULT_MODEL)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--kinds", nargs="+", choices=("random", "natural"), default=("random", "natural"))
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("0-9"), help="of the random prompts")
    parser.add_argument("--teraflop", type=float, default=TERAFLOP, help="work a target and method")
    parser.add_argument("--show", action="store_true", help="only the table of what the file holds")
    options = parser.parse_args(arguments)

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []

    if not options.show:
        lm = dp.load_model(options.model)
        machine = f"{lm.device}, {torch.get_num_threads()} threads, {platform.machine()}"
        print(f"{options.model}, {lm.dtype}, on {machine}, torch {torch.__version__}", flush=True)
        measure(lm, options, read())
    print(table(read()))


if __name__ == "__main__":
    main()
