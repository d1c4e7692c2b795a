"""`dpexplore diffuse`: distributions over strings, by LoRA or by a prompt."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpexplore.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    check_writable,
    emit,
    load,
    progress,
    say,
    stoppable,
    warn,
)
from dpexplore.diffuse.config import PRESETS, SIZES, AdapterConfig
from dpexplore.errors import InputError
from dpexplore.files import reason, write_file
from dpexplore.models.names import DEFAULT_MODEL
from dpexplore.tuning.knobs import METHODS

if TYPE_CHECKING:
    import dpexplore as dp
    from dpexplore.diffuse.families import Task
    from dpexplore.diffuse.metrics import SampleFacts
    from dpexplore.diffuse.report import Answers
    from dpexplore.diffuse.training import AdapterRun, AdapterStep
    from dpexplore.targets import StringTarget

ALL_METHODS = ("lora", *METHODS, "none")
MOST_SAMPLES = 100_000

PromptsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="JSON files, folders of them, recipes strings(…), or families such as numbers and fruits."),
]
SizeOption = Annotated[str, typer.Option(help=f"Length of the families' lists: {', '.join(SIZES)}.")]
LORA, PROMPTS = "LoRA", "A tuned prompt"


def diffuse(
    prompts: PromptsArgument = None,
    model: ModelOption = DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help=f"{', '.join(ALL_METHODS)}.")] = "lora",
    preset: Annotated[
        str | None, typer.Option(help=f"For LoRA {', '.join(PRESETS)}; for a prompt the presets of tune.")
    ] = None,
    passes: Annotated[int | None, typer.Option(help="Passes over all requests.", rich_help_panel=LORA)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of AdamW.", rich_help_panel=LORA)] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter.", rich_help_panel=LORA)] = None,
    batch: Annotated[int | None, typer.Option(help="Outcomes in one pass of the model.", rich_help_panel=LORA)] = None,
    early_stop: Annotated[
        bool | None, typer.Option(help="Stop at a loss of (1 + gamma) · H(w).", rich_help_panel=LORA)
    ] = None,
    gamma: Annotated[
        float | None, typer.Option(help="How far above the floor an early stop may be.", rich_help_panel=LORA)
    ] = None,
    slots: Annotated[str | None, typer.Option(help="Such as 'soft*3 request hard*2'.", rich_help_panel=PROMPTS)] = None,
    restarts: Annotated[int | None, typer.Option(help="Initialisations.", rich_help_panel=PROMPTS)] = None,
    steps: Annotated[int | None, typer.Option(help="Most steps of each restart.", rich_help_panel=PROMPTS)] = None,
    size: SizeOption = "small",
    samples: Annotated[int, typer.Option(help="Answers drawn before and after; 0 for none.")] = 100,
    seed: Annotated[int, typer.Option(help="Seeds the adapter, the order and the samples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the adapter, or the prompt's capsules.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Score the adapter in this folder again; train nothing.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Bring a model to a distribution over strings, by LoRA or by a prompt. The last line is the metrics."""
    if replay is not None:
        _show_replay(replay, model, device, dtype, as_json)
        return
    if method not in ALL_METHODS:
        raise InputError(f"--method is {method!r}; use one of {', '.join(ALL_METHODS)}.")
    if not 0 <= samples <= MOST_SAMPLES:
        raise InputError(f"--samples is {samples}; give a whole number from 0 to {MOST_SAMPLES:,}.")
    lora = {"passes": passes, "learning_rate": learning_rate, "rank": rank, "batch": batch}
    lora |= {"early_stop": early_stop, "gamma": gamma}
    tuning = {"slots": slots, "restarts": restarts, "steps": steps}
    _check_asked(method, lora, tuning)
    adapter_config = AdapterConfig.preset(preset or "fast", seed=seed, **_given(lora)) if method == "lora" else None
    check_writable(out, folder=True)
    from dpexplore.diffuse.collect import collect
    from dpexplore.diffuse.prompts import prompt_config
    from dpexplore.diffuse.report import means

    tasks = collect(prompts or [], size)
    lm = load(model, device, dtype)
    if method in METHODS:
        configs = [
            prompt_config(lm, task.strings, method, slots, preset or "fast", seed=seed, **_given(tuning, but="slots"))
            for task in tasks
        ]
    targets = [task.strings.build(lm) for task in tasks]
    show = emit if as_json else None
    run = None
    if adapter_config is not None:  # what cannot be trained is known before anything is measured
        from dpexplore.diffuse.training import AdapterRun

        run = AdapterRun(lm, targets, adapter_config)
    before = _measure(lm, tasks, targets, samples, seed, "before")
    summary: dict[str, Any] = {"event": "result", "method": method, "model": lm.name, "status": "measured"}
    after = before
    if run is not None:
        after = _train(run, tasks, samples, seed, out, show, summary)
    elif method in METHODS:
        after = _tune(lm, tasks, targets, configs, samples, seed, out, show, summary)
    summary |= means(after)
    summary["tasks"] = [now.to_dict() | {"before": then.to_dict()} for now, then in zip(after, before, strict=True)]
    if as_json:
        emit(summary)
    else:
        _show(before, after, summary)


def _check_asked(method: str, lora: dict[str, Any], tuning: dict[str, Any]) -> None:
    """InputError for an option that belongs to another method."""
    foreign = tuning if method == "lora" else lora if method in METHODS else lora | tuning
    for name in _given(foreign):
        owner = "a tuned prompt" if name in tuning else "LoRA"
        raise InputError(
            f"--{name.replace('_', '-')} belongs to {owner}; remove it, or choose another --method than {method}."
        )


def _given(options: dict[str, Any], but: str = "") -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None and name != but}


def _measure(
    lm: dp.LanguageModel,
    tasks: list[Task],
    targets: list[StringTarget],
    samples: int,
    seed: int,
    when: str,
    prompts: list[Any] | None = None,
) -> list[Answers]:
    from dpexplore.diffuse.report import answers

    measured = []
    for i, (task, target) in enumerate(zip(tasks, targets, strict=True)):
        progress(f"{when}: {task.name} ({i + 1} of {len(tasks)})")
        prompt = prompts[i] if prompts else None
        measured.append(answers(lm, task.name, target, samples=samples, seed=seed, prompt=prompt))
    return measured


Show = Callable[[dict[str, Any]], None] | None


def _train(
    run: AdapterRun,
    tasks: list[Task],
    samples: int,
    seed: int,
    out: Path | None,
    show: Show,
    summary: dict[str, Any],
) -> list[Answers]:
    from dpexplore.diffuse.capsule import save_run
    from dpexplore.diffuse.metrics import perplexity
    from dpexplore.diffuse.report import held_out_text

    lm, config = run.lm, run.config
    with stoppable(run.cancel):
        for step in run:
            _show_pass(step, config.passes, show)
    if run.status == "nonfinite":
        raise InputError("The loss is no longer finite; try a smaller learning rate.")
    summary |= {"status": run.status, "passes": len(run.steps), "seconds": run.seconds, "config": config.to_dict()}
    text = held_out_text()
    summary |= {"perplexity_before": perplexity(lm, text), "perplexity_after": perplexity(run.adapter.lm, text)}
    after = _measure(run.adapter.lm, tasks, run.targets, samples, seed, "after")
    if out is not None:
        summary["adapter"] = str(_keep(lambda folder: save_run(run, after, folder), out))
    return after


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
    import dpexplore as dp
    from dpexplore.diffuse.metrics import perplexity
    from dpexplore.diffuse.report import held_out_text

    results = []
    for task, target, config in zip(tasks, targets, configs, strict=True):
        run = dp.tune(lm, target, config)
        with stoppable(run.cancel):
            for step in run:
                _show_step(task.name, run, step, show)
        results.append(run.result)
    prompts = [result.prompt_embeds for result in results]
    summary |= {"status": results[-1].status, "seconds": sum(result.seconds for result in results)}
    summary["prompts"] = [{"ids": result.prompt_ids, "text": result.prompt_text} for result in results]
    cost = perplexity(lm, held_out_text())  # the weights are as they were
    summary |= {"perplexity_before": cost, "perplexity_after": cost}
    if out is not None:
        summary["capsules"] = str(_keep(lambda folder: _write_capsules(results, folder), out))
    return _measure(lm, tasks, targets, samples, seed, "after", prompts)


def _keep(write: Callable[[Path], None], out: Path) -> Path:
    """Write what was made into a folder; into a temporary one, which is named, if that fails after all."""
    try:
        write(out)
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix="dpexplore-")) / out.name
        warn(f"{out} could not be written ({reason(error)}); the result is in {folder}.")
        write(folder)
        return folder
    return out


def _write_capsules(results: list[dp.TuneResult], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, result in enumerate(results):
        write_file(folder / f"capsule-{i}.json", json.dumps(result.capsule, indent=1, allow_nan=False))


def _show_pass(step: AdapterStep, passes: int, show: Show) -> None:
    count = len(step.cross_entropy_nats)
    loss, floor = step.loss_nats / count, sum(step.floor_nats) / count
    if show:
        show({"event": "pass", "pass": step.step, "cross_entropy_nats": loss, "floor_nats": floor})
    progress(f"pass {step.step} of {passes}: cross-entropy {loss:.4f} nats, floor {floor:.4f}")


def _show_step(name: str, run: dp.Run, step: dp.TuneStep, show: Show) -> None:
    if show:
        show({"event": "step", "task": name, "step": step.step, "kl_nats": step.kl_nats})
    progress(f"{name}: step {step.step} of {run.config.most_steps}: best KL {step.best_kl_nats:.4f} nats")


def _show(before: list[Answers], after: list[Answers], summary: dict[str, Any]) -> None:
    moments = {"untuned": before} if after is before else {"before": before, "after": after}
    for i, first in enumerate(before):
        fits = [answers[i].fit for answers in moments.values()]
        kls = " -> ".join(f"{fit.kl_nats:.4f}" for fit in fits)
        masses = " -> ".join(f"{fit.valid_mass:.2%}" for fit in fits)
        say(f"{first.name}: KL {kls} nats, valid mass {masses}")
        for when, answers in moments.items():
            _show_facts(when, answers[i].facts)
    cost = ""
    if "perplexity_before" in summary:
        cost = f", held-out perplexity {summary['perplexity_before']:.2f} -> {summary['perplexity_after']:.2f}"
    say(
        f"{summary['method']}: cross-entropy {summary['cross_entropy_nats']:.4f} nats, floor "
        f"{summary['floor_nats']:.4f}, KL {summary['kl_nats']:.4f} nats, valid mass {summary['valid_mass']:.2%}{cost}"
    )


def _show_facts(when: str, facts: SampleFacts | None) -> None:
    if facts is None:
        return
    spread = "".join(f", coverage-{n} {value:.1f}" for n, value in facts.coverage.items())
    say(
        f"  {when}: sample entropy {facts.entropy_nats:.3f} nats{spread}, invalid {facts.invalid_share:.1%}, "
        f"never trained on {facts.unseen}"
    )
    if found := facts.biographies:
        say(
            f"  {when}: {found.sketches} biography sketches with {found.first_names} different first names, "
            f"{found.birth_places} places of birth, {found.careers} careers"
        )


def _show_replay(folder: Path, model: str, device: str | None, dtype: str | None, as_json: bool) -> None:
    from dpexplore.diffuse.capsule import replay_adapter

    found = replay_adapter(load(model, device, dtype), folder)
    if as_json:
        emit({"event": "replay", **dataclasses.asdict(found), "agrees": found.agrees})
        return
    for name, now, then in zip(found.names, found.kl_nats, found.recorded_kl_nats, strict=True):
        say(f"{name}: KL {now:.6f} nats; the capsule says {then:.6f}")
    say("the two agree within 0.001" if found.agrees else "the two differ by more than 0.001")
    if found.note is not None:
        say(found.note)
