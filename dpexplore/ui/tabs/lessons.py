"""Lessons: seven steps, each with something to move and a prediction to make before the answer shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from dpexplore.serving.app_context import AppContext, sentence
from dpexplore.ui.components.lesson_frame import Answer, Lesson, LessonContext, bars
from dpexplore.ui.components.lesson_steps import LESSONS
from dpexplore.ui.components.markup import message
from dpexplore.ui.components.target_panel import QUIET
from dpexplore.ui.components.widgets import view
from dpexplore.ui.visitor import session_of

INTRODUCTION = (
    "<h2>What can a language model say?</h2><p>Seven short steps. In each, move something, make a prediction, then "
    "check it. All numbers are computed on this server while you wait, on the model named in Explore.</p>"
)


@dataclass(frozen=True)
class LessonPanel:
    lesson: Lesson
    controls: list[Component]
    shown: gr.HTML
    prediction: gr.Radio
    check: gr.Button
    answer: gr.HTML


def look(context: LessonContext, lesson: Lesson, *values: Any) -> str:
    """What a lesson shows for its controls' values."""
    try:
        return lesson.look(context, *values)
    except Exception as error:
        return message(sentence(error), "error")


def answer(context: LessonContext, lesson: Lesson, predicted: str | None, *values: Any) -> Iterator[str]:
    """HTML of the answer to a prediction, after HTML of the work towards it."""
    if predicted not in lesson.options:
        yield message("Choose an answer first: a wrong guess teaches more than none.", "info")
        return
    place = lesson.options.index(predicted)
    context.app.guesses.note(lesson.key, context.session, place)
    room = guesses_html(lesson, context.app.guesses.counts(lesson.key, lesson.options))
    try:
        yield room + message("Computing …", "busy")
        for given in lesson.answer(context, *values):
            yield room + (given if isinstance(given, str) else answer_html(lesson, place, given))
    except Exception as error:
        yield message(sentence(error), "error")


def guesses_html(lesson: Lesson, counts: Sequence[int]) -> str:
    """What all pages of this server guessed; nothing for a single one."""
    if sum(counts) < 2:
        return ""
    rows = [(escape(option), float(n), f"{n}") for option, n in zip(lesson.options, counts, strict=True)]
    return (
        f"<div class='dpx-room' data-guesses='{sum(counts)}'><p class='dpx-note'>{sum(counts)} pages guessed:</p>"
        f"{bars(rows, 'restart', label='Guesses')}</div>"
    )


def notes_html(lesson: Lesson) -> str:
    """The teacher's notes beside a lesson."""
    notes = lesson.notes
    return (
        f"<details class='dpx-teacher'><summary>For the teacher · {notes.minutes} minutes</summary><dl>"
        f"<dt>Goal</dt><dd>{notes.goal}</dd><dt>Usual guess</dt><dd>{notes.guess}</dd>"
        f"<dt>To say</dt><dd>{notes.say}</dd></dl></details>"
    )


def answer_html(lesson: Lesson, predicted: int, given: Answer) -> str:
    right = predicted == given.right
    verdict = "Right." if right else f"Not this time: {lesson.options[given.right]}."
    return (
        f"<div class='dpx-answer {'is-right' if right else 'is-wrong'}' data-right='{given.right}'>"
        f"<p class='dpx-told'><b>{'✓' if right else '✗'}</b> {verdict}</p>{given.html}"
        f"<p class='dpx-take'>{lesson.lesson}</p></div>"
    )


def build_lessons(app: AppContext, tab: gr.Tab, model: gr.Textbox) -> None:
    """The tab's content, inside the tab; `model` names the model that the page works with."""
    with gr.Column(elem_id="lessons"):
        view(f"<div class='dpx-prose dpx-lead'>{INTRODUCTION}</div>")
        panels = [_build(number, lesson) for number, lesson in enumerate(LESSONS, start=1)]
    for panel in panels:
        _wire(app, panel, tab, model)


def _build(number: int, lesson: Lesson) -> LessonPanel:
    with gr.Column(elem_classes=f"dpx-card dpx-lesson is-number-{number}", elem_id=f"lesson-{lesson.key}"):
        view(f"<h3><span>{number}</span>{lesson.title}</h3><p>{lesson.text}</p>")
        with gr.Row(elem_classes="dpx-lesson-row"):
            with gr.Column(min_width=260):
                controls = lesson.controls()
            with gr.Column(min_width=260):
                shown = view(live=True)
        prediction = gr.Radio(
            list(lesson.options), value=None, label=f"Your prediction. {lesson.question}", elem_classes="dpx-predict"
        )
        check = gr.Button("Check", size="sm", elem_classes="dpx-check")
        given = view(live=True)
        view(notes_html(lesson))
    return LessonPanel(lesson, controls, shown, prediction, check, given)


def _wire(app: AppContext, panel: LessonPanel, tab: gr.Tab, model: gr.Textbox) -> None:
    lesson = panel.lesson

    def follow(request: gr.Request, model: str, *values: Any) -> str:
        return look(LessonContext(app, session_of(app, request), model or app.model), lesson, *values)

    def check(request: gr.Request, model: str, predicted: str | None, *values: Any) -> Iterator[str]:
        yield from answer(LessonContext(app, session_of(app, request), model or app.model), lesson, predicted, *values)

    moved: list[Any] = [getattr(control, "input") for control in panel.controls]  # noqa: B009
    gr.on([*moved, tab.select], follow, [model, *panel.controls], panel.shown, **QUIET)
    panel.check.click(
        check,
        [model, panel.prediction, *panel.controls],
        panel.answer,
        show_progress="hidden",
        concurrency_limit=8,
        api_visibility="private",
    )
