"""Tune and Stop: the settings of a run, the run itself, and what the page shows of it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dpexplore.errors import InputError
from dpexplore.tuning import METHODS, PRESETS, TuneConfig
from dpexplore.ui.context import AppContext, sentence
from dpexplore.ui.markup import message
from dpexplore.ui.result_view import EMPTY_RESULT, capsule_file, result_html, shares_html
from dpexplore.ui.target_panel import QUIET
from dpexplore.ui.watch import RunView, watch_run
from dpexplore.ui.widgets import chart, legend, segmented, view

CHANGED = " *"
"""Follows a preset's name once a number of it was changed; its rules stay."""
PRESET_FIELDS = ("length", "restarts", "steps")
DEFAULT_SLOTS = "soft*3 hard*2"


@dataclass(frozen=True)
class TunePanel:
    method: gr.Radio
    preset: gr.Dropdown
    slots: gr.Textbox
    length: gr.Number
    restarts: gr.Number
    steps: gr.Number
    seed: gr.Number
    tune: gr.Button
    stop: gr.Button
    status: gr.HTML

    @property
    def settings(self) -> list[Any]:
        return [self.method, self.preset, self.slots, self.length, self.restarts, self.steps, self.seed]


@dataclass(frozen=True)
class ResultPanel:
    live: gr.HTML
    ranks: gr.HTML
    result: gr.HTML
    shares: gr.HTML
    capsule: gr.DownloadButton


def make_config(
    method: str, preset: str, slots: str, length: float, restarts: float, steps: float, seed: float
) -> TuneConfig:
    """The controls' values as a config. InputError for what no run can have."""
    numbers = {"length": length, "restarts": restarts, "steps": steps, "seed": seed}
    for name, value in numbers.items():
        if value is None:
            raise InputError(f"{name} is empty; a whole number is needed.")
    whole = {name: int(value) if value == int(value) else value for name, value in numbers.items()}
    return TuneConfig.preset(
        preset.removesuffix(CHANGED), method=method, slots=slots.strip() if method == "hybrid" else None, **whole
    )


def start_run(app: AppContext, session: str, model: str, recipe: str, config: TuneConfig) -> Generator[RunView]:
    """Submit a run for a session and follow it. InputError if it cannot begin."""
    entry, target = app.pool.get(model), app.target(model, recipe)
    run = entry.server.submit(target, config)
    app.sessions.begin(session, run)
    try:
        with closing(watch_run(run, lambda: app.floors.marks(entry.lm, target))) as views:
            for view in views:
                if view.result is not None:
                    app.sessions.note_result(session, model, target.recipe, view.result)
                yield view
    finally:
        app.sessions.end(session, run)


def tune(app: AppContext, session: str, model: str, recipe: str, *settings: Any) -> Iterator[list[Any]]:
    """Values for (live, ranks, status, result, shares, capsule, tune, stop)."""
    idle = [gr.update(interactive=True), gr.update(interactive=False)]
    busy = [gr.update(interactive=False), gr.update(interactive=True)]
    # The last result stays until there is something of the new run to show.
    nothing: list[Any] = [EMPTY_RESULT, "", gr.update(interactive=False)]
    stay: list[Any] = [gr.skip()] * 5
    try:
        config = make_config(*settings)
        with closing(start_run(app, session, model, recipe, config)) as views:
            for view in views:
                if view.result is None:
                    yield [view.live, view.ranks, view.status, *nothing, *busy]
                    nothing = [gr.skip()] * 3
                else:
                    yield [view.live, view.ranks, view.status, *_finished(app, model, recipe, view), *idle]
        if view.result is None:
            yield [*stay[:2], view.status, *stay[:3], *idle]
    except Exception as error:
        yield [*stay[:2], message(sentence(error), "error"), *stay[:3], *idle]


def _finished(app: AppContext, model: str, recipe: str, view: RunView) -> list[Any]:
    assert view.result is not None
    entry = app.pool.get(model)
    target = app.target(model, recipe)
    shown = result_html(entry.lm, target, view.result), shares_html(entry.lm, target, view.result)
    return [*shown, gr.update(value=capsule_file(view.result), interactive=True)]


def apply_preset(name: str) -> list[Any]:
    """Values for (preset, *PRESET_FIELDS)."""
    preset = PRESETS.get(name, {})
    return [gr.update(choices=list(PRESETS), value=name), *(preset.get(field, gr.skip()) for field in PRESET_FIELDS)]


def mark_changed(name: str) -> Any:
    """A number of the preset was changed by hand."""
    changed = name.removesuffix(CHANGED) + CHANGED
    return gr.update(choices=[*PRESETS, changed], value=changed)


def show_method(method: str) -> list[Any]:
    """Hybrid asks for slots, the others for a number of tokens. Values for (slots, length)."""
    return [gr.update(visible=method == "hybrid"), gr.update(visible=method != "hybrid")]


def build_tune_panel() -> TunePanel:
    paper = PRESETS["paper"]
    number: dict[str, Any] = {"precision": 0, "scale": 1, "min_width": 66}
    with gr.Row(elem_classes="dpx-inline", elem_id="tune-row"):
        method = gr.Radio(list(METHODS), value="soft", label="Method", elem_id="method", scale=3, min_width=214)
        slots = gr.Textbox(DEFAULT_SLOTS, label="Slots", visible=False, elem_id="slots", scale=2, min_width=130)
        length = gr.Number(paper["length"], label="Tokens", minimum=1, elem_id="length", **number)
        restarts = gr.Number(paper["restarts"], label="Restarts", minimum=1, elem_id="restarts", **number)
        steps = gr.Number(paper["steps"], label="Steps", minimum=1, elem_id="steps", **number)
        seed = gr.Number(0, label="Seed", minimum=0, elem_id="seed", **number)
        preset = gr.Dropdown(list(PRESETS), value="paper", label="Preset", elem_id="preset", scale=1, min_width=100)
        go = gr.Button("Tune", variant="primary", interactive=False, elem_id="tune", scale=1, min_width=104)
        halt = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop", scale=0, min_width=72)
    status = view(message("The model is being prepared.", "info"), live=True, elem_id="status")
    return TunePanel(method, preset, slots, length, restarts, steps, seed, go, halt, status)


LIVE_LEGEND = [("achieved", "best restart"), ("restart", "others")]
SCALE = [("linear", "live-chart:scale:linear"), ("log", "live-chart:scale:log")]


def live_chart() -> gr.HTML:
    switch = segmented("Axis of KL", SCALE, "switch", SCALE[0][1])
    panes = [
        ("dpx-kl", f"<h2>Distance to the target</h2>{legend(LIVE_LEGEND)}{switch}"),
        ("dpx-entropy", "<h2>Entropy of what the prompt says</h2>"),
    ]
    empty = "Press Tune: every restart becomes a line here, the best one bold."
    return chart("live", panes, empty, elem_id="live-chart")


def achieved_chart() -> gr.HTML:
    empty = "Press Tune: what the prompt achieves is laid over the target here."
    return chart("ranks", [("dpx-ranks", "")], empty, elem_id="achieved-chart")


def build_result_panel(live: gr.HTML, ranks: gr.HTML, shares: gr.HTML) -> ResultPanel:
    result = view(EMPTY_RESULT, elem_id="result")
    capsule = gr.DownloadButton("Download capsule (JSON)", interactive=False, elem_id="capsule", size="sm")
    return ResultPanel(live, ranks, result, shares, capsule)


def wire_tune_panel(
    app: AppContext, demo: gr.Blocks, panel: TunePanel, shown: ResultPanel, model: gr.State, recipe: gr.Textbox
) -> None:
    def run(request: gr.Request, model: str, recipe: str, *settings: Any) -> Iterator[list[Any]]:
        yield from tune(app, request.session_hash or "", model, recipe, *settings)

    def halt(request: gr.Request) -> None:
        app.sessions.stop(request.session_hash or "")

    def leave(request: gr.Request) -> None:
        app.sessions.close(request.session_hash or "")

    outputs = [shown.live, shown.ranks, panel.status, shown.result, shown.shares, shown.capsule, panel.tune, panel.stop]
    panel.tune.click(
        run,
        [model, recipe, *panel.settings],
        outputs,
        show_progress="hidden",
        concurrency_limit=None,
        api_visibility="private",
    )
    panel.stop.click(halt, None, None, queue=False, api_visibility="private")
    panel.preset.input(apply_preset, panel.preset, [panel.preset, panel.length, panel.restarts, panel.steps], **QUIET)
    gr.on(
        [panel.length.input, panel.restarts.input, panel.steps.input], mark_changed, panel.preset, panel.preset, **QUIET
    )
    panel.method.input(show_method, panel.method, [panel.slots, panel.length], **QUIET)
    demo.unload(leave)
