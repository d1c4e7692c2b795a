"""Can it ever say … first? Answers while one types, the words that a model can never say, and why that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dpexplore.floor.reach import Reach
from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext, sentence
from dpexplore.serving.reach import Listing, answers, listing
from dpexplore.targets import order
from dpexplore.ui.components.markup import message, progress_bar, table, token
from dpexplore.ui.components.target_panel import QUIET, TargetPanel, read_recipe
from dpexplore.ui.components.widgets import card_title, view

EMPTY = "<p class='dpx-note'>Type a word, or several separated by commas for an order: <b> the, a, an</b>.</p>"
WHY = """
The model's last step scores every token with one fixed vector per token: score = vector · u. The prompt decides only
u, and the final norm gives every u the same length. So a token can come first only if some direction ranks its vector
above all others. A vector that lies **between** others (in their convex hull) loses to one of them in every direction,
whatever the prompt. The answers are proofs: a yes comes with a u, and usually with a soft token that makes the model
itself do it; a no comes with weights that show the vector to be an average of others. How large a lead counts, and
how to check a no with NumPy alone: `dpexplore reach --json` and the documentation.
"""
LISTING = "reach listing"
"""Queue of everything that writes a listing."""
MOST_LISTED = 500
MOST_ABOVE = 3


@dataclass(frozen=True)
class ReachPanel:
    words: gr.Textbox
    answer: gr.HTML
    take: gr.Button
    draw: gr.Button
    listed: gr.HTML


def answer_html(found: list[Reach]) -> str:
    """One line for each way of reading what was typed."""
    return "".join(_line(one) for one in found)


def _line(one: Reach) -> str:
    words = " &gt; ".join(token(word) for word in one.words)
    what = f"{words} first" if len(one.words) == 1 else f"{words} as its likeliest tokens, in this order"
    data = f"data-can='{str(one.can).lower()}'"
    if one.can is None:
        return f"<p class='dpx-reach is-open' {data}>Open: whether it can say {what} was not proved in time.</p>"
    if not one.can:
        above = ", ".join(token(word) for word in one.above[:MOST_ABOVE])
        return (
            f"<p class='dpx-reach is-no' {data}><b>Never.</b> No prompt, of any length, makes this model say {what} "
            f"(certified). One of {above}, … always stands at or above.</p>"
        )
    seen = (
        ""
        if one.on_model is None
        else f" One soft token makes the model do it, by {one.on_model.margin_nats:.2f} nats."
    )
    return (
        f"<p class='dpx-reach is-yes' {data}><b>Yes.</b> It can say {what}, with a lead of at least "
        f"{one.ranking.margin_nats:.2f} nats (certified).{seen}</p>"
    )


def answer(app: AppContext, model: str, text: str | None) -> str:
    if not text or not text.strip():
        return EMPTY
    if not model:
        return message("The answer appears as soon as the model is ready.", "info")
    try:
        if app.rules:
            app.rules.check_text("The text", text)
        return answer_html(answers(app.pool.get(model).lm, text))
    except Exception as error:
        return message(sentence(error), "info")


def listing_html(lm: LanguageModel, now: Listing) -> str:
    """The unsayable tokens and what stands above them."""
    ordinary = set(lm.ordinary_ids.tolist())
    named = sum(record["ids"][0] in ordinary for record in now.unsayable)
    open_ones = f" {now.undecided:,} are undecided." if now.undecided else ""
    count = len(now.unsayable)
    text = (
        f"<p class='dpx-note' data-unsayable='{count}'>{count:,} of {now.decided:,} tokens can never come first; "
        f"{named:,} of them are ordinary text, the others special tokens.{open_ones}</p>"
    )
    if not now.unsayable:
        return text
    rows = [
        [token(record["first"]), str(record["ids"][0]), " ".join(map(token, record["above"][:MOST_ABOVE])) + " …"]
        for record in now.unsayable[:MOST_LISTED]
    ]
    headers = [("never first", "is-token"), ("id", "is-num"), ("one of these is at or above it", "is-token")]
    return text + table(headers, rows, "Tokens that no prompt can make the likeliest")


def follow_listing(app: AppContext, model: str) -> Iterator[str]:
    if not model:
        return
    try:
        lm = app.pool.get(model).lm
        for now in listing(lm):
            moving = "" if now.done else progress_bar(f"{now.decided:,} tokens decided", now.decided / now.total)
            yield moving + listing_html(lm, now)
    except Exception as error:
        yield message(sentence(error), "error")


def build_reach_card() -> ReachPanel:
    card_title("Can it ever say … first?")
    words = gr.Textbox("", label="A word, or an order of words", placeholder="the", max_lines=1, elem_id="reach-words")
    shown = view(EMPTY, live=True, elem_id="reach-answer")
    with gr.Row(elem_classes="dpx-inline"):
        take = gr.Button("Make this the target", size="sm", elem_id="reach-take")
        draw = gr.Button("List unsayable words", size="sm", elem_id="reach-list")
    listed = view(elem_id="reach-listed")
    with gr.Accordion("Why can a word be unsayable?", open=False, elem_id="reach-why"):
        gr.Markdown(WHY)
    return ReachPanel(words, shown, take, draw, listed)


def wire_reach_panel(app: AppContext, panel: ReachPanel, target: TargetPanel, model: gr.Textbox) -> None:
    outputs: dict[str, Any] = target.outputs

    def show(model: str, text: str | None) -> str:
        return answer(app, model, text)

    def take(model: str, text: str | None) -> dict[Any, Any]:
        if not text or not text.strip() or not model:
            return {panel.answer: message("Type a word first.", "info")}
        try:
            found = answers(app.pool.get(model).lm, text)[0]
            if found.can is False:
                refusal = message("No prompt does it, so it cannot be a target.", "info")
                return {panel.answer: answer_html([found]) + refusal}
            recipe = str(order(*found.words))
        except Exception as error:
            return {panel.answer: message(sentence(error), "error")}
        changes = {"recipe": recipe, **read_recipe(app, model, recipe)}
        return {outputs[name]: value for name, value in changes.items()}

    def draw(model: str) -> Iterator[str]:
        yield from follow_listing(app, model)

    gr.on([panel.words.input, model.change], show, [model, panel.words], panel.answer, **QUIET)
    panel.take.click(take, [model, panel.words], [panel.answer, *outputs.values()], **QUIET)
    # One at a time, since all sessions keep one listing of a model.
    panel.draw.click(
        draw,
        model,
        panel.listed,
        show_progress="hidden",
        concurrency_id=LISTING,
        concurrency_limit=1,
        api_visibility="private",
    )
