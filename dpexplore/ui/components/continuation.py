"""What the model says when it is let go on after the prompt that was found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext, sentence
from dpexplore.tuning.continuation import continue_prompt
from dpexplore.tuning.record.capsule import decode_array
from dpexplore.ui.components.markup import message, token
from dpexplore.ui.components.recipes import whole
from dpexplore.ui.components.widgets import view

EMPTY = "<p class='dpx-note'>After a run: three samples of what the model writes after the prompt that was found.</p>"
SAMPLES = 3
MOST_TOKENS = 64
EXPLANATION = (
    "<p class='dpx-note'>Drawn from the model itself, nothing truncated. The first token of each is a draw from q, "
    "the distribution that was tuned; what follows is the model's own.</p>"
)


@dataclass(frozen=True)
class ContinuationPanel:
    go: gr.Button
    tokens: gr.Number
    seed: gr.Number
    shown: gr.HTML


def prompt_of(lm: LanguageModel, capsule: str) -> Tensor:
    """Embeddings `(pos hidden)` of the prompt in a capsule's file. InputError if another model's."""
    record = json.loads(Path(capsule).read_text(encoding="utf-8"))
    if record["model"]["identity"] != lm.identity:
        raise InputError(f"This prompt was found on {record['model']['name']}; choose that model again to continue it.")
    if record["result"]["prompt_ids"] is None:
        return decode_array(record["result"]["prompt_embeds"])
    with torch.no_grad():
        return lm.embed(torch.tensor(record["result"]["prompt_ids"]))


def continuations(
    app: AppContext, model: str, capsule: str | None, tokens: float | None, seed: float | None
) -> Iterator[str]:
    """HTML of the continuations of a capsule's prompt, after a word that they are on their way."""
    try:
        if not capsule:
            raise InputError("There is no prompt yet; press Tune first.")
        length, start = whole("Tokens", tokens, 1, MOST_TOKENS), whole("Seed", seed)
        yield message("The model is writing …", "busy")
        lm = app.pool.get(model).lm
        yield continuations_html(lm, continue_prompt(lm, prompt_of(lm, capsule), length, SAMPLES, start))
    except Exception as error:
        yield message(sentence(error), "error")


def continuations_html(lm: LanguageModel, samples: list[list[int]]) -> str:
    rows = "".join(
        f"<li>{token(lm.token_text(ids[0]))}<span>{''.join(token(lm.token_text(i)) for i in ids[1:])}</span></li>"
        if ids
        else "<li><em>the model ends at once</em></li>"
        for ids in samples
    )
    return f"<ol class='dpx-continuations' aria-label='Continuations'>{rows}</ol>{EXPLANATION}"


def build_continuation() -> ContinuationPanel:
    with gr.Row(elem_classes="dpx-inline", elem_id="continue-row"):
        go = gr.Button("Let the model continue", elem_id="continue", scale=2, min_width=170)
        tokens = gr.Number(12, label="Tokens", elem_id="continue-tokens", scale=1, min_width=60)
        seed = gr.Number(0, label="Seed", elem_id="continue-seed", scale=1, min_width=60)
    return ContinuationPanel(go, tokens, seed, view(EMPTY, live=True, elem_id="continuation"))


def wire_continuation(
    app: AppContext, panel: ContinuationPanel, model: gr.Textbox, result: gr.HTML, capsule: gr.DownloadButton
) -> None:
    def run(model: str, path: str | None, tokens: float | None, seed: float | None) -> Iterator[str]:
        yield from continuations(app, model, path, tokens, seed)

    panel.go.click(
        run,
        [model, capsule, panel.tokens, panel.seed],
        panel.shown,
        show_progress="hidden",
        concurrency_limit=4,
        api_visibility="private",
    )
    result.change(lambda: EMPTY, None, panel.shown, show_progress="hidden", api_visibility="private")
