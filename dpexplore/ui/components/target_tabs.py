"""The tabs of the target designer: one panel for each way of making a distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from dpexplore.targets import Recipe
from dpexplore.targets.arrays import array_names
from dpexplore.targets.by_pos import MODES, TAGS
from dpexplore.targets.descent import STEP_SIZE
from dpexplore.targets.listed import KINDS, RESTS, TOKENS_ARE
from dpexplore.ui.components import recipes
from dpexplore.ui.components.preview import PICKS_LABEL
from dpexplore.ui.components.widgets import sliders, view

MOST_OUTLIERS = 100
_FAMILIES = (
    "<p class='dpx-note'>Many shapes have one entropy, and the paper gives no step for its gradient descent. Both ways "
    "start from the same random logits. Temperature scales them, which leaves a few tokens far ahead; gradient descent "
    "raises many together, more so with a longer step, and such a target is harder to reach.</p>"
)


@dataclass(frozen=True)
class Limit:
    """The range of a slider."""

    label: str
    low: float
    high: float | None
    """None where the model's vocabulary sets it: log2 of its size, bits."""
    unit: str = ""


@dataclass(frozen=True)
class Tab:
    """One tab: its controls by name, and how their values become a recipe."""

    key: str
    item: gr.Tab
    controls: dict[str, Component]
    """In the order of `recipe`'s arguments."""
    recipe: Callable[..., Recipe]
    follows: Sequence[Any]
    """The events that set the target."""
    extras: dict[str, Component] = field(default_factory=dict)
    """What the tab shows or asks beside its recipe."""
    limits: dict[str, Limit] = field(default_factory=dict)
    """Ranges of its sliders, by the name of the control."""


def build_tabs() -> list[Tab]:
    return [_entropy_tab(), _outliers_tab(), _prompt_tab(), _pos_tab(), _hand_tab(), _file_tab()]


def _seed(elem_id: str, **settings: Any) -> gr.Number:
    return gr.Number(0, label="Seed", elem_id=elem_id, min_width=60, scale=1, **settings)


def _slider(limit: Limit, value: float, step: float, elem_id: str) -> gr.Slider:
    high = 15.58 if limit.high is None else limit.high
    return gr.Slider(limit.low, high, value, step=step, label=f"{limit.label}{limit.unit}", elem_id=elem_id)


def _entropy_tab() -> Tab:
    with gr.Tab("Entropy", id="entropy", elem_id="tab-entropy") as item:
        limit = Limit("Entropy of the target", 0, None, " (bits)")
        bits = _slider(limit, 7, 0.01, "entropy-bits")
        with gr.Row(elem_classes="dpx-inline"):
            seed = _seed("entropy-seed")
            method = gr.Dropdown(
                list(recipes.METHOD_NAMES.values()),
                label="Reached by",
                elem_id="entropy-method",
                min_width=150,
                scale=3,
            )
            step = gr.Number(STEP_SIZE, label="Step (logits)", elem_id="entropy-step", min_width=60, scale=1)
        view(_FAMILIES, elem_id="entropy-families")
    controls: dict[str, Component] = {"bits": bits, "seed": seed, "method": method, "entropy_step": step}
    follows = [bits.input, seed.input, method.input, step.input]
    return Tab("entropy", item, controls, recipes.entropy_recipe, follows, limits={"bits": limit})


def _outliers_tab() -> Tab:
    with gr.Tab("Outliers", id="outliers", elem_id="tab-outliers") as item:
        limits = {
            "outlier_bits": Limit("Entropy", 0, None, " (bits)"),
            "count": Limit("Outlier tokens", 1, MOST_OUTLIERS),
        }
        bits = _slider(limits["outlier_bits"], 7, 0.01, "outlier-bits")
        count = _slider(limits["count"], 5, 1, "outlier-count")
        with gr.Row(elem_classes="dpx-inline"):
            query = gr.Textbox(
                "", label="Find tokens", placeholder="yes", elem_id="outlier-search", scale=2, min_width=80
            )
            picks = gr.Dropdown(
                [], multiselect=True, label=PICKS_LABEL, elem_id="outlier-picks", scale=4, min_width=120
            )
            seed = _seed("outlier-seed")
        mass_of = gr.Radio(
            list(recipes.MASS_NAMES.values()),
            value=recipes.MASS_NAMES["paper"],
            label="Their mass m is the most for",
            elem_id="outlier-mass",
        )
        mass = view(elem_id="outlier-range")
    controls: dict[str, Component] = {
        "outlier_bits": bits,
        "count": count,
        "outlier_seed": seed,
        "picks": picks,
        "mass_of": mass_of,
    }
    follows = [bits.input, count.input, seed.input, picks.input, mass_of.input]
    return Tab("outliers", item, controls, recipes.outliers_recipe, follows, {"query": query, "mass": mass}, limits)


def _prompt_tab() -> Tab:
    with gr.Tab("Prompt", id="prompt", elem_id="tab-prompt") as item:
        text = gr.Textbox(
            "I love", label="Target: what the model says after this text", lines=2, max_lines=4, elem_id="prompt-text"
        )
        with gr.Row(elem_classes="dpx-inline"):
            options = gr.CheckboxGroup(
                [recipes.BOS, recipes.CHAT],
                value=[recipes.BOS],
                label="With",
                elem_id="prompt-options",
                min_width=190,
                scale=3,
            )
            source = gr.Textbox(
                "",
                label="Said by (migrates)",
                placeholder="this model",
                elem_id="prompt-source",
                min_width=110,
                scale=2,
            )
        with gr.Row(elem_classes="dpx-inline"):
            length = gr.Number(5, label="Random tokens", elem_id="prompt-length", min_width=60, scale=2)
            seed = _seed("prompt-seed")
            random = gr.Button("Use a random prompt", elem_id="prompt-random", scale=3, min_width=120)
    controls: dict[str, Component] = {"text": text, "source": source, "options": options}
    extras: dict[str, Component] = {"length": length, "prompt_seed": seed, "random": random}
    return Tab(
        "prompt", item, controls, recipes.prompt_recipe, [text.input, source.submit, source.blur, options.input], extras
    )


def _pos_tab() -> Tab:
    with gr.Tab("Parts of speech", id="pos", elem_id="tab-pos") as item:
        with gr.Row(elem_classes="dpx-inline"):
            tag = gr.Dropdown(
                list(TAGS), value="NOUN", label="Part of speech", elem_id="pos-tag", scale=3, min_width=100
            )
            count = gr.Number(100, label="Tokens", elem_id="pos-count", min_width=60, scale=2)
            seed = _seed("pos-seed")
            mode = gr.Radio(list(MODES), value=MODES[0], label="Tagging", elem_id="pos-mode", scale=3, min_width=120)
        histogram = view(elem_id="pos-histogram")
    controls: dict[str, Component] = {"tag": tag, "pos_count": count, "pos_seed": seed, "mode": mode}
    follows = [tag.input, count.input, seed.input, mode.input]
    return Tab("pos", item, controls, recipes.pos_recipe, follows, {"histogram": histogram})


def _hand_tab() -> Tab:
    with gr.Tab("By hand", id="hand", elem_id="tab-hand") as item:
        with gr.Row(elem_classes="dpx-inline dpx-top-aligned"):
            lines = gr.Textbox(
                recipes.HAND_EXAMPLE,
                label="Token and weight, one a line",
                lines=4,
                max_lines=4,
                elem_id="hand-lines",
                scale=2,
                min_width=120,
            )
            bars = sliders(elem_id="hand-bars", min_width=140)
        limit = Limit("Share of all other tokens", 0, 0.99)
        rest = _slider(limit, 0, 0.01, "hand-rest")
    controls: dict[str, Component] = {"lines": lines, "rest": rest}
    return Tab("hand", item, controls, recipes.hand_recipe, [lines.input, rest.input], {"bars": bars}, {"rest": limit})


def _file_tab() -> Tab:
    with gr.Tab("File", id="file", elem_id="tab-file") as item:
        path = gr.File(
            label=".npz or .npy; .csv, .tsv or .json of tokens",
            file_types=[".npz", ".npy", ".csv", ".tsv", ".json"],
            file_count="single",
            type="filepath",
            elem_id="target-file",
            height=120,
        )
        with gr.Accordion("How it is read", open=False, elem_id="file-reading"):
            kind = _as_the_file_says("Numbers are", KINDS, "file-kind")
            tokens = _as_the_file_says("Whole numbers as tokens are", TOKENS_ARE, "file-tokens")
            rest = _as_the_file_says("What a list leaves out", RESTS, "file-rest")
            array = _as_the_file_says("Which array of several", (), "file-array")
    path.change(offered_arrays, path, array, show_progress="hidden", api_visibility="private")
    controls: dict[str, Component] = {"path": path}
    controls |= {"file_kind": kind, "file_tokens": tokens, "file_rest": rest, "file_array": array}
    follows = [path.upload, kind.input, tokens.input, rest.input, array.input]
    return Tab("file", item, controls, file_recipe, follows)


def file_recipe(path: str | None, kind: str, tokens: str, rest: str, array: str) -> Recipe:
    """The tab's recipe. An array that was chosen of another file counts no more."""
    return recipes.file_recipe(path, kind, tokens, rest, array if path and array in array_names(Path(path)) else "")


def offered_arrays(path: str | None) -> Any:
    """A file was put in or taken out: its arrays are the choices, if it holds several. Value for the choice."""
    names = array_names(Path(path)) if path else []
    return gr.update(choices=choices_of(names if len(names) > 1 else ()), value="")


def _as_the_file_says(label: str, choices: Sequence[str], elem_id: str) -> gr.Dropdown:
    """A choice that is only needed where a file can be read in two ways."""
    return gr.Dropdown(choices_of(choices), value="", label=label, elem_id=elem_id, min_width=100)


def choices_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Choices of a drop-down in which nothing need be chosen."""
    return [("as the file says", ""), *((name, name) for name in names)]
