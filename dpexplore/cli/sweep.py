"""`dpexplore sweep`."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpexplore.cli.common import (
    INTERRUPTED,
    AcceptOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    accept,
    emit,
    progress,
    say,
    stoppable,
    warn,
)
from dpexplore.errors import InputError

if TYPE_CHECKING:
    from dpexplore.experiments.executors import Executor
    from dpexplore.experiments.spec import Spec
    from dpexplore.experiments.sweep import ModelPlan, SweepReport

SOME_FAILED = 1
EXECUTORS = ("local", "ray")


def sweep(
    spec: Annotated[str, typer.Argument(help="A YAML file, or a shipped spec such as fig1, fig1-small, fig1-paper.")],
    store: Annotated[Path, typer.Option(help="Folder of the results; sweeps can share one.")] = Path("runs"),
    size: Annotated[str | None, typer.Option(help="paper or small; default: what the name says, else small.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Tune this model instead of the spec's; repeat it for more.")
    ] = None,
    executor: Annotated[str, typer.Option(help="local, or ray for every GPU of a cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Ray's address; default: a cluster of this machine only.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Ray: number of workers; default: one a GPU, or one a CPU.")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Most prompts in a batch; default: what fits.")] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    accept_terms: AcceptOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many problems there are, and how long they take.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Run the problems of a figure; running it again continues. Exit code 1 if some could not be computed."""
    from dpexplore.experiments import Store, load_spec, plan_sweep, run_sweep

    chosen = _with_models(load_spec(spec, size), model, dtype)
    if accept_terms:
        for name in chosen.models + chosen.sources:
            accept(name)
    if dry_run:
        _show_plan(chosen, plan_sweep(chosen, store, device), as_json)
        return 0
    for name, value in (("workers", workers), ("rows", rows)):
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}; give a whole number, 1 or more.")
    asked = threading.Event()
    reporter = _Reporter(as_json)
    with stoppable(asked.set), contextlib.closing(_executor(executor, address, workers, device, rows)) as runner:
        report = run_sweep(chosen, Store(store), runner, tell=reporter.tell, stop=asked.is_set)
    reporter.end(report)
    return INTERRUPTED if report.stopped else SOME_FAILED if report.failed else 0


def _with_models(spec: Spec, models: list[str] | None, dtype: str | None) -> Spec:
    """The spec with other models, if any are named, each in the dtype if one is given."""
    from dpexplore.models.precision import with_dtype

    groups = tuple(
        dataclasses.replace(group, models=tuple(with_dtype(model, dtype) for model in models or group.models))
        for group in spec.groups
    )
    return dataclasses.replace(spec, groups=groups)


def _executor(name: str, address: str | None, workers: int | None, device: str | None, rows: int | None) -> Executor:
    if name not in EXECUTORS:
        raise InputError(f"--executor is {name!r}; use local or ray.")
    from dpexplore.experiments.executors import LocalExecutor

    if name == "ray":
        from dpexplore.experiments.ray_executor import RayExecutor

        return RayExecutor(address, workers, device, rows)
    if address or workers:
        raise InputError("--address and --workers go with --executor ray.")
    return LocalExecutor(device, rows)


class _Reporter:
    """Progress on standard error, or as JSON on standard output; not more often than a reader can follow."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._pause = 1.0 if as_json else 0.5 if sys.stderr.isatty() else 10.0
        self._last: tuple[str, int] = ("", -1)
        self._told_at = 0.0
        self._failed = 0

    def tell(self, report: SweepReport) -> None:
        from dpexplore.experiments.progress import progress_event, progress_text

        self._failures(report)
        now, here = time.monotonic(), (report.model, report.done)
        if now - self._told_at < self._pause and here[0] == self._last[0]:
            return
        if report.set_aside and not self._last[0]:
            for path in report.set_aside:
                text = f"A damaged shard was set aside as {path}; its problems are computed again."
                self._line(text, {"event": "set_aside", "path": path})
        self._told_at, self._last = now, here
        if self._as_json:
            emit(progress_event(report))
        else:
            progress(progress_text(report))

    def end(self, report: SweepReport) -> None:
        self._failures(report)
        state = "stopped; the same command continues" if report.stopped else "finished"
        text = f"{report.sweep} {state}: {report.computed_in_all:,} problems computed now, {len(report.failed)} failed."
        record = {
            "event": "end",
            "stopped": report.stopped,
            "computed": report.computed_in_all,
            "failed": report.failed,
        }
        self._line(text, record)

    def _failures(self, report: SweepReport) -> None:
        for sentence in report.failed[self._failed :]:
            self._line(f"failed: {sentence}", {"event": "failed", "why": sentence})
        self._failed = len(report.failed)

    def _line(self, text: str, record: dict[str, Any]) -> None:
        emit(record) if self._as_json else warn(text)


def _show_plan(spec: Spec, plans: list[ModelPlan], as_json: bool) -> None:
    from dpexplore.experiments.progress import duration

    for plan in plans:
        if as_json:
            emit({"event": "plan", "sweep": spec.name, **dataclasses.asdict(plan)})
        elif plan.memory_bytes is None or plan.seconds is None:
            say(f"{plan.model}: nothing is known of this model before it is fetched")
        else:
            say(
                f"{plan.model}: {plan.problems:,} problems ({plan.done:,} done), at most {plan.row_steps:,} steps of "
                f"one prompt; {plan.memory_bytes / 2**30:.1f} GiB or more; roughly {duration(plan.seconds)} here, "
                "floors apart"
            )
    if not as_json:
        say(f"{spec.name}: {spec.title}. Nothing was computed.")
