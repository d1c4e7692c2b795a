"""The Strings tab's runs: the request alone, LoRA and a tuned prompt, one after the other on one axis."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from dpexplore.diffuse.capsule import save_run
from dpexplore.diffuse.config import AdapterConfig
from dpexplore.diffuse.metrics import perplexity
from dpexplore.diffuse.prompts import prompt_config
from dpexplore.diffuse.report import answers, held_out_text
from dpexplore.diffuse.training import AdapterRun
from dpexplore.errors import InputError
from dpexplore.targets import StringTarget
from dpexplore.tuning import TuneConfig
from dpexplore.ui.context import AppContext, sentence
from dpexplore.ui.markup import message
from dpexplore.ui.string_view import (
    EMPTY_ANSWERS,
    EMPTY_BARS,
    WAYS,
    Course,
    Way,
    answers_html,
    bars_html,
    course_chart,
)

SAMPLES = 100
UPDATE_SECONDS = 0.4


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
            raise InputError("Another visitor trains an adapter just now; please try again in a few minutes.")

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
        raise InputError("There is no target to run; what is written beside it says why.")
    target = app.target(model, recipe)
    if not isinstance(target, StringTarget):
        raise InputError('This recipe is over single tokens; one such as strings({"{1}": 1, "{2}": 1}) is accepted.')
    return target


def reach(
    app: AppContext, running: Running, session: str, model: str, recipe: str, *settings: Any
) -> Iterator[list[Any]]:
    """Run the chosen ways one after the other. Values for `Panel.shown`."""
    busy, idle = _buttons(running=True), _buttons(running=False)
    running.begin(session)
    yield [
        message("Measuring the request alone", "busy"),
        "",
        EMPTY_BARS,
        EMPTY_ANSWERS,
        gr.update(visible=False),
        *busy,
    ]
    try:
        ways, method, slots, steps, preset, passes = settings
        lm, target = app.pool.get(model).lm, target_of(app, model, recipe)
        config = prompt_config(lm, target.strings, method, slots, steps=_whole("steps", steps), restarts=1, screen=1)
        adapter = AdapterConfig.preset(preset, passes=_whole("passes", passes))
        if app.rules:
            app.rules.check_room(app.pool.running)
        course = Course(target)
        course.ways["alone"] = Way(told=answers(lm, WAYS["alone"][0], target, samples=SAMPLES))
        course.perplexity_before = perplexity(lm, held_out_text())
        file: str | None = None
        yield [message("The request alone is measured", "busy"), *_pictures(course), gr.skip(), *busy]
        if "lora" in ways and not running.stopped(session):
            with running.training(alone=app.rules is not None):
                run = AdapterRun(lm, [target], adapter)
                running.now(session, run.cancel)
                for told in _follow_adapter(course, run, app.rules.limits.seconds if app.rules else None):
                    yield [told, course_chart(course), *[gr.skip()] * 3, *busy]
                file = _finish_adapter(course, run)
            yield [
                message("LoRA is measured", "busy"),
                *_pictures(course),
                gr.update(value=file, visible=True),
                *busy,
            ]
        if "prompt" in ways and not running.stopped(session):
            for told in _follow_prompt(app, running, session, model, course, config):
                yield [told, course_chart(course), *[gr.skip()] * 3, *busy]
            yield [message("The prompt is measured", "busy"), *_pictures(course), gr.skip(), *busy]
        word = "Stopped" if running.stopped(session) else "Done"
        yield [_summary(word, course), *_pictures(course), gr.skip(), *idle]
    except Exception as error:
        yield [message(sentence(error), "error"), *[gr.skip()] * 4, *idle]
    finally:
        running.stop(session)
        running.end(session)


def _follow_adapter(course: Course, run: AdapterRun, most_seconds: float | None) -> Iterator[str]:
    way = course.ways["lora"] = Way()
    began, shown = time.monotonic(), 0.0
    for step in run:
        if most_seconds is not None and time.monotonic() - began > most_seconds:
            run.cancel()
        way.steps.append(step.step)
        way.cross_entropy_nats.append(step.loss_nats)
        if time.monotonic() - shown >= UPDATE_SECONDS:
            shown = time.monotonic()
            gap = step.loss_nats - sum(step.floor_nats)
            yield message(f"LoRA: pass {step.step} of {run.config.passes}, {gap:.4f} nats above the floor", "busy")
    if run.status == "nonfinite":
        raise InputError("The loss is no longer finite; a preset with a smaller learning rate is worth a try.")


def _finish_adapter(course: Course, run: AdapterRun) -> str:
    """Measure the adapted model and pack the adapter; the path of the archive."""
    way, adapted = course.ways["lora"], run.adapter.lm
    way.told = answers(adapted, WAYS["lora"][0], course.target, samples=SAMPLES)
    way.perplexity = perplexity(adapted, held_out_text())
    count = sum(parameter.numel() for parameter in run.adapter.parameters())
    way.note = (
        f"{len(run.steps)} passes in {run.seconds:.0f} s; {count:,} parameters trained, the model's own untouched."
    )
    folder = Path(tempfile.mkdtemp(prefix="dpexplore-"))
    save_run(run, [way.told], folder / "adapter")
    return shutil.make_archive(str(folder / "dpexplore-adapter"), "zip", folder / "adapter")


def _follow_prompt(
    app: AppContext, running: Running, session: str, model: str, course: Course, config: TuneConfig
) -> Iterator[str]:
    entry, way = app.pool.get(model), Way()
    run = entry.server.submit(course.target, app.admit(entry.lm, config), owner=f"{session} strings")
    running.now(session, run.cancel)
    course.ways["prompt"] = way
    try:
        while not run.finished:
            run.wait(UPDATE_SECONDS)
            for step in run.steps_since(len(way.steps)):
                way.steps.append(step.step)
                way.cross_entropy_nats.append(step.best_kl_nats + course.target.entropy_nats)
            best = (
                f"{way.cross_entropy_nats[-1] - course.target.entropy_nats:.4f} nats above the floor"
                if way.steps
                else ""
            )
            yield message(
                f"Prompt: step {len(way.steps)} of {run.config.steps}" + (f", {best}" if best else ""), "busy"
            )
    finally:
        run.cancel()
    result = run.result
    way.told = answers(entry.lm, WAYS["prompt"][0], course.target, samples=SAMPLES, prompt=result.prompt_embeds)
    written = f" The prompt: {result.prompt_text}" if result.prompt_text else ""
    way.note = f"{result.steps} steps in {result.seconds:.0f} s, the weights are as they were.{written}"


def _pictures(course: Course) -> list[str]:
    return [course_chart(course), bars_html(course), answers_html(course)]


def _summary(word: str, course: Course) -> str:
    parts = [f"{WAYS[key][0]} {way.told.fit.kl_nats:.4f} nats" for key, way in course.seen() if way.told]
    told = message(f"{word}. KL to the target: {', '.join(parts)}.", "ready")
    return told.replace("<p ", "<p data-done='1' ", 1)


def _buttons(*, running: bool) -> list[Any]:
    return [gr.update(interactive=not running), gr.update(interactive=running)]


def _whole(name: str, value: Any) -> int:
    if value is None or value != int(value) or not 1 <= value <= 10_000:
        raise InputError(f"{name} is {value}; a whole number from 1 to 10,000 is accepted.")
    return int(value)
