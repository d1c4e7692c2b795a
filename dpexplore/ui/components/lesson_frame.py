"""What lessons and the first minute are made of: a question, a guess, an answer by numbers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from html import escape

from gradio.components import Component

from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext
from dpexplore.targets import Target
from dpexplore.tuning import TuneConfig, TuneResult
from dpexplore.ui.components.markup import bar, progress_bar


@dataclass(frozen=True)
class LessonContext:
    """What a lesson works with; the model is waited for."""

    app: AppContext
    session: str
    model: str

    @property
    def lm(self) -> LanguageModel:
        return self.app.pool.load(self.model).lm

    def floor_nats(self, target: Target) -> float:
        return max(0.0, self.app.wait_for_floor(self.session, self.lm, target).lower_bound_nats)


def say_directly(
    context: LessonContext, targets: Sequence[Target], doing: str
) -> Generator[str, None, list[TuneResult]]:
    """HTML while it works, then for each target the result of the direct token: one free vector, computed."""
    config = context.app.admit(context.session, context.lm, TuneConfig.preset("direct", method="soft"))
    server = context.app.pool.get(context.model).server
    runs = [server.submit(target, config, owner=context.app.owner(context.session)) for target in targets]
    try:
        for number, run in enumerate(runs):
            while not run.finished:
                yield progress_bar(doing, number / len(runs) if len(runs) > 1 else None)
                run.wait(0.4)
        return [run.result for run in runs]
    finally:
        for run in runs:
            run.cancel()


@dataclass(frozen=True)
class Answer:
    right: int
    """Which option is true, by the numbers."""
    html: str


@dataclass(frozen=True)
class Notes:
    """Notes for teaching the lesson to a class."""

    minutes: int
    goal: str
    """What pupils can say afterwards."""
    guess: str
    """What they usually predict, and why."""
    say: str
    """What connects the answer to the next step."""


@dataclass(frozen=True)
class Lesson:
    key: str
    title: str
    text: str
    """What there is to know beforehand, as HTML."""
    controls: Callable[[], list[Component]]
    look: Callable[..., str]
    """LessonContext and the controls' values -> what moves with them, as HTML."""
    question: str
    options: tuple[str, ...]
    answer: Callable[..., Generator[str | Answer]]
    """LessonContext and the controls' values -> HTML while it works, then the answer."""
    lesson: str
    """What to take along, as HTML."""
    notes: Notes


def bars(rows: Sequence[tuple[str, float, str]], role: str, top: float | None = None, label: str = "") -> str:
    """A list of bars; `rows` are (name as HTML, size, the number as HTML)."""
    most = top or max((size for _, size, _ in rows), default=1) or 1
    items = "".join(f"<li><span>{name}</span>{bar(size / most, role)}<b>{value}</b></li>" for name, size, value in rows)
    return f"<ol class='dpx-bars' aria-label='{escape(label)}'>{items}</ol>"
