"""The Strings tab's runs: the request alone, LoRA and a tuned prompt, one after the other on one axis."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dpexplore.diffuse.capsule import save_run
from dpexplore.diffuse.config import AdapterConfig
from dpexplore.diffuse.metrics import perplexity
from dpexplore.diffuse.prompts import prompt_config
from dpexplore.diffuse.report import answers, held_out_text
from dpexplore.diffuse.training import AdapterRun, AdapterStep
from dpexplore.errors import InputError
from dpexplore.models.cores import all_cores
from dpexplore.serving.app_context import AppContext, sentence
from dpexplore.serving.uploads import download_folder
from dpexplore.targets import StringTarget
from dpexplore.tuning import TuneConfig
from dpexplore.ui.components.markup import message
from dpexplore.ui.components.string_view import (
    EMPTY_ANSWERS,
    EMPTY_BARS,
    WAYS,
    Course,
    Pictures,
    Way,
    ended_line,
    live_line,
)

FEWEST_SAMPLES, MOST_SAMPLES = 10, 1000
"""Answers that may be drawn from every way."""
UPDATE_SECONDS = 0.4
RUN, STOP = "Run", "Stop"
NOTHING = ("", "")
"""The model and recipe of an empty page."""


class Running:
    """How to stop what each session runs here."""

    def __init__(self) -> None:
        self._cancels: dict[str, Callable[[], None]] = {}
        self._asked: set[str] = set()
        self._gate = threading.Lock()
        self._training = threading.Lock()

    @contextmanager
    def training(self, *, alone: bool) -> Iterator[None]:
        """While an adapter is trained. InputError if another one is and they must train `alone`: strangers' do."""
        if not alone:
            yield
        elif self._training.acquire(blocking=False):
            try:
                yield
            finally:
                self._training.release()
        else:
            raise InputError("Another visitor is training an adapter; please try again in a few minutes.")

    def begin(self, session: str) -> None:
        with self._gate:
            self._asked.discard(session)

    def now(self, session: str, cancel: Callable[[], None]) -> None:
        """What moves now; if Stop was pressed before, it ends at once."""
        with self._gate:
            self._cancels[session] = cancel
            asked = session in self._asked
        if asked:
            cancel()

    def stopped(self, session: str) -> bool:
        with self._gate:
            return session in self._asked

    def stop(self, session: str) -> None:
        with self._gate:
            self._asked.add(session)
            cancel = self._cancels.get(session)
        if cancel is not None:
            cancel()

    def end(self, session: str) -> None:
        with self._gate:
            self._cancels.pop(session, None)


def target_of(app: AppContext, model: str, recipe: str) -> StringTarget:
    """A recipe's target for a loaded model. InputError if it is none over strings."""
    if not recipe.strip():
        raise InputError("There is no target to run; the note beside it says why.")
    target = app.target(model, recipe)
    if not isinstance(target, StringTarget):
        raise InputError('This recipe is over single tokens; write one such as strings({"{1}": 1, "{2}": 1}).')
    return target


@dataclass(frozen=True)
class Plan:
    """What one press of Run asks for."""

    session: str
    model: str
    target: StringTarget
    ways: list[str]
    prompt: TuneConfig
    adapter: AdapterConfig
    samples: int
    """Answers drawn from every way."""


def read_plan(app: AppContext, session: str, model: str, recipe: str, settings: Sequence[Any]) -> Plan:
    """Settings in the order of `Panel.settings`. InputError for what no run can have, or where there is no room."""
    ways, method, slots, steps, preset, passes, samples = settings
    lm, target = app.pool.get(model).lm, target_of(app, model, recipe)
    most = _whole("steps", steps, 1, 10_000)
    prompt = prompt_config(lm, target.strings, method, slots, steps=most, restarts=1, screen=1)
    adapter = AdapterConfig.preset(preset, passes=_whole("passes", passes, 1, 10_000))
    drawn = _whole("answers", samples, FEWEST_SAMPLES, MOST_SAMPLES)
    if app.rules:
        app.check_room(session)
        app.rules.check_strings(target)
    return Plan(session, model, target, ways, prompt, adapter, drawn)


def reach(
    app: AppContext, running: Running, session: str, model: str, recipe: str, *settings: Any
) -> Iterator[list[Any]]:
    """Run the chosen ways one after the other. Values for `Panel.shown`."""
    running.begin(session)
    archive = None
    busy, idle = _buttons(running=True), _buttons(running=False)
    yield [message("Measuring the request alone", "busy"), "", EMPTY_BARS, EMPTY_ANSWERS, NOTHING, _offer(None), *busy]
    try:
        plan = read_plan(app, session, model, recipe, settings)
        course, origin = Course(plan.target), (model, recipe)
        pictures = Pictures(course)
        for told in _go(app, running, plan, course):
            archive = course.archive
            # Gradio builds a component anew for every `update` and every `skip`, tens of milliseconds a view: what
            # does not change is sent as a plain value.
            yield [told, *pictures.draw(), origin, None, RUN, STOP]
        word = "Stopped" if running.stopped(session) else "Done"
        yield [ended_line(course, word), *pictures.draw(), origin, _offer(archive), *idle]
    except Exception as error:
        yield [message(sentence(error), "error"), *[gr.skip()] * 4, _offer(archive), *idle]
    finally:
        running.stop(session)
        running.end(session)


def _go(app: AppContext, running: Running, plan: Plan, course: Course) -> Iterator[str]:
    """Go the ways; what the status says, whenever there is something new of the course to see."""
    lm = app.pool.get(plan.model).lm
    course.ways["alone"] = Way(answers=answers(lm, WAYS["alone"][0], plan.target, samples=plan.samples))
    course.perplexity_before = perplexity(lm, held_out_text())
    yield message("Measured the request alone", "busy")
    if "lora" in plan.ways and not running.stopped(plan.session):
        with running.training(alone=app.rules is not None):
            run = AdapterRun(lm, [plan.target], plan.adapter)
            running.now(plan.session, run.cancel)
            yield from _follow_adapter(course, run, app.rules.limits.seconds if app.rules else None)
            yield message(f"LoRA: drawing {plan.samples:,} answers", "busy")
            _finish_adapter(course, run, plan.samples)
        yield message("Measured LoRA", "busy")
    if "prompt" in plan.ways and not running.stopped(plan.session):
        yield from _follow_prompt(app, running, plan, course)


def _next_step(steps: Iterator[AdapterStep]) -> AdapterStep | None:
    """The next pass; every one may be asked for by another thread of Gradio's, so each asks for the cores."""
    with all_cores():
        return next(steps, None)


def _follow_adapter(course: Course, run: AdapterRun, most_seconds: float | None) -> Iterator[str]:
    way = course.ways["lora"] = Way(latest=run.probabilities[0])
    began, shown = time.monotonic(), 0.0
    steps = iter(run)
    while (step := _next_step(steps)) is not None:
        if most_seconds is not None and time.monotonic() - began > most_seconds:
            run.cancel()
        way.steps.append(step.step)
        way.cross_entropy_nats.append(step.loss_nats)
        if time.monotonic() - shown >= UPDATE_SECONDS:
            shown = time.monotonic()
            yield live_line(course, "lora", run.config.passes)
    if run.status == "nonfinite":
        raise InputError("The loss is no longer finite; try a preset with a smaller learning rate.")


def _finish_adapter(course: Course, run: AdapterRun, samples: int) -> None:
    """Measure the adapted model and pack the adapter."""
    way, adapted = course.ways["lora"], run.adapter.lm
    way.answers = answers(adapted, WAYS["lora"][0], course.target, samples=samples)
    way.perplexity = perplexity(adapted, held_out_text())
    count = sum(parameter.numel() for parameter in run.adapter.parameters())
    way.note = (
        f"{len(run.steps)} passes in {run.seconds:.0f} s; {count:,} parameters trained, the model's own untouched."
    )
    folder = download_folder()
    save_run(run, [way.answers], folder / "adapter")
    course.archive = shutil.make_archive(str(folder / "dpexplore-adapter"), "zip", folder / "adapter")


def _follow_prompt(app: AppContext, running: Running, plan: Plan, course: Course) -> Iterator[str]:
    """Tune the prompt and measure it."""
    entry = app.pool.get(plan.model)
    run = entry.server.submit(
        plan.target,
        app.admit(plan.session, entry.lm, plan.prompt, plan.target),
        owner=app.owner(plan.session, "strings"),
    )
    running.now(plan.session, run.cancel)
    way = course.ways["prompt"] = Way()
    try:
        while not run.finished:
            run.wait(UPDATE_SECONDS)
            for step in run.steps_since(len(way.steps)):
                way.steps.append(step.step)
                way.cross_entropy_nats.append(step.best_kl_nats + plan.target.entropy_nats)
            best = run.best_log_probs()
            way.latest = None if best is None else best[:-1].double().exp()
            yield live_line(course, "prompt", run.config.most_steps)
    finally:
        run.cancel()
    yield message(f"Tuned prompt: drawing {plan.samples:,} answers", "busy")
    result = run.result
    way.answers = answers(entry.lm, WAYS["prompt"][0], plan.target, samples=plan.samples, prompt=result.prompt_embeds)
    written = f" The prompt: {result.prompt_text}" if result.prompt_text else ""
    way.note = f"{result.steps} steps in {result.seconds:.0f} s, the weights are as they were.{written}"


def _offer(archive: str | None) -> Any:
    """The adapter's button."""
    return gr.update(value=archive, visible=archive is not None)


def _buttons(*, running: bool) -> list[Any]:
    return [gr.update(interactive=not running), gr.update(interactive=running)]


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if value is None or value != int(value) or not low <= value <= high:
        told = "empty" if value is None else f"{value:,}"
        raise InputError(f"The number of {name} is {told}; use a whole number from {low:,} to {high:,}.")
    return int(value)
