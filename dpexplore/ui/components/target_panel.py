"""The target designer: tabs, transforms on top, the recipe as text; each keeps in step with the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component

from dpexplore.errors import InputError
from dpexplore.serving.app_context import AppContext, sentence
from dpexplore.targets import Recipe
from dpexplore.ui.components import recipes
from dpexplore.ui.components.markup import message
from dpexplore.ui.components.preview import hand_bars, outlier_line, pos_bars, preview, token_choices
from dpexplore.ui.components.target_tabs import Limit, Tab, build_tabs, choices_of
from dpexplore.ui.components.widgets import card_title, chart, view
from dpexplore.ui.visitor import session_of
from dpexplore.wanted import while_wanted

QUIET: dict[str, Any] = {
    "show_progress": "hidden",
    "trigger_mode": "always_last",
    "concurrency_limit": None,
    "api_visibility": "private",
}
"""For handlers that follow the hand: no spinner, only the latest value counts, nobody waits for another.

A control's own next value is sent once its last one is answered, so nothing can end the work on the last one: a message
that overtakes it could also end the work on a newer one, and leave the page behind its controls. Another control's can.
"""

TRANSFORMS = {
    "shuffle": ("shuffle(seed={:.0f})", "seed", 1),
    "shuffle the top k": ("shuffle(seed=0, top_k={:.0f})", "k", 100),
    "matched vanilla": ("matched(seed={:.0f})", "seed", 1),
    "matched vanilla, by temperature": ('matched(seed={:.0f}, method="temperature")', "seed", 1),
    "temperature": ("temperature({:g})", "temperature", 0.5),
    "top k": ("top_k({:.0f})", "k", 50),
    "mix with uniform": ("mix(entropy(bits={limit:.4f}), {:g})", "share", 0.1),
}


Changes = dict[str, Any]


@dataclass(frozen=True)
class TargetPanel:
    tabs: gr.Tabs
    all_tabs: list[Tab]
    recipe: gr.Textbox
    stack: gr.CheckboxGroup
    kind: gr.Dropdown
    value: gr.Number
    add: gr.Button
    chart: gr.HTML
    tokens: gr.HTML
    facts: gr.HTML
    problem: gr.HTML

    @property
    def outputs(self) -> dict[str, Component]:
        """Everything that changes with the recipe, by the names that `Changes` use."""
        fixed = ("tabs", "recipe", "stack", "kind", "value", "chart", "tokens", "facts", "problem")
        return _distinct([(name, getattr(self, name)) for name in fixed] + [*self.controls.items()])

    @property
    def controls(self) -> dict[str, Component]:
        return _distinct([item for tab in self.all_tabs for own in (tab.controls, tab.extras) for item in own.items()])


def _distinct(named: list[tuple[str, Component]]) -> dict[str, Component]:
    """Components by name. ValueError where two have one name: what is meant for one would reach the other."""
    found = dict(named)
    if len(found) < len(named):
        raise ValueError(f"Two components have one name: {sorted(name for name, _ in named)}.")
    return found


# What happened at the designer -> what changes there, both by name; `chart`, `tokens`, `facts` and
# `problem` are the preview, other names the controls. A name that is missing stays as it is.


def _trouble(error: Exception) -> Changes:
    """The preview stays, and one sentence says what is wrong."""
    return {"problem": message(sentence(error), "error")}


def show_target(app: AppContext, model: str, text: str) -> Changes:
    """The preview of a recipe."""
    if not model:
        return {"problem": message("The preview appears as soon as the model is ready.", "info")}
    try:
        shown = preview(app.pool.get(model).lm, app.target(model, text))
    except Exception as error:
        return _trouble(error)
    return {"chart": shown.stream, "tokens": shown.tokens, "facts": shown.facts, "problem": ""}


def latest_changes(app: AppContext, session: str, action: Callable[[], Changes]) -> Changes:
    """What an action changes; nothing, and its work ends, if the session asks for something else meanwhile.

    A slow capture must not undo the slider moved after it.
    """
    turn = app.sessions.take_turn(session)
    with while_wanted(lambda: app.sessions.is_latest(session, turn)):
        changes = action()
    return changes if app.sessions.is_latest(session, turn) else {}


def note_shown(app: AppContext, session: str, model: str, text: str, changes: Changes) -> None:
    """Tell that the page shows a new preview: what is still under way for the target before it may end."""
    if "chart" in changes:
        app.sessions.note_target(session, model, app.target(model, str(changes.get("recipe", text))).recipe)


def set_base(app: AppContext, make: Callable[..., Recipe], model: str, text: str, *values: Any) -> Changes:
    """A panel's control moved: the recipe starts over, with the same transforms on top.

    A recipe that stays the same is not told: Gradio's drop-downs speak up whenever they are left, and what is being
    typed into the recipe meanwhile must not be overwritten.
    """
    try:
        changed = recipes.with_base(text, make(*values))
    except Exception as error:
        return _trouble(error)
    told = {} if changed == text else {"recipe": changed}
    return {**told, **show_target(app, model, changed)}


def set_tab(app: AppContext, tab: Tab, model: str, text: str, *values: Any) -> Changes:
    """A tab's control moved. A number outside its slider's range is put to the nearest end, and the page says so."""
    held, notes = dict(zip(tab.controls, values, strict=True)), []
    moved: Changes = {}
    try:
        for name, limit in tab.limits.items():
            value, high = held[name], _end_of(app, model, limit)
            if isinstance(value, int | float) and not limit.low <= value <= high:
                moved[name] = held[name] = min(max(value, limit.low), high)
                notes.append(f"{limit.label} goes from {limit.low:g} to {high:g}: {value:g} became {held[name]:g}.")
    except Exception as error:
        return _trouble(error)
    changes = {**set_base(app, tab.recipe, model, text, *held.values()), **moved}
    if notes and not changes.get("problem"):
        changes["problem"] = message(" ".join(notes), "info")
    return changes


def _end_of(app: AppContext, model: str, limit: Limit) -> float:
    if limit.high is not None:
        return limit.high
    return _most_bits(app, model) if model else math.inf


def _most_bits(app: AppContext, model: str) -> float:
    """Entropy of the uniform distribution over a model's vocabulary, bits, rounded down to a slider's hundredths."""
    return math.floor(100 * math.log2(app.pool.get(model).lm.vocab_size)) / 100


def open_tab(app: AppContext, tab: Tab, model: str, text: str, *values: Any) -> Changes:
    """A tab was opened, by hand or because the text now says so; then there is nothing to do."""
    try:
        if recipes.panel_values(recipes.split_recipe(text).base)[0] == tab.key:
            return {}
    except InputError:
        pass
    if tab.key == "file" and not values[0]:
        return {"problem": message("Drop a file into the field: the target stays as it is until then.", "info")}
    return set_tab(app, tab, model, text, *values)


def read_recipe(app: AppContext, model: str, text: str) -> Changes:
    """The text was edited: the panels follow it."""
    shown = show_target(app, model, text)
    if "chart" not in shown:  # values that no target has do not belong into sliders
        return shown
    return {**panels_of(text), **shown}


def panels_of(text: str) -> Changes:
    """Tab, controls and transforms as a recipe sets them."""
    split = recipes.split_recipe(text)
    tab, values = recipes.panel_values(split.base)
    if "picks" in values:
        values["picks"] = gr.update(choices=[(value[1:], value) for value in values["picks"]], value=values["picks"])
    if values.get("file_array"):
        name = values["file_array"]
        values["file_array"] = gr.update(choices=choices_of([name]), value=name)
    return {**({"tabs": gr.Tabs(selected=tab)} if tab else {}), "stack": _stack(split.transforms), **values}


def set_stack(app: AppContext, model: str, text: str, kept: list[str]) -> Changes:
    """A transform was taken off."""
    try:
        return _restacked(app, model, recipes.join_recipe(str(recipes.split_recipe(text).base), kept))
    except Exception as error:
        return _trouble(error)


def add_transform(app: AppContext, model: str, text: str, kind: str, value: float) -> Changes:
    """A transform was put on top."""
    try:
        if value is None:
            raise InputError("The transform needs a number.")
        limit = math.floor(1e4 * math.log2(app.pool.get(model).lm.vocab_size)) / 1e4
        call = TRANSFORMS[kind][0].format(value, limit=limit)
        split = recipes.split_recipe(text)
        return _restacked(app, model, recipes.join_recipe(str(split.base), [*split.transforms, call]))
    except Exception as error:
        return _trouble(error)


def nudge(app: AppContext, model: str, text: str, lines: str, rest: float, moved: dict[str, Any]) -> Changes:
    """A bar was dragged: its line changes, and the recipe with it."""
    try:
        lines = recipes.set_weight(lines, int(moved["index"]), float(moved["weight"]))
    except Exception as error:
        return _trouble(error)
    return {"lines": lines, **set_base(app, recipes.hand_recipe, model, text, lines, rest)}


def _restacked(app: AppContext, model: str, text: str) -> Changes:
    return {"recipe": text, "stack": _stack(recipes.split_recipe(text).transforms), **show_target(app, model, text)}


def _stack(calls: list[str]) -> Any:
    return gr.update(choices=calls, value=calls, visible=bool(calls))


def entropy_limits(app: AppContext, model: str) -> list[Any]:
    """The entropy sliders end at log2|V| of the model in use. Values for (bits, outlier_bits)."""
    if not model:
        return [gr.skip()] * 2
    return [gr.update(maximum=_most_bits(app, model))] * 2


def build_target_panel() -> TargetPanel:
    with gr.Row(elem_classes="dpx-title-row"):
        card_title("Target")
        facts = view(live=True, elem_id="target-facts")
    with gr.Tabs(elem_id="target-tabs") as tabs:
        all_tabs = build_tabs()
    recipe = gr.Textbox(recipes.DEFAULT_RECIPE, label="Recipe", lines=1, max_lines=3, elem_id="recipe")
    problem = view(live=True, elem_id="target-problem")
    stack = gr.CheckboxGroup([], label="On top (untick to take off)", visible=False, elem_id="transform-stack")
    with gr.Accordion("Transform it", open=False, elem_id="transforms"), gr.Row(elem_classes="dpx-inline"):
        kind = gr.Dropdown(
            list(TRANSFORMS), value="shuffle", label="Transform", elem_id="transform-kind", min_width=130, scale=3
        )
        value = gr.Number(1, label="seed", elem_id="transform-value", min_width=70, scale=2)
        add = gr.Button("Add", elem_id="transform-add", min_width=70, scale=1)
    with gr.Row(elem_id="target-preview"):
        caption = [("dpx-ranks", "Probability by rank")]
        shape = chart("ranks", caption, "The target's shape appears here.", elem_id="target-chart", min_width=180)
        tokens = view(elem_id="target-tokens", min_width=130)
    return TargetPanel(tabs, all_tabs, recipe, stack, kind, value, add, shape, tokens, facts, problem)


def wire_target_panel(app: AppContext, panel: TargetPanel, model: gr.Textbox) -> None:
    outputs = panel.outputs

    def on(events: list[Any], action: Callable[..., Changes], names: list[str], *, raw: bool = False) -> None:
        """`action(model, recipe, *values of names)` follows the events; answers that are overtaken are dropped.

        With `raw` values come as they were typed: Gradio's own check of a slider answers with a toast that names no
        field.
        """

        def follow(request: gr.Request, *values: Any) -> dict[Component, Any]:
            session = session_of(app, request)
            changes = latest_changes(app, session, partial(action, *values))
            note_shown(app, session, values[0], str(values[1]), changes)
            return {panel.problem: gr.skip(), **{outputs[name]: value for name, value in changes.items()}}

        inputs = [model, panel.recipe, *(outputs[name] for name in names)]
        gr.on(events, follow, inputs, list(outputs.values()), preprocess=not raw, **QUIET)

    for tab in panel.all_tabs:
        raw = bool(tab.limits)
        on(list(tab.follows), partial(set_tab, app, tab), list(tab.controls), raw=raw)
        on([tab.item.select], partial(open_tab, app, tab), list(tab.controls), raw=raw)
    on([panel.recipe.input], partial(read_recipe, app), [])
    on([panel.stack.input], partial(set_stack, app), ["stack"])
    on([panel.add.click], partial(add_transform, app), ["kind", "value"])
    random: Any = panel.controls["random"]
    on([random.click], partial(set_base, app, recipes.random_prompt_recipe), ["length", "prompt_seed", "source"])
    panel.kind.input(_transform_value, panel.kind, panel.value, **QUIET)
    _wire_bars(app, panel, model)
    _wire_extras(app, panel, model)


def _wire_bars(app: AppContext, panel: TargetPanel, model: gr.Textbox) -> None:
    outputs, bars = panel.outputs, panel.controls["bars"]

    def drag(model: str, text: str, lines: str, rest: float, event: gr.EventData) -> dict[Component, Any]:
        changes = nudge(app, model, text, lines, rest, event._data)
        return {panel.problem: gr.skip(), **{outputs[name]: value for name, value in changes.items()}}

    inputs = [model, panel.recipe, outputs["lines"], outputs["rest"]]
    bars.input(drag, inputs, list(outputs.values()), **QUIET)  # type: ignore[attr-defined]


def _transform_value(kind: str) -> Any:
    return gr.update(label=TRANSFORMS[kind][1], value=TRANSFORMS[kind][2])


def _wire_extras(app: AppContext, panel: TargetPanel, model: gr.Textbox) -> None:
    """What tabs show beside the target, and the controls that set it by a button or a bar."""
    control: dict[str, Any] = panel.controls
    by_key = {tab.key: tab for tab in panel.all_tabs}

    inputs = [model, control["outlier_bits"], control["count"], control["picks"], control["mass_of"]]
    moved = [
        control["outlier_bits"].change,
        control["count"].change,
        control["picks"].change,
        control["mass_of"].change,
        by_key["outliers"].item.select,
    ]
    gr.on(moved, partial(outlier_line, app), inputs, control["mass"], preprocess=False, **QUIET)
    control["query"].input(
        partial(token_choices, app), [model, control["query"], control["picks"]], control["picks"], **QUIET
    )
    pos = [control["tag"].change, control["mode"].change, by_key["pos"].item.select]
    gr.on(pos, partial(pos_bars, app), [model, control["tag"], control["mode"]], control["histogram"], **QUIET)
    gr.on([control["lines"].change, by_key["hand"].item.select], hand_bars, control["lines"], control["bars"], **QUIET)
