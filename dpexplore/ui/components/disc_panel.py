"""The disc: the model's last states seen from the best one, and the run on its way there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dpexplore.serving.app_context import AppContext, check_single_tokens, sentence
from dpexplore.serving.disc import disc
from dpexplore.ui.components.markup import message
from dpexplore.ui.components.target_panel import QUIET, TargetPanel
from dpexplore.ui.components.widgets import card_title, chart, legend, view
from dpexplore.ui.visitor import session_of

LOOK_SECONDS = 1.5
"""Between two looks of a page that shows the disc."""
DRAWING = "geometry"
"""Queue of what draws discs: each takes about half a second of both cores."""
NOTHING = ("", "", 0)
"""The model, recipe and last step of an empty disc."""
LEGEND = [("achieved", "your run"), ("head", "one direct token, ever longer"), ("floor", "low KL")]
LOOK_FOR = """
Whatever the prompt, the model's last layer ends **on the rim**: the final norm gives every state the same length. The
star is the best state for this target. Look for the run: does it walk along the rim towards the star, or stay at its
side? A single **direct token** in the star's direction is carried there as it grows. Purple is low KL, on the slice
through the star and your run.
"""
FOLLOWS = "Follows your target and runs"
EMPTY = "One click: where in the model's last layer the target lies, and how your run walks towards it."


@dataclass(frozen=True)
class DiscPanel:
    draw: gr.Button
    told: gr.HTML
    picture: gr.HTML
    clock: gr.Timer


Shown = tuple[str, str, int]


def look(app: AppContext, session: str, model: str, recipe_text: str, shown: Shown) -> tuple[Any, Any, Any]:
    """Values for (message, picture, what is shown): a new picture if the floor is known and the run has moved."""
    nothing = (gr.skip(), gr.skip(), gr.skip())
    if not model:
        return message("The disc can be drawn as soon as the model is ready.", "info"), gr.skip(), gr.skip()
    try:
        lm, target = app.pool.get(model).lm, app.target(model, recipe_text)
        check_single_tokens(target)
        future = app.floor(session, lm, target)
        if not future.done():
            return message("Computing the certified floor …", "busy"), gr.skip(), gr.skip()
        floor = future.result()
        frames = app.walk(session, model, target.recipe)
        steps, log_q = ([], None) if frames is None else frames.snapshot()
        now: Shown = (model, target.recipe, steps[-1] if steps else 0)
        if now == tuple(shown):
            return nothing
        found = disc(lm, target, floor, steps, log_q)
    except Exception as error:
        return message(sentence(error), "error"), "", NOTHING
    return "", json.dumps(found, allow_nan=False) + "\n", now


def build_disc_card() -> DiscPanel:
    card_title("Where the prompt ends up", legend(LEGEND))
    picture = chart("disc", [("dpx-disc", "")], EMPTY, elem_id="disc")
    gr.Markdown(LOOK_FOR, elem_classes="dpx-look-for")
    with gr.Row(elem_classes="dpx-inline"):
        draw = gr.Button("Draw it, and follow my runs", size="sm", elem_id="disc-draw")
    told = view(live=True, elem_id="disc-told")
    return DiscPanel(draw, told, picture, gr.Timer(LOOK_SECONDS, active=False))


def wire_disc_panel(app: AppContext, panel: DiscPanel, target: TargetPanel, model: gr.Textbox) -> None:
    shown = gr.State(NOTHING)

    def follow(request: gr.Request, model: str, recipe: str, shown: Shown) -> tuple[Any, Any, Any]:
        return look(app, session_of(app, request), model, recipe, shown)

    def begin(request: gr.Request, model: str, recipe: str) -> tuple[Any, ...]:
        drawing = look(app, session_of(app, request), model, recipe, NOTHING)
        return *drawing, gr.Timer(active=True), gr.Button(FOLLOWS, interactive=False)

    def clear(model: str, recipe: str, shown: Shown) -> tuple[Any, Any, Any]:
        """Another target's picture goes at once."""
        if tuple(shown[:2]) in ((model, recipe), NOTHING[:2]):
            return gr.skip(), gr.skip(), gr.skip()
        return "", "", NOTHING

    outputs = [panel.told, panel.picture, shown]
    quiet = {**QUIET, "concurrency_limit": 1, "concurrency_id": DRAWING}
    panel.draw.click(begin, [model, target.recipe], [*outputs, panel.clock, panel.draw], **quiet)
    panel.clock.tick(follow, [model, target.recipe, shown], outputs, **quiet)
    target.chart.change(clear, [model, target.recipe, shown], outputs, **QUIET)
