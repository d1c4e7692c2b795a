"""`python -m dpexplore diffuse` and `generalise`: distributions over strings from the command line."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import dpexplore as dp
from dpexplore.diffuse.capsule import replay_adapter, save_run
from dpexplore.diffuse.config import PRESETS, AdapterConfig
from dpexplore.diffuse.families import FAMILIES, SIX, SIZES, Task, family
from dpexplore.diffuse.generalise import generalise
from dpexplore.diffuse.matrix import cell_record, matrix_table, place_of, read_cells
from dpexplore.diffuse.metrics import SampleFacts, perplexity
from dpexplore.diffuse.prompts import METHODS, prompt_config
from dpexplore.diffuse.report import Answers, answers, held_out_text, means
from dpexplore.diffuse.training import AdapterRun, AdapterStep
from dpexplore.errors import InputError
from dpexplore.targets import Strings, StringTarget, parse_recipe
from dpexplore.targets.string_files import read_strings
from dpexplore.tuning import Run

ALL_METHODS = ("lora", *METHODS, "none")

PromptsArgument = Annotated[
    list[str] | None,
    typer.Argument(help=f"JSON files or folders of them, recipes strings(…), or families: {', '.join(FAMILIES)}."),
]
ModelOption = Annotated[str, typer.Option(help="Registry name, Hub id, local folder, .gguf file or random:<name>.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")]
SizeOption = Annotated[str, typer.Option(help=f"Of families: {', '.join(SIZES)}.")]


def register(app: typer.Typer) -> None:
    """Put the commands under the program's own."""
    app.command()(diffuse)
    app.command(name="generalise")(generalise_command)


def diffuse(
    prompts: PromptsArgument = None,
    model: ModelOption = dp.DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help=f"{', '.join(ALL_METHODS)}.")] = "lora",
    preset: Annotated[str | None, typer.Option(help=f"Of LoRA: {', '.join(PRESETS)}; of prompts as in tune.")] = None,
    passes: Annotated[int | None, typer.Option(help="LoRA: passes over all requests.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of AdamW.")] = None,
    rank: Annotated[int | None, typer.Option(help="LoRA: rank of the adapter.")] = None,
    batch: Annotated[int | None, typer.Option(help="LoRA: outcomes in one pass of the model.")] = None,
    early_stop: Annotated[bool | None, typer.Option(help="LoRA: end at a loss of (1 + gamma) · H(w).")] = None,
    gamma: Annotated[float | None, typer.Option(help="LoRA: how far above the floor an early stop may stand.")] = None,
    slots: Annotated[str | None, typer.Option(help="Prompts: such as 'soft*3 request hard*2'.")] = None,
    restarts: Annotated[int | None, typer.Option(help="Prompts: initialisations.")] = None,
    steps: Annotated[int | None, typer.Option(help="Prompts: at most so many steps for each.")] = None,
    size: SizeOption = "small",
    samples: Annotated[int, typer.Option(help="Answers drawn before and after; 0 for none.")] = 100,
    seed: Annotated[int, typer.Option(help="Seeds the adapter, the order and the samples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the adapter, or the prompt's capsules.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Score the adapter in this folder again, train nothing.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
) -> None:
    """Bring a model to a distribution over strings, by LoRA or by a prompt. The last line is the metrics."""
    if replay is not None:
        _show_replay(replay, model, device, as_json)
        return
    if method not in ALL_METHODS:
        raise InputError(f"--method is {method!r}; accepted are {', '.join(ALL_METHODS)}.")
    if not 0 <= samples <= 100_000:
        raise InputError(f"--samples is {samples}; a whole number from 0 to 100,000 is accepted.")
    lora = {"passes": passes, "learning_rate": learning_rate, "rank": rank, "batch": batch}
    lora |= {"early_stop": early_stop, "gamma": gamma}
    tuning = {"slots": slots, "restarts": restarts, "steps": steps}
    _check_asked(method, lora, tuning)
    adapter_config = AdapterConfig.preset(preset or "fast", seed=seed, **_given(lora)) if method == "lora" else None
    tasks = collect(prompts or [], size)
    lm = _load(model, device)
    if method in METHODS:
        configs = [
            prompt_config(lm, task.strings, method, slots, preset or "fast", seed=seed, **_given(tuning, but="slots"))
            for task in tasks
        ]
    targets = [task.strings.build(lm) for task in tasks]
    show = _emit if as_json else None
    before = _tell(lm, tasks, targets, samples, seed, "before")
    summary: dict[str, Any] = {"event": "result", "method": method, "model": lm.name, "status": "measured"}
    after = before
    if adapter_config is not None:
        after = _train(lm, tasks, targets, adapter_config, samples, seed, out, show, summary)
    elif method in METHODS:
        after = _tune(lm, tasks, targets, configs, samples, seed, out, show, summary)
    summary |= means(after)
    summary["tasks"] = [now.to_dict() | {"before": then.to_dict()} for now, then in zip(after, before, strict=True)]
    if as_json:
        _emit(summary)
    else:
        _show(before, after, summary)


def generalise_command(
    model: ModelOption = dp.DEFAULT_MODEL,
    size: SizeOption = "small",
    families: Annotated[str, typer.Option(help="Families with commas between them.")] = ",".join(SIX),
    modes: Annotated[str, typer.Option(help="Of untuned, leave-one-out and leave-one-in.")] = "untuned,leave-one-out",
    preset: Annotated[str, typer.Option(help=f"{', '.join(PRESETS)}.")] = "fast",
    passes: Annotated[int, typer.Option(help="At most so many passes over the families trained on.")] = 12,
    seeds: Annotated[int, typer.Option(help="Trainings of each cell, with seeds 0, 1, …")] = 1,
    out: Annotated[Path | None, typer.Option(help="File that keeps each cell; those in it are not made again.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
) -> None:
    """Train on some families of requests and test on others; KL in nats with 95 % intervals over the requests.

    Every cell is printed as it comes; a run that was ended goes on from the cells in --out. Without --json the matrix
    follows, as a Markdown table.
    """
    config = AdapterConfig.preset(preset, passes=passes, early_stop=True)
    if not 1 <= seeds <= 1000:
        raise InputError(f"--seeds is {seeds}; a whole number from 1 to 1,000 is accepted.")
    chosen, wanted = ([name.strip() for name in text.split(",") if name.strip()] for text in (families, modes))
    for mode in wanted:
        if mode not in ("untuned", "leave-one-out", "leave-one-in"):
            raise InputError(f"--modes has {mode!r}; accepted are untuned, leave-one-out and leave-one-in.")
    for name in chosen:
        family(name, size)  # type: ignore[arg-type]  # refuses at once what would be met after a training
    lm = _load(model, device)
    settings = {"model": lm.identity, "size": size, "config": config.to_dict(), "seeds": seeds}
    wanted_cells = [record for record in read_cells(out, settings) if record["mode"] in wanted] if out else []
    records = [record for record in wanted_cells if {*record["trained"], record["tested"]} <= set(chosen)]
    for record in records:
        _show_cell(record, as_json)
    for cell in generalise(
        lm, size=size, families=chosen, modes=wanted, config=config, seeds=range(seeds),  # type: ignore[arg-type]
        known={place_of(record) for record in records}, progress=_progress,
    ):  # fmt: skip
        records.append(cell_record(cell, settings))
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(records[-1], ensure_ascii=False) + "\n")
        _show_cell(records[-1], as_json)
    if not as_json:
        print(matrix_table(records))


def collect(prompts: list[str], size: str = "small") -> list[Task]:
    """The requests that a command line names: families, recipes, files and folders. InputError for anything else."""
    if not prompts:
        raise InputError(
            "No prompts were named; a JSON file, a folder of them, a recipe strings(…) or one of "
            f"{', '.join(FAMILIES)} is accepted."
        )
    tasks: list[Task] = []
    for text in prompts:
        if text in FAMILIES and not Path(text).exists():
            tasks += [Task(f"{text}/{task.name}", task.strings) for task in family(text, size)]  # type: ignore[arg-type]
        elif text.lstrip().startswith("strings("):
            recipe = parse_recipe(text)
            assert isinstance(recipe, Strings)
            tasks.append(Task(recipe.request[:40] or "strings", recipe))
        else:
            tasks += [Task(found.name, found.strings) for found in read_strings(text)]
    return tasks


def _check_asked(method: str, lora: dict[str, Any], tuning: dict[str, Any]) -> None:
    """An option of another method is a mistake, and not to be passed over."""
    foreign = tuning if method == "lora" else lora if method in METHODS else lora | tuning
    for name in _given(foreign):
        owner = "a tuned prompt" if name in tuning else "LoRA"
        raise InputError(f"--{name.replace('_', '-')} belongs to {owner}; with --method {method} it is not accepted.")


def _given(options: dict[str, Any], but: str = "") -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None and name != but}


def _tell(
    lm: dp.LanguageModel,
    tasks: list[Task],
    targets: list[StringTarget],
    samples: int,
    seed: int,
    when: str,
    prompts: list[Any] | None = None,
) -> list[Answers]:
    told = []
    for i, (task, target) in enumerate(zip(tasks, targets, strict=True)):
        _progress(f"{when}: {task.name} ({i + 1} of {len(tasks)})")
        prompt = prompts[i] if prompts else None
        told.append(answers(lm, task.name, target, samples=samples, seed=seed, prompt=prompt))
    return told


Show = Callable[[dict[str, Any]], None] | None


def _train(
    lm: dp.LanguageModel,
    tasks: list[Task],
    targets: list[StringTarget],
    config: AdapterConfig,
    samples: int,
    seed: int,
    out: Path | None,
    show: Show,
    summary: dict[str, Any],
) -> list[Answers]:
    run = AdapterRun(lm, targets, config)
    with _stopping(run.cancel):
        for step in run:
            _show_pass(step, config.passes, show)
    if run.status == "nonfinite":
        raise InputError("The loss is no longer finite; a smaller learning rate is worth a try.")
    summary |= {"status": run.status, "passes": len(run.steps), "seconds": run.seconds, "config": config.to_dict()}
    text = held_out_text()
    summary |= {"perplexity_before": perplexity(lm, text), "perplexity_after": perplexity(run.adapter.lm, text)}
    told = _tell(run.adapter.lm, tasks, targets, samples, seed, "after")
    if out is not None:
        save_run(run, told, out)
        summary["adapter"] = str(out)
    return told


def _tune(
    lm: dp.LanguageModel,
    tasks: list[Task],
    targets: list[StringTarget],
    configs: list[dp.TuneConfig],
    samples: int,
    seed: int,
    out: Path | None,
    show: Show,
    summary: dict[str, Any],
) -> list[Answers]:
    results = []
    for task, target, config in zip(tasks, targets, configs, strict=True):
        run = dp.tune(lm, target, config)
        with _stopping(run.cancel):
            for step in run:
                _show_step(task.name, run, step, show)
        results.append(run.result)
    prompts = [result.prompt_embeds for result in results]
    summary |= {"status": results[-1].status, "seconds": sum(result.seconds for result in results)}
    summary["prompts"] = [{"ids": result.prompt_ids, "text": result.prompt_text} for result in results]
    cost = perplexity(lm, held_out_text())  # the weights are as they were
    summary |= {"perplexity_before": cost, "perplexity_after": cost}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for i, result in enumerate(results):
            text = json.dumps(result.capsule, indent=1, allow_nan=False)
            (out / f"capsule-{i}.json").write_text(text, encoding="utf-8")
        summary["capsules"] = str(out)
    return _tell(lm, tasks, targets, samples, seed, "after", prompts)


@contextmanager
def _stopping(cancel: Callable[[], None]) -> Iterator[None]:
    """A first Ctrl-C stops the run and keeps what it has; a second one leaves."""
    pressed = False

    def stop(_signal: int, _frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _show_pass(step: AdapterStep, passes: int, show: Show) -> None:
    count = len(step.cross_entropy_nats)
    loss, floor = step.loss_nats / count, sum(step.floor_nats) / count
    if show:
        show({"event": "pass", "pass": step.step, "cross_entropy_nats": loss, "floor_nats": floor})
    _progress(f"pass {step.step} of {passes}: cross-entropy {loss:.4f} nats, floor {floor:.4f}")


def _show_step(name: str, run: Run, step: dp.TuneStep, show: Show) -> None:
    if show:
        show({"event": "step", "task": name, "step": step.step, "kl_nats": step.kl_nats})
    _progress(f"{name}: step {step.step} of {run.config.steps}: best KL {step.best_kl_nats:.4f} nats")


def _show(before: list[Answers], after: list[Answers], summary: dict[str, Any]) -> None:
    moments = {"untuned": before} if after is before else {"before": before, "after": after}
    for i, first in enumerate(before):
        fits = [told[i].fit for told in moments.values()]
        kls = " -> ".join(f"{fit.kl_nats:.4f}" for fit in fits)
        masses = " -> ".join(f"{fit.valid_mass:.2%}" for fit in fits)
        print(f"{first.name}: KL {kls} nats, valid mass {masses}")
        for when, told in moments.items():
            _show_facts(when, told[i].facts)
    cost = ""
    if "perplexity_before" in summary:
        cost = f", held-out perplexity {summary['perplexity_before']:.2f} -> {summary['perplexity_after']:.2f}"
    print(
        f"{summary['method']}: cross-entropy {summary['cross_entropy_nats']:.4f} nats, floor "
        f"{summary['floor_nats']:.4f}, KL {summary['kl_nats']:.4f} nats, valid mass {summary['valid_mass']:.2%}{cost}"
    )


def _show_facts(when: str, facts: SampleFacts | None) -> None:
    if facts is None:
        return
    spread = "".join(f", coverage-{n} {value:.1f}" for n, value in facts.coverage.items())
    print(
        f"  {when}: sample entropy {facts.entropy_nats:.3f} nats{spread}, invalid {facts.invalid_share:.1%}, "
        f"never trained on {facts.unseen}"
    )
    if found := facts.biographies:
        print(
            f"  {when}: {found.sketches} biography sketches with {found.first_names} different first names, "
            f"{found.birth_places} places of birth, {found.careers} careers"
        )


def _show_replay(folder: Path, model: str, device: str | None, as_json: bool) -> None:
    found = replay_adapter(_load(model, device), folder)
    if as_json:
        _emit({"event": "replay", **dataclasses.asdict(found), "agrees": found.agrees})
        return
    for name, now, then in zip(found.names, found.kl_nats, found.recorded_kl_nats, strict=True):
        print(f"{name}: KL {now:.6f} nats; the capsule says {then:.6f}")
    print("the two agree within 0.001" if found.agrees else "the two differ by more than 0.001")


def _show_cell(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _emit({name: value for name, value in record.items() if name != "settings"})
        return
    mean, low, high = record["kl_nats"]
    trained = ", ".join(record["trained"]) or "nothing"
    text = f"{record['mode']}: {record['tested']} after {trained}: KL {mean:.3f} nats ({low:.3f} to {high:.3f})"
    print(text, flush=True)


def _load(model: str, device: str | None) -> dp.LanguageModel:
    return dp.load_model(model, device=device, progress=lambda text, _fraction: _progress(text))


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _emit(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False, allow_nan=False), flush=True)
