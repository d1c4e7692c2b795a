"""How good the tuners are: same model, targets, seeds and counted evaluations for all methods.

    python -m tests.benchmarks.tuners                     # all tables, a long while
    python -m tests.benchmarks.tuners soft --restarts 3
    python -m tests.benchmarks.tuners hard --targets 4 --evaluations 1000

Tables by evaluations do not depend on what else the machine does. Those by wall time measure the methods in turn,
target by target, so that a machine whose speed drifts drifts for all.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import statistics
import time

import torch

import dpexplore as dp
from dpexplore.targets import random_prompt
from dpexplore.tuning.init.lookup import closest_tokens
from dpexplore.tuning.objectives.prefix import PAYS_FOR, PAYS_FROM, Prefix, shared_log_probs

BITS = (2, 4, 7, 10, 13)
MARKS = (100, 200, 300)
LENGTH = 5
RECOVERED_NATS = 0.01
PRESETS = ("paper", "fast", "thorough")
TABLES = ("soft", "hard", "beginnings", "nanogcg", "overhead", "cache")

SoftCells = dict[tuple[str, int], list[float]]
"""KL of each restart, in nats, by preset and count of evaluations."""


def best_by(run: dp.Run, evaluations: int) -> list[float]:
    """Lowest KL of each restart once it had used so many evaluations."""
    best = [float("inf")] * run.config.restarts
    for step in run.steps:
        for restart, (kl, used) in enumerate(zip(step.kl_nats, step.evaluations, strict=True)):
            if kl is not None and used <= evaluations:
                best[restart] = min(best[restart], kl)
    return best


def soft_runs(lm: dp.LanguageModel, options: argparse.Namespace, bits: float, marks: list[int]) -> SoftCells:
    """KL of each restart of each preset at each mark, for one vanilla target; all rows in one engine.

    Every mark is a run of its own, told its budget; the paper preset does the same whatever its budget is.
    """
    engine = dp.Engine(lm)
    target = dp.entropy(bits=bits, seed=0).build(lm)
    runs: dict[tuple[str, int], dp.Run] = {}
    for preset in options.presets:
        for mark in marks[-1:] if preset == "paper" else marks:
            limits = {"steps": mark, "evaluations": mark, "restarts": options.restarts}
            config = dp.TuneConfig.preset(preset, method="soft", seed=options.seed, **limits)
            runs[preset, mark] = engine.submit(target, config)
    while engine.step():
        pass
    return {
        (preset, mark): best_by(runs[preset, marks[-1] if preset == "paper" else mark], mark)
        for preset in options.presets
        for mark in marks
    }


def soft_table(lm: dp.LanguageModel, options: argparse.Namespace) -> None:
    """Vanilla targets: every preset at the same counts of evaluations."""
    marks = [mark for mark in MARKS if mark <= options.soft_evaluations] or [options.soft_evaluations]
    print(f"soft: KL in nats over {options.restarts} restarts, mean/best, after so many evaluations")
    print(f"  {'bits':>4} {'preset':9}" + "".join(f"{mark:>16}" for mark in marks), flush=True)
    found: dict[float, SoftCells] = {}
    mean = statistics.mean
    for bits in options.bits:
        cells = found[bits] = soft_runs(lm, options, bits, marks)
        for preset in options.presets:
            shown = "".join(
                f"{f'{mean(cells[preset, mark]):.3f}/{min(cells[preset, mark]):.3f}':>16}" for mark in marks
            )
            print(f"  {bits:>4} {preset:9}{shown}", flush=True)
    for preset in options.presets:
        if preset == "paper" or "paper" not in options.presets:
            continue
        means = sum(mean(cells[preset, m]) < mean(cells["paper", m]) for cells in found.values() for m in marks)
        bests = sum(mean(cells[preset, marks[-1]]) < min(cells["paper", marks[-1]]) for cells in found.values())
        print(f"  {preset}: mean below the paper's mean in {means} of {len(found) * len(marks)} cells")
        print(f"  {preset}: mean below the paper's best at {marks[-1]} in {bests} of {len(found)}", flush=True)


def timed(lm: dp.LanguageModel, target: dp.Target, config: dp.TuneConfig) -> tuple[float, float]:
    """KL in nats and seconds of a run."""
    start = time.perf_counter()
    run = dp.tune(lm, target, config)
    list(run)
    return run.result.kl_nats, time.perf_counter() - start


def paper_for(lm: dp.LanguageModel, target: dp.Target, seconds: float, seed: int) -> float:
    """The paper preset's best KL in so many seconds: begun again with another seed until they are over."""
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        run = dp.tune(lm, target, dp.TuneConfig.preset("paper", method="hard", length=LENGTH, seed=seed))
        for step in run:
            best = min(best, step.best_kl_nats)
            if time.perf_counter() - start >= seconds:
                run.cancel()
        seed += 1
    return best


def hard_table(lm: dp.LanguageModel, options: argparse.Namespace) -> None:
    """Targets captured from random tokens: the search, plain GCG at equal evaluations, the paper at equal wall time."""
    count = options.evaluations
    shared = {"method": "hard", "length": LENGTH, "restarts": 1, "seed": options.seed, "patience": None}
    limits = {"steps": count, "evaluations": count}
    search = dp.TuneConfig.preset("thorough", init="lookup", **shared, **limits)  # pyright: ignore[reportArgumentType]
    start = time.perf_counter()
    closest_tokens(lm, torch.full((lm.vocab_size,), 1 / lm.vocab_size))
    print(f"the vocabulary's states, once for a model and kept: {time.perf_counter() - start:.0f} s, not counted below")
    gcg = dp.TuneConfig(hard_rule="gcg", candidates=64, **shared, **limits)  # pyright: ignore[reportArgumentType]
    print(f"hard: KL in nats at {count:,} evaluations, one restart, the paper's rule for as long as the search took")
    print(f"  {'target':>6}{'search':>10}{'gcg':>10}{'paper':>10}{'search s':>10}{'gcg s':>8}")
    rows: list[tuple[float, float, float]] = []
    for seed in range(options.targets):
        target = random_prompt(length=LENGTH, seed=seed).build(lm)
        ours, seconds = timed(lm, target, search)
        plain, plain_seconds = timed(lm, target, gcg)
        paper = paper_for(lm, target, seconds, options.seed)
        rows.append((ours, plain, paper))
        print(f"  {seed:>6}{ours:>10.4f}{plain:>10.4f}{paper:>10.4f}{seconds:>10.1f}{plain_seconds:>8.1f}", flush=True)
    ours, plain, paper = (statistics.mean(column) for column in zip(*rows, strict=True))
    print(f"  {'mean':>6}{ours:>10.4f}{plain:>10.4f}{paper:>10.4f}")
    print(f"  search over paper {ours / paper:.2f}, search over gcg {ours / plain:.2f}")
    for name, kls in zip(("search", "gcg", "paper"), zip(*rows, strict=True), strict=True):
        print(f"  {name}: below {RECOVERED_NATS} nats in {sum(kl < RECOVERED_NATS for kl in kls)} of {len(rows)}")


def beginnings_table(lm: dp.LanguageModel, options: argparse.Namespace) -> None:
    """Targets captured from random tokens: the search from each kind of beginning, at equal evaluations."""
    inits, count = options.inits, options.evaluations
    print(
        f"beginnings: KL in nats of the search at {count:,} evaluations, one restart, what finds the beginning included"
    )
    print(f"  {'target':>6}" + "".join(f"{init:>10}" for init in inits), flush=True)
    rows: list[list[float]] = []
    for seed in range(options.targets):
        target = random_prompt(length=LENGTH, seed=seed).build(lm)
        shared = {"length": LENGTH, "restarts": 1, "seed": options.seed, "patience": None, "steps": count}
        configs = [
            dp.TuneConfig.preset("thorough", method="hard", init=init, evaluations=count, **shared) for init in inits
        ]
        rows.append([timed(lm, target, config)[0] for config in configs])
        print(f"  {seed:>6}" + "".join(f"{kl:>10.4f}" for kl in rows[-1]), flush=True)
    print(f"  {'mean':>6}" + "".join(f"{statistics.mean(column):>10.4f}" for column in zip(*rows, strict=True)))


def nanogcg_table(lm: dp.LanguageModel, options: argparse.Namespace) -> None:
    """One-token targets in the chat template: nanoGCG's loss is our KL to a one-hot target."""
    try:
        nanogcg = importlib.import_module("nanogcg")
    except ImportError:
        print("nanogcg: not installed; `pip install --no-deps nanogcg==0.3.0` brings it for this table")
        return
    steps, width = options.nano_steps, 64
    print(
        f"nanogcg: loss in nats and seconds, {steps} steps of {width} candidates, {LENGTH} tokens in the chat template"
    )
    for word in ("Sure", "Paris", "blue"):
        token = lm.encode(word, bos=False)[0]
        probs = torch.zeros(lm.vocab_size, dtype=torch.float64)
        probs[token] = 1
        config = dp.TuneConfig.preset(
            "fast",
            method="hard",
            length=LENGTH,
            restarts=1,
            chat=True,
            patience=None,
            steps=steps * (width + 1),
            evaluations=steps * (width + 1),
        )
        ours, seconds = timed(lm, dp.Target(probs, f"one-hot {word}"), config)
        start = time.perf_counter()
        theirs = nanogcg.run(
            lm.model,
            lm.tokenizer,
            "{optim_str}",
            lm.token_text(token),
            nanogcg.GCGConfig(
                num_steps=steps,
                search_width=width,
                topk=128,
                optim_str_init=" ".join(["x"] * LENGTH),
                use_prefix_cache=False,
                seed=options.seed,
                verbosity="ERROR",
            ),
        )
        print(f"  {word:8} search {ours:8.4f} in {seconds:6.1f} s   nanoGCG {theirs.best_loss:8.4f}", end="")
        print(f" in {time.perf_counter() - start:6.1f} s", flush=True)


def bare_pass(lm: dp.LanguageModel, target: dp.Target, size: int, grad: bool) -> None:
    """Plain transformers on so many prompts."""
    probs = target.probs.float().to(lm.device)
    ids = lm.ordinary_ids[:LENGTH].repeat(size, 1).to(lm.device)
    with torch.set_grad_enabled(grad):
        embeds = lm.embed(ids).detach().requires_grad_(grad)
        logits = lm.model(inputs_embeds=embeds, logits_to_keep=1, use_cache=False).logits[:, -1]
        loss = -(probs * logits.float().log_softmax(-1)).sum()
        if grad:
            torch.autograd.grad(loss, embeds)


def overhead_table(lm: dp.LanguageModel, options: argparse.Namespace) -> None:
    """A hard step of the engine over bare passes of the sizes that it made."""
    target = random_prompt(length=LENGTH, seed=0).build(lm)
    passes: list[tuple[int, bool]] = []
    seen = lm.model.register_forward_pre_hook(
        lambda _, __, given: passes.append((len(given["inputs_embeds"]), torch.is_grad_enabled())), with_kwargs=True
    )
    print("overhead: seconds of an engine step over the bare passes it makes, medians of interleaved pairs")
    for rule in ("gcg", "search"):
        for rows in (1, 5):
            shared = {"method": "hard", "hard_rule": rule, "restarts": rows, "patience": None, "steps": 10**6}
            engine = dp.Engine(lm)
            engine.submit(target, dp.TuneConfig(length=LENGTH, candidates=64, **shared))
            engine.step()
            ratios = []
            for _ in range(options.pairs):
                passes.clear()
                start = time.perf_counter()
                engine.step()
                step = time.perf_counter() - start
                made = list(passes)
                start = time.perf_counter()
                for size, grad in made:
                    bare_pass(lm, target, size, grad)
                ratios.append(step / (time.perf_counter() - start))
            print(f"  {rule:6} {rows} rows  ratio {statistics.median(ratios):.3f}", flush=True)
    seen.remove()


def cache_table(lm: dp.LanguageModel, options: argparse.Namespace) -> None:
    """Candidates behind a common prefix: a pass that computes the prefix once over one that does so in each of them."""
    count = options.candidates
    print(f"cache: seconds of a pass of {count} candidates, {LENGTH} tokens behind a common prefix; what a cache makes")
    print(f"  the engine uses it from {PAYS_FROM} positions and {PAYS_FOR} candidates on")
    print(f"  {'prefix':>6}{'whole s':>10}{'ratio':>8}{'log q':>10}", flush=True)
    for length in (1, 2, 4, 8, 16, 32, 64):
        picks = torch.randint(
            len(lm.ordinary_ids), (count, length + LENGTH), generator=torch.Generator().manual_seed(0)
        )
        ids = lm.ordinary_ids[picks].to(lm.device)
        ids[:, :length] = ids[0, :length]
        prefix = Prefix(torch.zeros(count, dtype=torch.long, device=lm.device), length)
        with torch.no_grad():
            embeds = lm.embed(ids)
            apart = float((lm.log_probs(embeds) - shared_log_probs(lm, embeds, prefix)).abs().max())
            wholes, ratios = [], []
            for _ in range(options.pairs):
                start = time.perf_counter()
                lm.log_probs(embeds).sum().item()
                wholes.append(time.perf_counter() - start)
                start = time.perf_counter()
                shared_log_probs(lm, embeds, prefix).sum().item()
                ratios.append((time.perf_counter() - start) / wholes[-1])
        print(
            f"  {length:>6}{statistics.median(wholes):>10.3f}{statistics.median(ratios):>8.2f}{apart:>10.0e}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help=f"which of {', '.join(TABLES)}; default: all")
    parser.add_argument("--model", default=dp.DEFAULT_MODEL)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bits", type=float, nargs="+", default=BITS, help="soft: entropies of the targets")
    parser.add_argument("--presets", nargs="+", default=["paper", "fast"], choices=PRESETS)
    parser.add_argument("--restarts", type=int, default=5, help="soft: restarts of every preset")
    parser.add_argument("--soft-evaluations", type=int, default=300)
    parser.add_argument("--targets", type=int, default=10, help="hard: captured targets")
    parser.add_argument("--evaluations", type=int, default=2500, help="hard: evaluations of search and gcg")
    parser.add_argument("--inits", nargs="+", default=["vocab", "lookup", "soft"], help="beginnings: which of them")
    parser.add_argument("--nano-steps", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=7, help="overhead, cache: interleaved pairs")
    parser.add_argument("--candidates", type=int, default=64, help="cache: prompts of a pass")
    options = parser.parse_args()
    lm = dp.load_model(options.model)
    machine = f"{lm.device}, {torch.get_num_threads()} threads, {platform.machine()}"
    print(f"{options.model}, {lm.dtype}, on {machine}, torch {torch.__version__}")
    tables = {
        "soft": soft_table,
        "hard": hard_table,
        "beginnings": beginnings_table,
        "nanogcg": nanogcg_table,
        "overhead": overhead_table,
        "cache": cache_table,
    }
    for name in options.tables or TABLES:
        tables[name](lm, options)


if __name__ == "__main__":
    main()
