"""Tune and Stop: the settings of a run, the run itself, and what the page shows of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from dpexplore.errors import InputError
from dpexplore.experiments.costs import seconds_of_run
from dpexplore.experiments.progress import duration
from dpexplore.serving.app_context import AppContext, sentence
from dpexplore.serving.run_view import RunView
from dpexplore.tuning import METHODS, PRESETS, TuneConfig, fig4_slots
from dpexplore.ui.components.markup import message
from dpexplore.ui.components.microscope import microscope_json
from dpexplore.ui.components.result_view import EMPTY_RESULT, capsule_file, result_html
from dpexplore.ui.components.run_status import status_line
from dpexplore.ui.components.settings import (
    ADVANCED,
    CUSTOM,
    PRESET_FIELDS,
    apply_preset,
    build_control,
    chips_of,
    line_of,
    make_config,
    preset_of,
)
from dpexplore.ui.components.target_panel import QUIET
from dpexplore.ui.components.widgets import SCRUBBER, axis_switch, chart, legend, slot_chips, view
from dpexplore.ui.visitor import session_of

DEFAULT_SLOTS = "soft*3 hard*2"
FIG4 = "Fig. 4"
TUNE, STOP = "Tune", "Stop"
SETTINGS = "settings"
"""What `Sessions.take_turn` counts the questions about."""


@dataclass(frozen=True)
class TunePanel:
    controls: dict[str, Component]
    """Every setting's control, by the name of its field in `TuneConfig`."""
    preset: gr.Dropdown
    chips: gr.HTML
    slots_row: gr.Row
    fig4: gr.Dropdown
    tune: gr.Button
    stop: gr.Button
    status: gr.HTML


@dataclass(frozen=True)
class ResultPanel:
    live: gr.HTML
    ranks: gr.HTML
    result: gr.HTML
    microscope: gr.HTML
    capsule: gr.DownloadButton


def start_run(app: AppContext, session: str, model: str, recipe: str, config: TuneConfig) -> Generator[RunView]:
    """Submit a run for a session and follow it. InputError if it cannot begin."""
    live = app.begin(session, model, recipe, config)
    app.sessions.tell_of(session, config)
    yield from app.watch(session, live)


def tune(app: AppContext, session: str, model: str, recipe: str, settings: dict[str, Any]) -> Iterator[list[Any]]:
    """Begin a run and show it; values as of `show_run`, `settings` by name."""

    def views() -> Generator[RunView]:
        yield from start_run(app, session, model, recipe, make_config(settings))

    yield from show_run(app, session, model, recipe, views())


def show_run(app: AppContext, session: str, model: str, recipe: str, views: Generator[RunView]) -> Iterator[list[Any]]:
    """Values for (live, ranks, status, result, microscope, capsule, tune, stop) from a run's views.

    Nothing more once the views end because the session has turned to another run: what is on the page is that one's.
    """
    idle = [gr.update(interactive=True), gr.update(interactive=False)]
    busy = [gr.update(interactive=False), gr.update(interactive=True)]
    # The last result stays until there is something of the new run to show. Gradio builds a component anew for every
    # `update` and every `skip`, tens of milliseconds a view: what does not change is sent as a plain value.
    rest: list[Any] = [EMPTY_RESULT, "", gr.update(interactive=False), *busy]
    stay: list[Any] = [gr.skip()] * 5
    view = None
    try:
        with closing(views):
            for view in views:
                if view.result is None:
                    yield [view.live, view.ranks, status_line(view), *rest]
                    rest = [EMPTY_RESULT, "", None, TUNE, STOP]
                else:
                    yield [view.live, view.ranks, status_line(view), *_finished(app, model, recipe, view), *idle]
        if view is not None and view.error is not None:
            yield [*stay[:2], status_line(view), *stay[:3], *idle]
    except Exception as error:
        # What could not begin has stopped nothing: a run that moves can still be stopped.
        buttons = busy if app.sessions.is_moving(session) else idle
        yield [*stay[:2], message(sentence(error), "error"), *stay[:3], *buttons]


def _finished(app: AppContext, model: str, recipe: str, view: RunView) -> list[Any]:
    assert view.result is not None
    entry = app.pool.get(model)
    target = view.recorded or app.target(model, recipe)
    shown = result_html(entry.lm, target, view.result), microscope_json(entry.lm, target, view.result, view.frames)
    return [*shown, gr.update(value=capsule_file(view.result), interactive=True)]


def check_settings(app: AppContext, session: str, model: str, settings: dict[str, Any]) -> str | None:
    """The status line after a setting changed (`settings_line`).

    None while a run is in progress, and where the line is already about these settings: on a busy server the event of
    a change made before Tune may be handled after the run with these very settings has ended, and must not replace
    its outcome.
    """
    shown = app.sessions.shown(session)
    try:
        config = make_config(settings)
        line = _price_line(app, model, config)
    except Exception as error:
        config, line = None, message(sentence(error), "error")
    if app.sessions.is_moving(session) or app.sessions.shown(session) != shown:
        return None
    return line if app.sessions.tell_of(session, config) else None


def settings_line(app: AppContext, model: str, settings: dict[str, Any]) -> str:
    """What is wrong with the settings, else how long a run may take on this machine."""
    try:
        return _price_line(app, model, make_config(settings))
    except Exception as error:
        return message(sentence(error), "error")


def _price_line(app: AppContext, model: str, config: TuneConfig) -> str:
    if not app.pool.is_loaded(model):
        return message("The model is being prepared.", "info")
    most = duration(seconds_of_run(app.pool.get(model).lm, config))
    return message(
        f"Ready. Press Tune: at most about {most} on this machine, less where the search ends early.", "ready"
    )


def show_method(method: str) -> list[Any]:
    """Hybrid asks for slots, the others for a number of tokens. Values for (slots row, length)."""
    return [gr.update(visible=method == "hybrid"), gr.update(visible=method != "hybrid")]


def read_slots(line: str) -> Any:
    """The line of slots was edited. Value for the chips, which stay where the line cannot be read."""
    try:
        return chips_of(line)
    except InputError:
        return gr.skip()


def read_chips(chips: Any) -> list[Any]:
    """The chips were edited. Values for (slots, status)."""
    try:
        return [line_of(chips), gr.skip()]
    except InputError as error:
        return [gr.skip(), message(str(error), "error")]


def build_tune_panel() -> TunePanel:
    paper = TuneConfig()
    number: dict[str, Any] = {"scale": 1, "min_width": 66}
    controls: dict[str, Component] = {}
    with gr.Row(elem_classes="dpx-inline", elem_id="tune-row"):
        controls["method"] = gr.Radio(
            list(METHODS), value="soft", label="Method", elem_id="method", scale=3, min_width=214
        )
        for name, label in (("length", "Tokens"), ("restarts", "Restarts"), ("steps", "Steps"), ("seed", "Seed")):
            controls[name] = gr.Number(getattr(paper, name), label=label, elem_id=name, **number)
        presets = [*PRESETS, CUSTOM]  # a fixed list: Gradio's own script fails where it changes as the list closes
        preset = gr.Dropdown(presets, value="paper", label="Preset", elem_id="preset", scale=1, min_width=118)
        go = gr.Button(TUNE, variant="primary", interactive=False, elem_id="tune", scale=1, min_width=104)
        halt = gr.Button(STOP, variant="stop", interactive=False, elem_id="stop", scale=0, min_width=72)
    with gr.Row(elem_classes="dpx-inline", elem_id="slots-row", visible=False) as row:
        chips = slot_chips(chips_of(DEFAULT_SLOTS), elem_id="slot-chips", min_width=220)
        controls["slots"] = gr.Textbox(DEFAULT_SLOTS, label="Slots", elem_id="slots", scale=1, min_width=150)
        choices = [(f"{soft} soft, {5 - soft} hard", line) for soft, line in enumerate(fig4_slots())]
        fig4 = gr.Dropdown(choices, value=None, label=FIG4, elem_id="fig4", scale=0, min_width=140)
    status = view(message("The model is being prepared.", "info"), live=True, elem_id="status")
    with gr.Accordion("Advanced", open=False, elem_id="advanced"), gr.Row(elem_id="knobs"):
        controls |= {name: build_control(name) for name in ADVANCED}
    return TunePanel(controls, preset, chips, row, fig4, go, halt, status)


LIVE_LEGEND = [("achieved", "best restart"), ("restart", "others")]


def live_chart() -> gr.HTML:
    kl, entropy = axis_switch("Axis of KL", "live-chart:scale"), axis_switch("Axis of entropy", "live-chart:hscale")
    panes = [
        ("dpx-kl", f"<h2>Distance to the target</h2>{legend(LIVE_LEGEND)}{kl}"),
        ("dpx-entropy", f"<h2>Entropy of what the prompt says</h2>{entropy}"),
    ]
    empty = "Press Tune: every restart becomes a line here, the best one bold."
    return chart("live", panes, empty, elem_id="live-chart")


def achieved_chart() -> gr.HTML:
    empty = "Press Tune: what the prompt achieves is laid over the target here."
    return chart("ranks", [("dpx-ranks", "")], empty, under=SCRUBBER, elem_id="achieved-chart")


def wire_tune_panel(
    app: AppContext, demo: gr.Blocks, panel: TunePanel, shown: ResultPanel, model: gr.Textbox, recipe: gr.Textbox
) -> Callable[[Any], Any]:
    """Gives what attaches the run that Tune starts to another event."""
    names = list(panel.controls)

    def run(request: gr.Request, model: str, recipe: str, *settings: Any) -> Iterator[list[Any]]:
        yield from tune(app, session_of(app, request), model, recipe, dict(zip(names, settings, strict=True)))

    def halt(request: gr.Request) -> None:
        app.sessions.stop(session_of(app, request))

    def leave(request: gr.Request) -> None:
        session = session_of(app, request)
        app.sessions.close(session)
        app.workspace.leave(session)
        app.walks.forget(session)

    def run_after(event: Any) -> Any:
        return event(
            run,
            [model, recipe, *panel.controls.values()],
            run_outputs(panel, shown),
            show_progress="hidden",
            concurrency_limit=None,
            api_visibility="private",
        )

    run_after(panel.tune.click)
    panel.stop.click(halt, None, None, queue=False, api_visibility="private")
    demo.unload(leave)
    _wire_settings(app, panel, model)
    return run_after


def run_outputs(panel: TunePanel, shown: ResultPanel) -> list[Component]:
    """What a run moves, in the order of `show_run`."""
    charts = [shown.live, shown.ranks, panel.status]
    return [*charts, shown.result, shown.microscope, shown.capsule, panel.tune, panel.stop]


def _wire_settings(app: AppContext, panel: TunePanel, model: gr.Textbox) -> None:
    control: dict[str, Any] = panel.controls
    names = list(control)
    settings = [control[name] for name in PRESET_FIELDS]

    def follow(request: gr.Request, model: str, *values: Any) -> list[Any]:
        """Values for (preset, status)."""
        named, session = dict(zip(names, values, strict=True)), session_of(app, request)
        turn = app.sessions.take_turn(session, SETTINGS)
        told = check_settings(app, session, model, named)
        if not app.sessions.is_latest(session, turn, SETTINGS):  # what was set since has an answer of its own
            return [gr.skip(), gr.skip()]
        return [preset_of(named), gr.skip() if told is None else told]

    followed = [model, *control.values()], [panel.preset, panel.status]
    panel.preset.input(apply_preset, panel.preset, settings, **QUIET).then(follow, *followed, **QUIET)
    changed = [
        control[name].input for name in names if name not in ("method", "slots")
    ]  # these have answers of their own
    gr.on(changed, follow, *followed, **QUIET)
    chosen = control["method"].change(show_method, control["method"], [panel.slots_row, control["length"]], **QUIET)
    chosen.then(follow, *followed, **QUIET)

    def from_chips(event: gr.EventData) -> list[Any]:
        return read_chips(event._data["items"])

    panel.chips.input(from_chips, None, [control["slots"], panel.status], **QUIET)  # type: ignore[attr-defined]
    control["slots"].change(read_slots, control["slots"], panel.chips, **QUIET).then(follow, *followed, **QUIET)
    panel.fig4.input(lambda line: line, panel.fig4, control["slots"], **QUIET)
