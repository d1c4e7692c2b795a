"""Three words in their triangle: the region that the model can ever say, and a target to drag."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext, check_single_tokens, sentence
from dpexplore.serving.words import chosen_words, inseparable_words, triangle, words_recipe
from dpexplore.targets import Target
from dpexplore.ui.components.markup import message, token
from dpexplore.ui.components.target_panel import QUIET, Changes, TargetPanel, note_shown, read_recipe
from dpexplore.ui.components.widgets import card_title, legend, triangle_picture, view
from dpexplore.ui.visitor import session_of

LEGEND = [("head", "can be said"), ("target", "target"), ("floor", "closest the head comes"), ("achieved", "your run")]
LOOK_FOR = (
    "Drag the point: these three words, in these shares, become the target. Look for where it leaves the coloured "
    "region: no prompt, of any length, says what lies outside."
)
PLACEHOLDER = "the target's three likeliest"
FIRST_SHARES = (0.55, 0.15, 0.3)
"""Of words that the head cannot tell apart: well outside what it can say."""
EQUAL = 5e-3
"""Odds below 1.01 to 1, as a power of ten."""
FAR_BEYOND = 6.0
"""Odds of more than a million to one, as a power of ten, are all that a picture shows."""


@dataclass(frozen=True)
class WordsPanel:
    words: gr.Textbox
    picture: gr.HTML
    caption: gr.HTML
    inseparable: gr.Button
    ids: gr.State
    """The words shown now, by id: their corners stay theirs while the target moves."""


def show_words(app: AppContext, session: str, model: str, recipe_text: str, text: str, ids: list[int]) -> list[Any]:
    """Values for (picture, sentence, ids)."""
    if not model:
        return [gr.skip()] * 3
    try:
        lm, target = app.pool.get(model).lm, app.target(model, recipe_text)
        check_single_tokens(target)
        chosen = chosen_words(lm, target, text or "")
        if sorted(chosen) == sorted(ids):
            chosen = ids
        return [*_shown(app, session, model, lm, target, chosen), chosen]
    except Exception as error:
        return ["", message(sentence(error), "error"), []]


def _shown(
    app: AppContext, session: str, model: str, lm: LanguageModel, target: Target, ids: list[int]
) -> tuple[str, str]:
    floor = app.floors.known(lm, target)
    frames = app.walk(session, model, target.recipe)
    said = None if frames is None or not frames.steps else [frames.follow(i)[-1] for i in ids]
    found = triangle(lm, target, ids, None if floor is None else floor.log_probs, said)
    return json.dumps(found, allow_nan=False), words_html(found)


def words_html(found: dict[str, Any]) -> str:
    """What the region means, in one sentence with its numbers."""
    first, second = (token(found["words"][place]) for place in found["narrowest"]["pair"])
    power = found["narrowest"]["log10_odds"]
    if power > FAR_BEYOND:
        caption = (
            f"All of it can be said: even {first} and {second} can be up to 10<sup>{power:,.0f}</sup> to 1 apart. "
            "Three ordinary words bind no model; the whole vocabulary together does."
        )
    elif power < EQUAL:
        caption = (
            f"Whatever the prompt, {first} and {second} are said <b>equally often</b>: the model's last layer holds "
            "the same vector for both. Drag the point away from the line, and see the floor rise."
        )
    else:
        caption = (
            f"Whatever the prompt, {first} and {second} are at most {10**power:,.3g} to 1 apart: "
            "the model can hardly tell them from one another."
        )
    rest = "" if found["mass"] > 0.995 else f" The three hold {100 * found['mass']:.3g} % of the target."
    return f"<p class='dpx-note' data-can='{str(found['can']).lower()}'>{caption}{rest}</p>"


def build_words_card() -> WordsPanel:
    card_title("Three words", legend(LEGEND))
    picture = triangle_picture(elem_id="triangle")
    caption = view(live=True, elem_id="words-told")
    gr.Markdown(LOOK_FOR, elem_classes="dpx-look-for")
    with gr.Row(elem_classes="dpx-inline"):
        words = gr.Textbox("", label="Words, by commas", placeholder=PLACEHOLDER, max_lines=1, elem_id="words")
        inseparable = gr.Button("Inseparable two", size="sm", elem_id="words-inseparable", scale=0, min_width=130)
    return WordsPanel(words, picture, caption, inseparable, gr.State([]))


def wire_words_panel(
    app: AppContext, panel: WordsPanel, target: TargetPanel, floor: gr.HTML, result: gr.HTML, model: gr.Textbox
) -> None:
    """`floor` and `result` change when there is a new closest point, or a new run's."""
    outputs: dict[str, Any] = target.outputs

    def show(request: gr.Request, model: str, recipe: str, text: str, ids: list[int]) -> list[Any]:
        return show_words(app, session_of(app, request), model, recipe, text, ids)

    def named(changes: Changes) -> dict[Any, Any]:
        return {panel.caption: gr.skip(), **{outputs[name]: value for name, value in changes.items()}}

    def drag(request: gr.Request, model: str, event: gr.EventData) -> dict[Any, Any]:
        session = session_of(app, request)
        turn = app.sessions.take_turn(session)
        try:
            data = event._data
            recipe = words_recipe(
                app.pool.get(model).lm, [int(i) for i in data["ids"]], [float(share) for share in data["shares"]]
            )
        except Exception as error:
            return {panel.caption: message(sentence(error), "error")}
        changes = {"recipe": recipe, **read_recipe(app, model, recipe)}
        if not app.sessions.is_latest(session, turn):
            return {panel.caption: gr.skip()}
        note_shown(app, session, model, recipe, changes)
        return named(changes)

    def inseparable(model: str, recipe: str) -> dict[Any, Any]:
        if not model:
            return {panel.caption: message("The words can be found as soon as the model is ready.", "info")}
        try:
            lm = app.pool.get(model).lm
            ids = inseparable_words(lm, app.target(model, recipe))
            recipe = words_recipe(lm, ids, FIRST_SHARES)
            return {**named({"recipe": recipe, **read_recipe(app, model, recipe)}), panel.words: "", panel.ids: ids}
        except Exception as error:
            return {panel.caption: message(sentence(error), "error")}

    shown = [panel.picture, panel.caption, panel.ids]
    changed = [target.chart.change, floor.change, result.change, panel.words.input, model.change]
    gr.on(changed, show, [model, target.recipe, panel.words, panel.ids], shown, **QUIET)
    moved = [panel.caption, *outputs.values()]
    panel.picture.input(drag, model, moved, **QUIET)  # type: ignore[attr-defined]
    panel.inseparable.click(inseparable, [model, target.recipe], [*moved, panel.words, panel.ids], **QUIET)
