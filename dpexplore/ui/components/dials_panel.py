"""How many dials the model has: the floor of random distributions as they are over ever more tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dpexplore.errors import InputError
from dpexplore.floor.dials import Dial, Dials, dials_of
from dpexplore.plots import dials_figure, figure_json
from dpexplore.serving.app_context import AppContext, sentence
from dpexplore.ui.components.markup import message, quantity
from dpexplore.ui.components.target_panel import QUIET
from dpexplore.ui.components.widgets import card_title, chart, view

INTRODUCTION = """
The last layer of a model turns the numbers of its last state, its <b>dials</b>, into the odds of every token. Take some
tokens and draw their odds at random: does any setting of the dials say just that? With fewer tokens than dials one
does. With more none does, whatever the prompt, and the certified floor leaves zero: the softmax bottleneck.
"""
LOOK_FOR = (
    "Look for where the line leaves zero: at the upright, where there are as many tokens as dials. "
    "Choose another model above and draw again: its line joins this one."
)
EMPTY = "One click: some seconds on two cores."
MOST_POWER = 15
CHOSEN_POWER = 11
REACHED_NATS = 5e-3

Curves = dict[str, tuple[int, list[Dial]]]
"""Model -> its dials and its points, as drawn for a session."""


@dataclass(frozen=True)
class DialsPanel:
    draw: gr.Button
    power: gr.Slider
    curve: gr.HTML
    caption: gr.HTML
    curves: gr.State


def draw_dials(app: AppContext, model: str, power: float, curves: Curves) -> Iterator[list[Any]]:
    """Values for (chart, sentence, curves), at every point."""
    try:
        dials, others = _dials(app, model), {name: curve for name, curve in curves.items() if name != model}
        points: list[Dial] = []
        yield ["", message("Drawing …", "busy"), gr.skip()]
        for size in dials.sizes():
            points.append(dials.at(size))
            drawn = {**others, model: (dials.dials, points)}
            yield [_picture(drawn), gr.skip(), gr.skip()]
        yield [*choose_tokens(app, model, power, drawn), drawn]
    except Exception as error:
        yield [gr.skip(), message(sentence(error), "error"), gr.skip()]


def choose_tokens(app: AppContext, model: str, power: float, curves: Curves) -> list[Any]:
    """Values for (chart, sentence) after the slider moved."""
    try:
        dials = _dials(app, model)
        here = dials.at(min(round(2**power), dials.most_tokens))
        return [_picture(curves, here) if model in curves else gr.skip(), dial_html(dials.dials, here)]
    except Exception as error:
        return [gr.skip(), message(sentence(error), "error")]


def _dials(app: AppContext, model: str) -> Dials:
    if not model:
        raise InputError("The dials can be counted as soon as the model is ready.")
    return dials_of(app.pool.get(model).lm)


def _picture(curves: Curves, here: Dial | None = None) -> str:
    return figure_json(dials_figure(curves, here)) + "\n"


def dial_html(dials: int, here: Dial) -> str:
    """What one point says."""
    over = f"<b>{here.tokens:,} tokens, {dials:,} dials.</b>"
    floor, alike = quantity(here.lower_bound_nats, "kl", 3), quantity(here.alike_nats, "kl", 3)
    if here.lower_bound_nats < REACHED_NATS:
        caption = f"These odds can be said: the floor is {floor}."
    elif here.tokens <= dials:
        caption = (
            f"There are dials enough, but the final norm does not let them be turned as far as it takes: no prompt "
            f"comes closer than {floor}."
        )
    else:
        caption = f"No prompt comes closer than {floor}; saying all {here.tokens:,} alike would be {alike} away."
    return f"<p class='dpx-note' data-tokens='{here.tokens}'>{over} {caption}</p>"


def build_dials_card() -> DialsPanel:
    card_title("How many dials?")
    view(f"<p class='dpx-note'>{INTRODUCTION}</p>")
    with gr.Row(elem_classes="dpx-inline"):
        draw = gr.Button("Draw the curve", size="sm", elem_id="dials-draw", scale=0, min_width=150)
        power = gr.Slider(
            1, MOST_POWER, CHOSEN_POWER, step=0.5, label="Tokens, as a power of two", elem_id="dials-power", scale=1
        )
    caption = view(live=True, elem_id="dials-told")
    curve = chart("figure", [("dpx-figure", "")], EMPTY, elem_id="dials-chart")
    gr.Markdown(LOOK_FOR, elem_classes="dpx-look-for")
    return DialsPanel(draw, power, curve, caption, gr.State({}))


def wire_dials_panel(app: AppContext, panel: DialsPanel, model: gr.Textbox) -> None:
    def draw(model: str, power: float, curves: Curves) -> Iterator[list[Any]]:
        yield from draw_dials(app, model, power, curves)

    def choose(model: str, power: float, curves: Curves) -> list[Any]:
        return choose_tokens(app, model, power, curves)

    asked = [model, panel.power, panel.curves]
    panel.draw.click(
        draw,
        asked,
        [panel.curve, panel.caption, panel.curves],
        show_progress="hidden",
        concurrency_limit=None,
        api_visibility="private",
    )
    panel.power.input(choose, asked, [panel.curve, panel.caption], **QUIET)
