"""Copy a link, keep a run going, open a capsule: and what a page does that was opened by a link."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from dpexplore.errors import InputError
from dpexplore.serving.app_context import AppContext, sentence
from dpexplore.serving.journal import Record
from dpexplore.serving.run_view import RunView, capsule_view, failed_view
from dpexplore.serving.share import Setup, decode_setup, encode_setup
from dpexplore.tuning import TuneConfig
from dpexplore.ui.components.markup import message
from dpexplore.ui.components.settings import control_values, make_config, preset_of
from dpexplore.ui.components.target_panel import QUIET, TargetPanel, panels_of, show_target
from dpexplore.ui.components.tune_panel import ResultPanel, TunePanel, run_outputs, show_run
from dpexplore.ui.components.widgets import scripted, view
from dpexplore.ui.visitor import session_of

_TEMPLATE = (
    "<div class='dpx-copy dpx-share-links'>"
    "<button type='button' title='Model, target and settings, for somebody else or for later'>Copy link</button>"
    "<button type='button' disabled title='This run: its charts and its result'>Copy run link</button>"
    "<span role='status' aria-live='polite'></span></div>"
)
_OPEN_MODEL = "The capsule's model is not ready; choose it in the model picker and open the capsule again."


@dataclass(frozen=True)
class ShareBar:
    links: gr.HTML
    capsule: gr.DownloadButton
    upload: gr.UploadButton
    keep: gr.Checkbox
    note: gr.HTML
    wanted: gr.State
    """The model that a link or a capsule asks for; the page's own where there is none."""
    arrived: gr.State
    """What is to be shown as soon as the model is ready: `run <id>`, `capsule <file>`, or nothing."""


def build_share_bar(app: AppContext) -> ShareBar:
    with gr.Row(elem_id="capsule-row"):
        capsule = gr.DownloadButton("Download capsule", interactive=False, elem_id="capsule", size="sm")
        upload = gr.UploadButton("Open a capsule", file_types=[".json"], elem_id="open-capsule", size="sm")
    links = scripted("dpxShare", "", _TEMPLATE, tells=True, elem_id="share")
    keep = gr.Checkbox(False, label="Keep running when this page is closed", elem_id="keep-running")
    note = view(live=True, elem_id="share-note")
    return ShareBar(links, capsule, upload, keep, note, gr.State(app.model), gr.State(""))


# What a link asks for.


@dataclass(frozen=True)
class Arrival:
    """What a page opened by a link begins with."""

    setup: Setup | None = None
    shows: str = ""
    problem: str = ""


def arrive(app: AppContext, query: Mapping[str, str]) -> Arrival:
    """What the address asks for."""
    try:
        if run_id := query.get("run"):
            return _arrive_at_run(app, run_id)
        if text := query.get("d"):
            return Arrival(decode_setup(text))
    except Exception as error:
        return Arrival(problem=sentence(error))
    return Arrival()


def _arrive_at_run(app: AppContext, run_id: str) -> Arrival:
    live = app.sessions.find(run_id)
    if live is not None:
        return Arrival(Setup(live.model, live.run.target.recipe, live.run.config), f"run {run_id}")
    record = app.journal.read(run_id)
    if record is None:
        raise InputError("This server has no run with this link; it is too old, or was made on another server.")
    return Arrival(setup_of(record.head, record.model), f"run {run_id}")


def setup_of(capsule: dict[str, Any], model: str = "") -> Setup:
    """What a capsule, or its beginning, was set to, of its own model or of another name. InputError if damaged."""
    try:
        name = model or str(capsule["model"]["name"])
        return Setup(name, capsule["target"]["recipe"], TuneConfig.from_dict(capsule["config"]))
    except (KeyError, TypeError) as error:
        raise InputError("The capsule is damaged; use a file saved by `Download capsule`.") from error


def arrive_by_capsule(app: AppContext, path: str) -> Arrival:
    """What an uploaded capsule asks for."""
    try:
        capsule = app.capsule(path)
        return Arrival(setup_of(capsule), f"capsule {path}")
    except Exception as error:
        return Arrival(problem=sentence(error))


def arrived_views(app: AppContext, session: str, what: str) -> Generator[RunView]:
    """The views of what a link or a capsule leads to."""
    kind, _, name = what.partition(" ")
    if kind == "capsule":
        capsule = app.capsule(name)
        app.sessions.turn_to(session, what)
        yield from _capsule_views(app, session, what, setup_of(capsule), capsule, None)
        return
    live = app.sessions.join(session, name)
    if live is not None:
        app.sessions.tell_of(session, live.run.config)
        yield from app.watch(session, live)
        return
    record = app.journal.read(name)
    if record is None:
        raise InputError("This server has no run with this link; it is too old, or was made on another server.")
    app.sessions.turn_to(session, what)
    capsule = record.as_capsule()
    if capsule is None:
        yield failed_view(record)
    else:
        yield from _capsule_views(app, session, what, setup_of(capsule, record.model), capsule, record)


def _capsule_views(
    app: AppContext, session: str, what: str, setup: Setup, capsule: dict[str, Any], record: Record | None
) -> Generator[RunView]:
    """A finished run, and again with the floor's lines where they had not been recorded."""
    lm, target = app.pool.get(setup.model).lm, app.target(setup.model, setup.recipe)
    view = capsule_view(lm, target, capsule, record)
    app.sessions.tell_of(session, setup.config)
    yield view
    if not view.marked and view.recorded is None:
        with suppress(Exception):  # the floor's own card says why there is none
            app.wait_for_floor(session, lm, target)
        if app.sessions.shows(session, what):
            yield view.with_marks(app.floors.marks(lm, target) or {})


# Wiring.


def wire_share_bar(
    app: AppContext,
    demo: gr.Blocks,
    bar: ShareBar,
    model: gr.Textbox,
    target: TargetPanel,
    tuning: TunePanel,
    runs: gr.HTML,
) -> tuple[Any, ...]:
    """Links, capsules and the check box; `runs` is the list in which one is chosen to be shown.

    Returns the events after which the wanted model is to be loaded: the page was opened, a capsule was opened, a run
    was chosen.
    """
    names = list(tuning.controls)

    def make_link(model: str, recipe: str, *settings: Any) -> str:
        try:
            values = dict(zip(names, settings, strict=True))
            return json.dumps({"d": encode_setup(Setup(model or app.model, recipe, make_config(values)))})
        except Exception as error:
            return json.dumps({"problem": sentence(error)})

    def keep_running(keep: bool, request: gr.Request) -> None:
        app.sessions.keep_running(session_of(app, request), keep)

    def opened(request: gr.Request) -> dict[Component, Any]:
        return apply(arrive(app, dict(request.query_params)))

    def uploaded(file: str) -> dict[Component, Any]:
        return apply(arrive_by_capsule(app, file))

    def chosen(event: gr.EventData) -> dict[Component, Any]:
        data = event._data if isinstance(event._data, dict) else {}
        return apply(arrive(app, {"run": str(data.get("run", ""))}))

    def apply(arrival: Arrival) -> dict[Component, Any]:
        return _changes(bar, target, tuning, arrival)

    inputs = [model, target.recipe, *tuning.controls.values()]
    bar.links.input(make_link, inputs, bar.links, **QUIET)  # type: ignore[attr-defined]
    bar.keep.input(keep_running, bar.keep, None, queue=False, api_visibility="private")
    panels = [target.outputs[name] for name in ("tabs", "stack", *target.controls)]
    outputs = [bar.wanted, bar.arrived, bar.note, target.recipe, *panels, tuning.preset, *tuning.controls.values()]
    at_load = demo.load(opened, None, outputs, **QUIET)
    at_choice = runs.select(chosen, None, outputs, **QUIET)  # type: ignore[attr-defined]
    return at_load, bar.upload.upload(uploaded, bar.upload, outputs, **QUIET), at_choice


def _changes(bar: ShareBar, target: TargetPanel, tuning: TunePanel, arrival: Arrival) -> dict[Component, Any]:
    """What an arrival sets."""
    told: dict[Component, Any] = {bar.note: message(arrival.problem, "error"), bar.arrived: arrival.shows}
    if arrival.setup is None:
        return told
    config, recipe = arrival.setup.config, arrival.setup.recipe
    panels = {target.outputs[name]: value for name, value in panels_of(recipe).items()}
    settings = {tuning.controls[name]: value for name, value in control_values(config).items()}
    return {
        **told,
        bar.wanted: arrival.setup.model,
        target.recipe: recipe,
        **panels,
        tuning.preset: preset_of(control_values(config)),
        **settings,
    }


def show_arrivals(
    app: AppContext,
    loaded: Any,
    bar: ShareBar,
    model: gr.Textbox,
    target: TargetPanel,
    tuning: TunePanel,
    shown: ResultPanel,
) -> None:
    """When an arrival's model has been loaded: show the target and the run that the page has arrived at, once."""
    preview = {name: target.outputs[name] for name in ("chart", "tokens", "facts", "problem")}

    def show_it(what: str, model: str, recipe: str) -> dict[Component, Any]:
        changes = show_target(app, model, recipe) if what else {}
        return {preview["problem"]: gr.skip(), **{preview[name]: value for name, value in changes.items()}}

    def pick_up(request: gr.Request, what: str, model: str, wanted: str, recipe: str) -> Iterator[list[Any]]:
        nothing: list[Any] = [gr.skip()] * 8
        if not what:
            yield [gr.skip(), *nothing]
        elif model != wanted:
            yield ["", *nothing[:2], message(_OPEN_MODEL, "error"), *nothing[:5]]
        else:
            session = session_of(app, request)
            views = arrived_views(app, session, what)
            for values in show_run(app, session, model, recipe, views):
                yield ["", *values]

    loaded.then(show_it, [bar.arrived, model, target.recipe], list(preview.values()), **QUIET).then(
        pick_up,
        [bar.arrived, model, bar.wanted, target.recipe],
        [bar.arrived, *run_outputs(tuning, shown)],
        show_progress="hidden",
        concurrency_limit=None,
        api_visibility="private",
    )
