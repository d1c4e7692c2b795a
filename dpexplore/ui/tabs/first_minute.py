"""The first minute, in front of the workbench: one question at a time, a guess before each answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dpexplore.serving.app_context import AppContext, sentence
from dpexplore.ui.components.first_minute import QUESTIONS, SHUFFLED, Question
from dpexplore.ui.components.lesson_frame import Answer, LessonContext
from dpexplore.ui.components.markup import message
from dpexplore.ui.components.target_panel import QUIET, TargetPanel, read_recipe
from dpexplore.ui.components.widgets import view
from dpexplore.ui.visitor import session_of

HEADLINE = (
    "<h2>What can a language model say?</h2><p>Three questions, one minute. Guess first: the answers are computed "
    "while you wait.</p><button type='button' class='dpx-link' data-skip>Skip to the workbench</button>"
)
INVITATION = (
    "<div class='dpx-invitation' data-invitation><b>What can a language model say?</b> New here: three guesses, one "
    "minute. <button type='button' data-first-minute>Begin</button> "
    "<button type='button' class='dpx-link' data-skip>Skip</button></div>"
)
"""Stands above the workbench until it was followed or skipped in this browser; assets/first-minute.js."""


@dataclass(frozen=True)
class Step:
    question: Question
    column: gr.Column
    shown: gr.HTML
    guess: gr.Radio
    answer: gr.HTML


def show(context: LessonContext, question: Question) -> str:
    """What a question shows before the guess."""
    try:
        return question.show(context)
    except Exception as error:
        return message(sentence(error), "error")


def answer(context: LessonContext, question: Question, guess: str | None) -> Iterator[tuple[str, bool]]:
    """HTML of the work and then of the answer to a guess, and whether it is answered."""
    if guess not in question.options:
        return
    place = question.options.index(guess)
    context.app.guesses.note(f"first minute: {question.key}", context.session, place)
    try:
        yield message("Computing …", "busy"), False
        for given in question.answer(context):
            yield (given, False) if isinstance(given, str) else (_verdict(question, place, given), True)
    except Exception as error:
        yield message(sentence(error), "error"), True


def _verdict(question: Question, guess: int, given: Answer) -> str:
    right = guess == given.right
    verdict = "Right." if right else f"Not this time: <b>{question.options[given.right]}.</b>"
    return f"<div class='dpx-answer{' is-right' if right else ''}'><p>{verdict}</p>{given.html}</div>"


def build_first_minute(app: AppContext, tab: gr.Tab, tabs: gr.Tabs, model: gr.Textbox, target: TargetPanel) -> None:
    """The tab's content, inside the tab; `tabs` and `target` are where it ends."""
    with gr.Column(elem_id="first-minute"):
        view(f"<div class='dpx-prose dpx-lead'>{HEADLINE}</div>")
        steps = [_build(number, question) for number, question in enumerate(QUESTIONS, start=1)]
        with gr.Column(visible=False, elem_classes="dpx-card", elem_id="first-end") as end:
            view(
                "<p>That is what this page is for: choose any distribution, see how close a prompt can come, and what "
                "no prompt can do.</p>"
            )
            go = gr.Button("Open the workbench with this target", variant="primary", elem_id="first-go")
    ends = [*(step.column for step in steps[1:]), end]
    for step, following in zip(steps, ends, strict=True):
        _wire(app, step, following, steps, tab, model)
    outputs: dict[str, Any] = target.outputs

    def open_workbench(request: gr.Request, model: str) -> dict[Any, Any]:
        app.sessions.take_turn(session_of(app, request))  # what the designer still works at is overtaken
        changes = {"recipe": SHUFFLED, **read_recipe(app, model, SHUFFLED)}
        return {tabs: gr.update(selected="explore"), **{outputs[name]: value for name, value in changes.items()}}

    go.click(open_workbench, model, [tabs, *outputs.values()], **QUIET)


def _build(number: int, question: Question) -> Step:
    with gr.Column(visible=number == 1, elem_classes="dpx-card dpx-lesson", elem_id=f"first-{question.key}") as column:
        view(f"<h3><span>{number}</span>{question.title}</h3><p>{question.text}</p>")
        shown = view(live=True)
        guess = gr.Radio(list(question.options), value=None, label=question.ask, elem_classes="dpx-predict")
        given = view(live=True)
    return Step(question, column, shown, guess, given)


def _wire(app: AppContext, step: Step, following: gr.Column, steps: list[Step], tab: gr.Tab, model: gr.Textbox) -> None:
    """A guess is answered at once, and the answer opens what follows."""

    def context(request: gr.Request, model: str) -> LessonContext:
        return LessonContext(app, session_of(app, request), model or app.model)

    def guessed(request: gr.Request, model: str, guess: str | None) -> Iterator[dict[Any, Any]]:
        for given, answered in answer(context(request, model), step.question, guess):
            opened = {following: gr.update(visible=True)} if answered else {}
            yield {step.answer: given, **opened}

    def opened(request: gr.Request, model: str) -> str:
        return show(context(request, model), step.question)

    step.guess.input(
        guessed,
        [model, step.guess],
        [step.answer, following],
        show_progress="hidden",
        concurrency_limit=8,
        api_visibility="private",
    )
    gr.on([tab.select, model.change], opened, model, step.shown, **QUIET)
