"""The model picker: what there is, what fits, and loading behind a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

import gradio as gr

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel, ModelInfo
from dpexplore.models.default_model import PACKAGED
from dpexplore.models.packaged import Terms
from dpexplore.models.precision import DTYPES, split_dtype, with_dtype
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.model_pool import ModelPool
from dpexplore.ui.components.markup import message, progress_bar, table
from dpexplore.ui.components.widgets import view

POLL_SECONDS = 0.25
AUTOMATIC = "automatic"


@dataclass(frozen=True)
class ModelPanel:
    name: gr.Textbox
    """The model that this page tunes, kept by the page itself: the server may have forgotten its session."""
    strip: gr.HTML
    """Progress or failure of loading, above everything else; empty when all is well."""
    picker: gr.Accordion
    choice: gr.Dropdown
    custom: gr.Textbox
    load: gr.Button
    precision: gr.Radio
    """Precision of the weights; shown only where the page is not public, since it costs the server memory."""
    why: gr.HTML
    """Which precision the model has, and why."""
    accept: gr.Button
    """Accepts the terms of the curated model that was chosen; shown where it has some that nobody accepted here."""


def parameters_text(count: int) -> str:
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"


def memory_text(count: int) -> str:
    return f"{count / 2**30:.1f} GB"


def choice_label(info: ModelInfo) -> str:
    fits = "" if info.fits else " · too large here"
    gated = " · gated" if info.gated else ""
    return f"{info.name} · {parameters_text(info.parameters)} · {info.vocab_size:,} tokens{gated}{fits}"


def models_table(infos: list[ModelInfo]) -> str:
    """The curated models beside the memory of this machine."""
    present = memory_text(infos[0].bytes_present) if infos else "?"
    rows = [
        [
            f"<b>{info.name}</b>{' <small>gated</small>' if info.gated else ''}",
            parameters_text(info.parameters),
            f"{info.vocab_size:,}",
            _memory_cell(info),
        ]
        for info in infos
    ]
    headers = [("model", "is-token"), ("parameters", "is-num"), ("vocabulary", "is-num"), ("needs", "is-num")]
    return table(headers, rows, f"Curated models; {present} of memory is free here")


def _memory_cell(info: ModelInfo) -> str:
    css, sign = ("is-good", "✓") if info.fits else ("is-bad", "✗")
    return f"<span class='{css}'>{memory_text(info.bytes_needed)} {sign}</span>"


def ready_label(lm: LanguageModel) -> str:
    return f"{short_name(lm.name)} · {parameters_text(lm.parameter_count)} · {lm.device.type} · ready"


def short_name(name: str) -> str:
    """A model's name for the header; of a path its last part."""
    return name.rstrip("/").rsplit("/", 1)[-1][:48]


def follow_loading(pool: ModelPool, name: str) -> Iterator[str]:
    """HTML of the loading's progress until it has ended; InputError if it failed."""
    loading = pool.start_loading(name)
    while not loading.done.wait(POLL_SECONDS):
        yield progress_bar(f"{short_name(name)}: {loading.text}", loading.fraction)
    if loading.error:
        raise InputError(loading.error)


def build_model_panel(app: AppContext, strip: gr.HTML) -> ModelPanel:
    infos = app.offered()
    any_model = app.rules is None or app.rules.manifest.models.any_hub_model
    name = gr.Textbox(visible="hidden", elem_id="model-name")
    with gr.Accordion("Model", open=False, elem_id="model-picker") as picker:
        choice = gr.Dropdown(
            [(choice_label(info), info.name) for info in infos],
            value=app.model if app.model in {info.name for info in infos} else None,
            label="Curated",
            elem_id="model-choice",
        )
        with gr.Row(elem_classes="dpx-inline", visible=any_model):
            custom = gr.Textbox(
                label="or any other",
                placeholder="Hub id, local folder, .gguf file, random:gpt2" if app.rules is None else "Hub id",
                elem_id="model-custom",
                scale=3,
            )
            load = gr.Button("Load", elem_id="model-load", scale=1, min_width=70)
        precision = gr.Radio(
            [AUTOMATIC, *DTYPES], value=AUTOMATIC, label="Precision", elem_id="model-dtype", visible=app.rules is None
        )
        why = view(elem_id="model-why")
        accept = gr.Button("Accept the terms", elem_id="model-accept", visible=False)
        view(models_table(infos), elem_id="model-table")
    return ModelPanel(name, strip, picker, choice, custom, load, precision, why, accept)


def in_precision(name: str, precision: str) -> str:
    """The name by which a model is loaded in a chosen precision; its own stays where none was chosen."""
    return with_dtype(name.strip(), None if precision == AUTOMATIC else precision) if name.strip() else ""


def again_in(current: str, precision: str) -> str:
    """The present model's name in another precision."""
    return in_precision(split_dtype(current)[0], precision)


def why_html(app: AppContext, name: str) -> str:
    """The precision of a loaded model, and the reason."""
    return f"<p class='dpx-note'>{escape(app.pool.get(name).lm.dtype_reason)}</p>" if app.pool.is_loaded(name) else ""


def show_terms(app: AppContext, chosen: str | None) -> dict:
    """The button that accepts what the chosen model asks for; none where visitors are not who decides."""
    terms = _open_terms(chosen) if app.rules is None else None
    if terms is None:
        return gr.update(visible=False)
    return gr.update(visible=True, value=f"Accept the {terms.title} and load {chosen}")


def accept_terms(chosen: str | None) -> None:
    """Remember that the person who runs this server has accepted the terms of the chosen model."""
    terms = _open_terms(chosen)
    if terms is not None:
        terms.accept()


def _open_terms(chosen: str | None) -> Terms | None:
    """Terms of a model that have not been accepted yet."""
    packaged = PACKAGED.get(split_dtype(chosen or "")[0])
    return None if packaged is None or packaged.terms is None or packaged.terms.accepted else packaged.terms


def use_model(app: AppContext, wanted: str, current: str) -> Iterator[tuple]:
    """Load `wanted` for this page; what was there stays until it is ready, and stays if it fails.

    Yields values for (strip, name, picker).
    """
    wanted = wanted.strip()
    if not wanted:
        yield message("Type a Hub id, a folder or a .gguf file first.", "error"), gr.skip(), gr.skip()
        return
    try:
        for html in follow_loading(app.pool, wanted):
            yield html, gr.skip(), gr.skip() if current else gr.update(label=f"{short_name(wanted)} · loading")
        lm = app.pool.get(wanted).lm
        yield "", wanted, gr.update(label=ready_label(lm), open=False)
    except InputError as error:
        kept = f" {short_name(current)} stays in use." if current else " Choose another model in the picker."
        yield (
            message(f"{error}{kept}", "error"),
            gr.skip(),
            gr.skip() if current else gr.update(label="Choose a model", open=True),
        )
