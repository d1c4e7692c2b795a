"""The command line's `sweep` and `figures`."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from dpexplore.errors import InputError
from dpexplore.experiments.executors import Executor, LocalExecutor
from dpexplore.experiments.spec import Spec, load_spec
from dpexplore.experiments.store import Store
from dpexplore.experiments.sweep import ModelPlan, SweepReport, plan_sweep, run_sweep

SOME_FAILED = 1
INTERRUPTED = 130
EXECUTORS = ("local", "ray")


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command()(sweep)
    app.command()(figures)


def sweep(
    spec: Annotated[str, typer.Argument(help="A YAML file, or a shipped spec such as fig1, fig1-small, fig1-paper.")],
    store: Annotated[Path, typer.Option(help="Folder of the results; it may serve many sweeps.")] = Path("runs"),
    size: Annotated[str | None, typer.Option(help="paper or small; default: what the name says, else small.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Tune this model in the spec's models' place; repeat it.")
    ] = None,
    executor: Annotated[str, typer.Option(help="local, or ray for every GPU of a cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Ray's address; default: a cluster of this machine only.")] = None,
    workers: Annotated[int | None, typer.Option(help="Ray: so many workers; default one a GPU, or one a CPU.")] = None,
    rows: Annotated[int | None, typer.Option(help="At most so many prompts in a batch; default: what fits.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many problems, how long.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")] = False,
) -> int:
    """Run the problems of a figure; the same command again continues. Exit code 1: some could not be computed."""
    chosen = _with_models(load_spec(spec, size), model)
    if dry_run:
        _show_plan(chosen, plan_sweep(chosen, store, device), as_json)
        return 0
    for name, value in (("workers", workers), ("rows", rows)):
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}; a whole number from 1 is accepted.")
    stopping = _StopOnSignal()
    runner = _executor(executor, address, workers, device, rows)
    teller = _Teller(as_json)
    try:
        report = run_sweep(chosen, Store(store), runner, tell=teller.tell, stop=stopping)
    finally:
        stopping.restore()
        runner.close()
    teller.end(report)
    return INTERRUPTED if report.stopped else SOME_FAILED if report.failed else 0


def figures(
    store: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="Folder for the figures, made if need be.")] = Path("figures"),
    formats: Annotated[str, typer.Option(help="Of html, png, svg, json; CSV is always there.")] = "html,png,svg",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")] = False,
) -> int:
    """Draw everything there is data for (HTML, PNG, SVG, CSV), and a table of the paper's claims."""
    from dpexplore.experiments.export import write_figures

    written = write_figures(Store(store), out, [each.strip() for each in formats.split(",") if each.strip()])
    for figure in written.figures:
        if as_json:
            print(json.dumps({"event": "figure", **figure}, ensure_ascii=False), flush=True)
        else:
            print(f"{figure['name']}: {figure['title']} ({figure['coverage']})")
    for claim in written.claims:
        if as_json:
            print(json.dumps({"event": "claim", **claim}, ensure_ascii=False), flush=True)
        else:
            print(f"{claim['verdict']:13} {claim['claim']}: {claim['finding']}")
    if written.note:
        print(written.note, file=sys.stderr)
    if not as_json:
        print(f"Written to {out}.")
    return 0


def _with_models(spec: Spec, models: list[str] | None) -> Spec:
    if not models:
        return spec
    groups = tuple(dataclasses.replace(group, models=tuple(models)) for group in spec.groups)
    return dataclasses.replace(spec, groups=groups)


def _executor(name: str, address: str | None, workers: int | None, device: str | None, rows: int | None) -> Executor:
    if name not in EXECUTORS:
        raise InputError(f"--executor is {name!r}; local and ray are accepted.")
    if name == "ray":
        from dpexplore.experiments.ray_executor import RayExecutor

        return RayExecutor(address, workers, device, rows)
    if address or workers:
        raise InputError("--address and --workers go with --executor ray.")
    return LocalExecutor(device, rows)


class _StopOnSignal:
    """Ctrl-C (or SIGTERM) asks once for an orderly end; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self._asked = False
        self._before = {each: signal.signal(each, self._ask) for each in (signal.SIGINT, signal.SIGTERM)}

    def __call__(self) -> bool:
        return self._asked

    def restore(self) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _ask(self, _signal: int, _frame: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


class _Teller:
    """Progress on standard error, or as JSON on standard output; not more often than a reader can follow."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._live = sys.stderr.isatty() and not as_json
        self._pause = 0.5 if self._live else 1.0 if as_json else 10.0
        self._last: tuple[str, int] = ("", -1)
        self._told_at = 0.0
        self._failed = 0

    def tell(self, report: SweepReport) -> None:
        for sentence in report.failed[self._failed :]:
            self._line(f"failed: {sentence}", {"event": "failed", "why": sentence})
        self._failed = len(report.failed)
        now, here = time.monotonic(), (report.model, report.done)
        if now - self._told_at < self._pause and here[0] == self._last[0]:
            return
        if report.set_aside and not self._last[0]:
            for path in report.set_aside:
                told = f"A damaged shard was set aside as {path}; its problems are computed again."
                self._line(told, {"event": "set_aside", "path": path})
        self._told_at, self._last = now, here
        if self._as_json:
            print(json.dumps(progress_event(report)), flush=True)
        elif self._live:
            print(f"\r\033[K{progress_text(report)}", end="", file=sys.stderr, flush=True)
        else:
            print(progress_text(report), file=sys.stderr, flush=True)

    def end(self, report: SweepReport) -> None:
        for sentence in report.failed[self._failed :]:
            self._line(f"failed: {sentence}", {"event": "failed", "why": sentence})
        state = "stopped; the same command continues" if report.stopped else "finished"
        told = f"{report.sweep} {state}: {report.computed_in_all:,} problems computed now, {len(report.failed)} failed."
        record = {
            "event": "end",
            "stopped": report.stopped,
            "computed": report.computed_in_all,
            "failed": report.failed,
        }
        self._line(told, record)

    def _line(self, text: str, record: dict[str, Any]) -> None:
        if self._as_json:
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            print(("\r\033[K" if self._live else "") + text, file=sys.stderr, flush=True)


def progress_text(report: SweepReport) -> str:
    """One line: how many problems are done, how fast, how long it will take."""
    of = f" (model {report.model_number} of {report.models})" if report.models > 1 else ""
    if not report.total:
        return f"{report.sweep}: preparing {report.model}{of}"
    rate = f", {report.per_minute:.1f} a minute" if report.per_minute else ""
    left = f", {duration(report.seconds_left)} left" if report.seconds_left is not None else ""
    return f"{report.sweep}, {report.model}{of}: {report.done:,} of {report.total:,} problems{rate}{left}"


def progress_event(report: SweepReport) -> dict[str, Any]:
    """The same for a program."""
    fields = (
        "sweep",
        "model",
        "model_number",
        "models",
        "total",
        "done",
        "before",
        "rows",
        "per_minute",
        "seconds_left",
    )
    return {"event": "progress", **{name: getattr(report, name) for name in fields}}


def duration(seconds: float) -> str:
    """Rounded the way a person would: 40 s, 12 min, 3.5 h, 2.1 days."""
    for limit, unit, size, digits in ((90, "s", 1, 0), (90 * 60, "min", 60, 0), (36 * 3600, "h", 3600, 1)):
        if seconds < limit:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def _show_plan(spec: Spec, plans: list[ModelPlan], as_json: bool) -> None:
    for plan in plans:
        if as_json:
            print(json.dumps({"event": "plan", "sweep": spec.name, **dataclasses.asdict(plan)}), flush=True)
        elif plan.memory_bytes is None or plan.seconds is None:
            print(f"{plan.model}: nothing is known of this model before it is fetched")
        else:
            print(
                f"{plan.model}: {plan.problems:,} problems ({plan.done:,} done), at most {plan.row_steps:,} steps of "
                f"one prompt; {plan.memory_bytes / 2**30:.1f} GiB or more; at most about {duration(plan.seconds)} here"
            )
    if not as_json:
        print(f"{spec.name}: {spec.title}. Nothing was computed.")
