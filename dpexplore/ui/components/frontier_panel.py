"""How close a soft prompt comes within a norm budget: from the length of vocabulary tokens to the direct token."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dpexplore.experiments.frontier import Frontier, FrontierPoint
from dpexplore.floor import FloorResult
from dpexplore.plots import figure_json, frontier_figure
from dpexplore.serving.app_context import AppContext, check_single_tokens, sentence
from dpexplore.ui.components.markup import message, progress_bar, quantity, table
from dpexplore.ui.components.target_panel import QUIET, TargetPanel
from dpexplore.ui.components.widgets import card_title, chart, view
from dpexplore.ui.visitor import session_of

MULTIPLES = (0.5, 1.0, 10.0, 100.0, 1000.0)
STEPS = 30
INTRODUCTION = """
A hard prompt can only use tokens of the vocabulary, whose vectors are all about as long as one another (1x). A soft
token may be longer. The frontier shows how close a prompt comes when none of its soft tokens may be longer than a
budget, in multiples of the median length of the vocabulary's. At its right end nothing bounds them: there <b>one
token, computed and not searched for,</b> reaches the best that the model's softmax head allows. What is left above
the certified floor at that end is all that is not yet known.
"""
EMPTY = "One click: about a minute on two cores. Points appear as they are found."
NOTHING = ("", "")
"""The model and recipe of an empty card."""


@dataclass(frozen=True)
class FrontierPanel:
    draw: gr.Button
    stop: gr.Button
    progress: gr.HTML
    curve: gr.HTML
    caption: gr.HTML

    @property
    def shown(self) -> list[Any]:
        return [self.progress, self.curve, self.caption]


class Drawing:
    """The frontier that each session draws now."""

    def __init__(self) -> None:
        self._works: dict[str, Frontier] = {}
        self._gate = threading.Lock()

    def begin(self, session: str, work: Frontier) -> None:
        """One at a time: what the session drew before ends."""
        self.stop(session)
        with self._gate:
            self._works[session] = work

    def stop(self, session: str) -> None:
        with self._gate:
            work = self._works.get(session)
        if work is not None:
            work.stop()

    def end(self, session: str, work: Frontier) -> None:
        """Forget it, unless another one has taken its place."""
        work.stop()
        with self._gate:
            if self._works.get(session) is work:
                del self._works[session]


def frontier_of(app: AppContext, session: str, model: str, recipe: str) -> Frontier:
    """The work for one target, by the model's own engine. InputError for a target without a frontier."""
    entry, target = app.pool.get(model), app.target(model, recipe)
    check_single_tokens(target)
    return Frontier(
        entry.lm,
        target,
        multiples=MULTIPLES,
        steps=STEPS,
        submit=lambda target, config, starts: entry.server.submit(
            target, app.admit(session, entry.lm, config), starts, owner=app.owner(session, "frontier")
        ),
        keep=app.rules is None,  # strangers' points do not fill the disk
    )


def follow_frontier(app: AppContext, drawing: Drawing, session: str, model: str, recipe: str) -> Iterator[list[Any]]:
    """Values for `FrontierPanel.shown`, at every point."""
    if not model:
        yield [message("The frontier can be drawn as soon as the model is ready.", "info"), gr.skip(), gr.skip()]
        return
    work: Frontier | None = None
    try:
        work = frontier_of(app, session, model, recipe)
        drawing.begin(session, work)
        yield [message("Computing the certified floor …", "busy"), "", ""]
        floor = app.wait_for_floor(session, work.lm, work.target)
        points: list[FrontierPoint] = []
        yield [progress_bar("A hard prompt", 0.0), "", ""]
        for point in work:
            points.append(point)
            moving = progress_bar(f"{len(points)} of {work.total} points", len(points) / work.total)
            yield [moving, _picture(points, floor), points_html(points, floor)]
        word = "Stopped" if work.stopped else "Done"
        caption = f"<p class='dpx-note' data-done='{word}'>{word}: {len(points)} of {work.total} points.</p>"
        yield [caption, gr.skip(), gr.skip()]
    except Exception as error:
        yield [message(sentence(error), "error"), gr.skip(), gr.skip()]
    finally:
        if work is not None:
            drawing.end(session, work)


def _picture(points: list[FrontierPoint], floor: FloorResult) -> str:
    return figure_json(frontier_figure(points, floor.lower_bound_nats, floor.head_optimum_nats)) + "\n"


def points_html(points: list[FrontierPoint], floor: FloorResult) -> str:
    """The points as a sentence and a table."""
    best = {
        name: min((point.kl_nats for point in points if where(point)), default=None)
        for name, where in (("direct", _is_direct), ("ordinary", _is_ordinary))
    }
    caption = f"No prompt comes closer than {quantity(max(floor.lower_bound_nats, 0.0), 'kl')} (certified)."
    if best["ordinary"] is not None:
        caption += (
            f" With soft tokens as long as the vocabulary's, the best found is at {quantity(best['ordinary'], 'kl')}."
        )
    if best["direct"] is not None:
        caption += f" Without a bound on their length one token reaches {quantity(best['direct'], 'kl')}."
    rows = [
        [_name(point), "no bound" if point.budget is None else f"{point.budget:g}x", quantity(point.kl_nats, "kl")]
        for point in points
    ]
    headers = [("prompt", "is-token"), ("budget", "is-num"), ("KL(p‖q)", "is-num")]
    listed = table(headers, rows, "Best KL within each norm budget")
    return f"<p class='dpx-note'>{caption}</p><details><summary>All points</summary>{listed}</details>"


def _is_direct(point: FrontierPoint) -> bool:
    return point.kind == "direct"


def _is_ordinary(point: FrontierPoint) -> bool:
    return point.kind == "soft" and point.budget == 1.0


def _name(point: FrontierPoint) -> str:
    plural = "s" * (point.length > 1)
    return f"{point.length} {'hard' if point.kind == 'hard' else 'soft'} token{plural}"


def build_frontier_card() -> FrontierPanel:
    card_title("How much does length buy?")
    view(f"<p class='dpx-note'>{INTRODUCTION}</p>")
    with gr.Row(elem_classes="dpx-inline"):
        draw = gr.Button("Draw the frontier", size="sm", elem_id="frontier-draw")
        stop = gr.Button("Stop", size="sm", elem_id="frontier-stop")
    progress = view(live=True, elem_id="frontier-progress")
    curve = chart("figure", [("dpx-figure", "")], EMPTY, elem_id="frontier-chart")
    return FrontierPanel(draw, stop, progress, curve, view(elem_id="frontier-told"))


def wire_frontier_panel(app: AppContext, panel: FrontierPanel, target: TargetPanel, model: gr.Textbox) -> None:
    drawing = Drawing()
    drawn = gr.State(NOTHING)

    def draw(request: gr.Request, model: str, recipe: str) -> Iterator[list[Any]]:
        for shown in follow_frontier(app, drawing, session_of(app, request), model, recipe):
            yield [*shown, (model, recipe)]

    def stop(request: gr.Request) -> None:
        drawing.stop(session_of(app, request))

    def clear(request: gr.Request, model: str, recipe: str, origin: tuple[str, str]) -> list[Any]:
        """Another target's frontier goes, with the work on it."""
        if (model, recipe) == origin or origin == NOTHING:
            return [gr.skip()] * 4
        drawing.stop(session_of(app, request))
        return ["", "", "", NOTHING]

    panel.draw.click(
        draw,
        [model, target.recipe],
        [*panel.shown, drawn],
        show_progress="hidden",
        concurrency_limit=None,
        api_visibility="private",
    )
    panel.stop.click(stop, None, None, **QUIET)
    target.chart.change(clear, [model, target.recipe, drawn], [*panel.shown, drawn], **QUIET)
