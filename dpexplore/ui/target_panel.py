"""The target designer: one tab for each way of making a distribution, transforms on top, the recipe as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component

from dpexplore.errors import InputError
from dpexplore.targets import Recipe
from dpexplore.ui import recipes
from dpexplore.ui.context import AppContext, sentence
from dpexplore.ui.markup import message
from dpexplore.ui.preview import preview
from dpexplore.ui.widgets import chart, view, card_title

QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "trigger_mode": "always_last",
    "concurrency_limit": None,
    "api_visibility": "private",
}
"""For handlers that follow the hand: no spinner, only the latest value counts, nobody waits for another."""

TRANSFORMS = {
    "shuffle": ("shuffle(seed={:.0f})", "seed", 1),
    "matched": ("matched(seed={:.0f})", "seed", 1),
    "temperature": ("temperature({:g})", "temperature", 0.5),
    "top-k": ("top_k({:.0f})", "k", 50),
    "mix with uniform": ("mix(entropy(bits={limit:.4f}), {:g})", "share of the uniform part", 0.1),
}


@dataclass(frozen=True)
class Tab:
    """One tab: its controls by name, and how their values become a recipe."""

    key: str
    item: gr.Tab
    controls: dict[str, Component]
    recipe: Callable[..., Recipe]
    follows: Sequence[Component]
    """The controls whose input sets the target; the others wait for a button."""


@dataclass(frozen=True)
class TargetPanel:
    tabs: gr.Tabs
    all_tabs: list[Tab]
    recipe: gr.Textbox
    stack: gr.CheckboxGroup
    chart: gr.HTML
    tokens: gr.HTML
    facts: gr.HTML
    controls: dict[str, Component]

    @property
    def shown(self) -> list[Component]:
        """What follows the recipe."""
        return [self.chart, self.tokens, self.facts]


def show_target(app: AppContext, model: str, text: str) -> list[Any]:
    """Values for `TargetPanel.shown`; on bad input the last preview stays and one sentence says what is wrong."""
    if not model:
        return [gr.skip(), gr.skip(), message("The preview appears as soon as the model is ready.", "info")]
    try:
        entry = app.pool.get(model)
        shown = preview(entry.lm, entry.target(text, load=app.pool.source))
    except Exception as error:
        return [gr.skip(), gr.skip(), message(sentence(error), "error")]
    return [shown.stream, shown.tokens, shown.facts]


def set_base(app: AppContext, make: Callable[..., Recipe], model: str, text: str, *values: Any) -> list[Any]:
    """A panel's control moved. Values for (recipe, *shown)."""
    try:
        text = recipes.with_base(text, make(*values))
    except Exception as error:
        return [gr.skip(), gr.skip(), gr.skip(), message(sentence(error), "error")]
    return [text, *show_target(app, model, text)]


def read_recipe(app: AppContext, names: list[str], model: str, text: str) -> list[Any]:
    """The text was edited: the panels follow it. Values for (tabs, stack, *controls named, *shown)."""
    shown = show_target(app, model, text)
    try:
        split = recipes.split_recipe(text)
    except InputError:
        return [gr.skip() for _ in range(2 + len(names))] + shown
    tab, values = recipes.panel_values(split.base)
    chosen = gr.Tabs(selected=tab) if tab else gr.skip()
    stack = gr.CheckboxGroup(choices=split.transforms, value=split.transforms, visible=bool(split.transforms))
    return [chosen, stack, *(values.get(name, gr.skip()) for name in names), *shown]


def set_stack(app: AppContext, model: str, text: str, kept: list[str]) -> list[Any]:
    """A transform was taken off. Values for (recipe, stack, *shown)."""
    try:
        base = str(recipes.split_recipe(text).base)
        return _restacked(app, model, recipes.join_recipe(base, kept))
    except Exception as error:
        return [gr.skip()] * 4 + [message(sentence(error), "error")]


def add_transform(app: AppContext, model: str, text: str, kind: str, value: float) -> list[Any]:
    """A transform was put on top. Values for (recipe, stack, *shown)."""
    try:
        if value is None:
            raise InputError("The transform needs a number.")
        limit = math.floor(1e4 * math.log2(app.pool.get(model).lm.vocab_size)) / 1e4
        call = TRANSFORMS[kind][0].format(value, limit=limit)
        split = recipes.split_recipe(text)
        return _restacked(app, model, recipes.join_recipe(str(split.base), [*split.transforms, call]))
    except Exception as error:
        return [gr.skip()] * 4 + [message(sentence(error), "error")]


def _restacked(app: AppContext, model: str, text: str) -> list[Any]:
    calls = recipes.split_recipe(text).transforms
    stack = gr.CheckboxGroup(choices=calls, value=calls, visible=bool(calls))
    return [text, stack, *show_target(app, model, text)]


def entropy_limit(app: AppContext, model: str) -> Any:
    """The slider ends at log2|V| of the model in use."""
    if not model:
        return gr.skip()
    limit = math.floor(100 * math.log2(app.pool.get(model).lm.vocab_size)) / 100
    return gr.update(maximum=limit)


def _entropy_tab() -> Tab:
    with gr.Tab("Entropy", id="entropy") as item:
        bits = gr.Slider(0, 15.58, 7, step=0.01, label="Entropy of the target (bits)", elem_id="entropy-bits")
        with gr.Row(elem_classes="dpx-inline"):
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="entropy-seed", min_width=70, scale=1)
            method = gr.Dropdown(
                list(recipes.METHOD_NAMES.values()), label="Reached by", elem_id="entropy-method", min_width=150, scale=3
            )
    controls: dict[str, Component] = {"bits": bits, "seed": seed, "method": method}
    return Tab("entropy", item, controls, recipes.entropy_recipe, [bits, seed, method])


def _prompt_tab() -> Tab:
    with gr.Tab("Prompt", id="prompt") as item:
        text = gr.Textbox("I love", label="Target = what the model says after this text", lines=2, max_lines=4, elem_id="prompt-text")
        with gr.Row(elem_classes="dpx-inline"):
            options = gr.CheckboxGroup([recipes.BOS, recipes.CHAT], value=[recipes.BOS], show_label=False, container=False, elem_id="prompt-options", min_width=200, scale=3)
            source = gr.Textbox("", label="Source model", placeholder="this one", elem_id="prompt-source", min_width=110, scale=2)
    controls: dict[str, Component] = {"text": text, "source": source, "options": options}
    return Tab("prompt", item, controls, recipes.prompt_recipe, [text, source, options])


def build_target_panel() -> TargetPanel:
    with gr.Row(elem_classes="dpx-title-row"):
        card_title("Target")
        facts = view(live=True, elem_id="target-facts")
    with gr.Tabs(elem_id="target-tabs") as tabs:
        all_tabs = [_entropy_tab(), _prompt_tab()]
    recipe = gr.Textbox(recipes.DEFAULT_RECIPE, label="Recipe", lines=1, max_lines=3, elem_id="recipe")
    stack = gr.CheckboxGroup([], label="On top (untick to take off)", visible=False, elem_id="transform-stack")
    with gr.Accordion("Transform it", open=False, elem_id="transforms"), gr.Row(elem_classes="dpx-inline"):
        kind = gr.Dropdown(list(TRANSFORMS), value="shuffle", label="Transform", elem_id="transform-kind", min_width=130, scale=3)
        value = gr.Number(1, label="seed", elem_id="transform-value", min_width=70, scale=2)
        add = gr.Button("Put on top", elem_id="transform-add", min_width=90, scale=1)
    with gr.Row(elem_id="target-preview"):
        shape = chart("ranks", [("dpx-ranks", "Probability by rank")], "The target's shape appears here.", elem_id="target-chart", min_width=180)
        tokens = view(elem_id="target-tokens", min_width=130)
    controls = {name: control for tab in all_tabs for name, control in tab.controls.items()}
    controls |= {"transform_kind": kind, "transform_value": value, "transform_add": add}
    return TargetPanel(tabs, all_tabs, recipe, stack, shape, tokens, facts, controls)


def wire_target_panel(app: AppContext, panel: TargetPanel, model: gr.State) -> None:
    for tab in panel.all_tabs:
        values = list(tab.controls.values())
        events = [control.input for control in tab.follows] + [tab.item.select]  # type: ignore[attr-defined]
        gr.on(events, partial(set_base, app, tab.recipe), [model, panel.recipe, *values], [panel.recipe, *panel.shown], **QUIET)
    names = [name for tab in panel.all_tabs for name in tab.controls]
    panel.recipe.input(
        partial(read_recipe, app, names),
        [model, panel.recipe],
        [panel.tabs, panel.stack, *(panel.controls[name] for name in names), *panel.shown],
        **QUIET,
    )
    stacked = [panel.recipe, panel.stack, *panel.shown]
    panel.stack.input(partial(set_stack, app), [model, panel.recipe, panel.stack], stacked, **QUIET)
    kind, value = panel.controls["transform_kind"], panel.controls["transform_value"]
    panel.controls["transform_add"].click(partial(add_transform, app), [model, panel.recipe, kind, value], stacked, **QUIET)  # type: ignore[attr-defined]
    kind.input(lambda name: gr.update(label=TRANSFORMS[name][1], value=TRANSFORMS[name][2]), kind, value, **QUIET)  # type: ignore[attr-defined]
