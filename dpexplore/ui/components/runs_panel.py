"""Your runs: each with its name, where it stands and how long it takes, all on one chart; the same again in a click."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from dpexplore.errors import InputError
from dpexplore.experiments.progress import duration
from dpexplore.plots import figure_json
from dpexplore.serving.app_context import AppContext, sentence
from dpexplore.serving.asking import ask, look, rename, stop, the_same_with
from dpexplore.serving.journal import RUN_ID
from dpexplore.serving.share import Setup
from dpexplore.serving.workspace import MOST_NAME, Asked, rule_of, seconds_for_all
from dpexplore.tuning import TuneConfig
from dpexplore.ui.components.compare_runs import KeptRun, colour_of, kl_figure, letter
from dpexplore.ui.components.kept_runs import Choice, Library, choice_of
from dpexplore.ui.components.markup import message, quantity
from dpexplore.ui.components.target_panel import QUIET
from dpexplore.ui.components.widgets import card_title, chart, scripted, view
from dpexplore.ui.visitor import session_of

LOOK_SECONDS = 0.5
"""Between two looks at runs that wait or move."""
CHART_SECONDS = 2.0
"""Between two drawings of runs that move."""
SIGN_OF_LIFE_SECONDS = 2.5
"""Seconds after which the page gets an update even if nothing is new: only a failing one shows that it was closed."""
EMPTY = (
    "<p class='dpx-empty-card'>Every run of yours is listed here, with a name that you can type over. From here on one "
    "click asks for the same with another method, another model, or at three entropies.</p>"
)
HOWS = {"soft": "soft", "hard": "hard", "direct": "direct token", "entropies": "three entropies"}


@dataclass(frozen=True)
class Line:
    """A run of the list."""

    run_id: str
    asked: Asked | None
    """While it waits or moves, or if it failed."""
    kept: KeptRun | None
    """What it came to, or has come to so far."""


@dataclass(frozen=True)
class RunsPanel:
    rows: gr.HTML
    chart: gr.HTML
    note: gr.HTML


def lines_of(app: AppContext, library: Library, session: str, choice: Choice) -> list[Line]:
    """A page's runs: those that its browser keeps, then those it does not know of yet."""
    ids = [*choice.run_ids, *(asked.run_id for asked in app.workspace.of(session))]
    found = []
    for run_id in dict.fromkeys(ids):
        asked = app.workspace.find(run_id)
        live = app.sessions.find(run_id)
        kept = KeptRun.of_moving(live) if live is not None else next(iter(library.runs([run_id])), None)
        if asked is not None or kept is not None:
            found.append(Line(run_id, asked, kept))
    return found


def runs_html(app: AppContext, lines: list[Line]) -> str:
    """The list, the newest run first."""
    if not lines:
        return EMPTY
    models = sorted({info.name for info in app.offered() if info.fits} | set(app.pool.ready))
    places = {line.run_id: place for place, line in enumerate(lines)}
    items = "".join(_item(line, places[line.run_id], models) for line in reversed(lines))
    return f"{_queue_line(lines)}<ol class='dpx-runs'>{items}</ol>"


def _queue_line(lines: list[Line]) -> str:
    """How many move and wait, and how long all of it takes."""
    asked = [line.asked for line in lines if line.asked is not None]
    moving, waiting = sum(one.moves for one in asked), sum(one.waits for one in asked)
    if not moving and not waiting:
        return ""
    seconds = seconds_for_all(asked)
    until = f" All of them end within about {duration(seconds)}." if seconds is not None else ""
    begin = " Those that wait begin while this page is open." if waiting else ""
    counts = [(moving, "moves" if moving == 1 else "move"), (waiting, "waits" if waiting == 1 else "wait")]
    numbers = ", ".join(f"{count} {verb}" for count, verb in counts if count)
    return f"<p class='dpx-note' data-moving>{numbers}.{until}{begin}</p>"


def _item(line: Line, place: int, models: list[str]) -> str:
    run, asked, kept = line.run_id, line.asked, line.kept
    name = asked.name if asked is not None else kept.name if kept is not None else ""
    said, model, recipe = _asked_for(line)
    under_way = asked is not None and asked.error is None
    buttons = []
    if kept is not None:
        buttons.append(_button("show", run, "Show", f"Show on this page: run {letter(place)}"))
    end = "Stop" if asked is not None and asked.moves else "Take off"
    buttons.append(_button("stop" if under_way else "drop", run, end, f"{end} run {letter(place)}"))
    own = rule_of(asked.setup.config) if asked is not None else kept.rule if kept is not None else ""
    for how, words in HOWS.items():
        if how != own:
            buttons.append(_button("same", run, words, f"The same run with: {words}", f" data-how='{how}'"))
    others = "".join(f"<option value='{escape(other)}'>{escape(other)}</option>" for other in models if other != model)
    if others:
        buttons.append(
            f"<select data-act='model' data-run='{run}' aria-label='Run {letter(place)} with another model'>"
            f"<option value=''>another model ▾</option>{others}</select>"
        )
    swatch = f"<b class='dpx-letter' style='--run:{colour_of(place)}'>{letter(place)}</b>"
    field = (
        f"<input type='text' data-act='name' data-run='{run}' value='{escape(name, quote=True)}' "
        f"maxlength='{MOST_NAME}' aria-label='Name of run {letter(place)}'>"
    )
    shown = 2 if kept is not None else 1
    return (
        f"<li data-run-item='{run}'>"
        f"<div class='dpx-run-head'>{swatch}{field}<span class='dpx-run-state'>{_state(line)}</span></div>"
        f"<div class='dpx-run-what'>{escape(said)} · {escape(model.rsplit('/', 1)[-1][:40])} · "
        f"<code>{escape(recipe[:90])}</code></div>"
        f"<div class='dpx-copy dpx-run-acts'>{''.join(buttons[:shown])}<small>The same with</small>"
        f"{''.join(buttons[shown:])}</div></li>"
    )


def _asked_for(line: Line) -> tuple[str, str, str]:
    """Slots, model and recipe of a run."""
    if line.asked is not None:
        setup = line.asked.setup
        slots = str(setup.config.parsed_slots())
        return f"{slots}, direct" if rule_of(setup.config) == "direct" else slots, setup.model, setup.recipe
    assert line.kept is not None
    return line.kept.slots, line.kept.model, line.kept.recipe


def _button(act: str, run: str, text: str, title: str, more: str = "") -> str:
    named = f" title='{escape(title)}' aria-label='{escape(title)}'"
    return f"<button type='button' data-act='{act}' data-run='{run}'{more}{named}>{escape(text)}</button>"


def _state(line: Line) -> str:
    asked, kept = line.asked, line.kept
    if asked is not None and asked.error is not None:
        return f"<em class='is-bad'>{escape(asked.error)}</em>"
    if asked is not None and asked.waits:
        if asked.loading is not None:
            return f"waits for its model: {escape(asked.loading.text)}"
        return "waits" if asked.seconds is None else f"waits; at most about {duration(asked.seconds)} by itself"
    assert kept is not None or asked is not None
    if kept is None or not math.isfinite(kept.kl_nats):
        return "preparing"
    kl = f"<b data-kl='{kept.kl_nats:.6f}'>{quantity(kept.kl_nats, 'kl', 3)}</b>"
    if kept.status != "moving":
        return f"{kl} after {kept.steps:,} step{'s' * (kept.steps != 1)}"
    left = asked.seconds_left if asked is not None else None
    until = f", at most about {duration(left)} left" if left is not None else ""
    return f"<span data-moving>step {kept.steps:,}: {kl}{until}</span>"


def runs_chart(lines: list[Line]) -> str:
    """Every run's best KL so far, in one figure; empty before there is one."""
    runs = [line.kept for line in lines if line.kept is not None and line.kept.kl_by_step]
    if not runs:
        return ""
    places = [place for place, line in enumerate(lines) if line.kept is not None and line.kept.kl_by_step]
    return figure_json(kl_figure(runs, range(len(runs)), places=places)) + "\n"


def setup_of_run(app: AppContext, run_id: str) -> Setup:
    """What a run was asked for with. InputError for an unknown one."""
    asked = app.workspace.find(run_id)
    if asked is not None:
        return asked.setup
    live = app.sessions.find(run_id)
    if live is not None:
        return Setup(live.model, live.run.target.recipe, live.run.config)
    record = app.journal.read(run_id)
    if record is None:
        raise InputError("This server has no such run any more; take it off.")
    return Setup(record.model, record.head["target"]["recipe"], TuneConfig.from_dict(record.head["config"]))


def act(app: AppContext, library: Library, session: str, choice: Choice, sent: Any) -> tuple[Choice, str]:
    """What was pressed, typed or seen in the list. The browser's runs from now on, and a sentence about it."""
    data = sent if isinstance(sent, dict) else {}
    action, run = data.get("act"), str(data.get("run", ""))
    if not RUN_ID.fullmatch(run):
        return choice, ""
    try:
        if action == "seen":
            return choice.with_runs([run]), ""
        if action == "drop" or (action == "stop" and app.sessions.find(run) is None):
            app.workspace.remove(run)
            app.sessions.forget_finished(session, run)
            return choice.changed({"drop": run}), ""
        if action == "stop":
            stop(app, run)
        elif action == "name":
            rename(app, run, data.get("text", ""))
            library.forget(run)
        elif action == "same":
            asked = ask(
                app,
                session,
                the_same_with(app, setup_of_run(app, run), str(data.get("how")), str(data.get("model") or "")),
            )
            return choice.with_runs([one.run_id for one in asked]), ""
    except Exception as error:
        return choice, message(sentence(error), "error")
    return choice, ""


def build_runs_card() -> RunsPanel:
    card_title("Your runs")
    rows = scripted("dpxRuns", EMPTY, "<div class='dpx-view'></div>", tells=True, elem_id="runs")
    note = view(live=True, elem_id="runs-note")
    empty = "Every run becomes a line here: its best KL so far."
    picture = chart("figure", [("dpx-figure", "")], empty, elem_id="runs-chart")
    return RunsPanel(rows, picture, note)


def wire_runs_panel(
    app: AppContext, demo: gr.Blocks, panel: RunsPanel, stored: gr.BrowserState, result: gr.HTML
) -> None:
    library = Library(app)

    def acted(kept: Any, request: gr.Request, event: gr.EventData) -> tuple[Any, str, str]:
        session = session_of(app, request)
        now, said = act(app, library, session, choice_of(app, session, kept), event._data)
        lines = lines_of(app, library, session, now)
        return gr.skip() if now == Choice.read(kept) else now.stored(), runs_html(app, lines), said

    async def follow(kept: Any, request: gr.Request) -> AsyncIterator[tuple[Any, Any, Any]]:
        session, known = session_of(app, request), Choice.read(kept)
        shown, yielded_at, drawn_at = "", 0.0, -math.inf
        while True:
            busy = await asyncio.to_thread(look, app, session, known.run_ids)
            choice = choice_of(app, session, known.stored())
            lines = await asyncio.to_thread(lines_of, app, library, session, choice)
            html, now = runs_html(app, lines), time.monotonic()
            due = not busy or now - drawn_at >= CHART_SECONDS
            if html != shown or due or now - yielded_at >= SIGN_OF_LIFE_SECONDS:
                figure = await asyncio.to_thread(runs_chart, lines) if due else gr.skip()
                drawn_at = now if due else drawn_at
                yield html, figure, gr.skip() if choice == known else choice.stored()
                shown, yielded_at, known = html, now, choice
            if not busy:
                return
            await asyncio.sleep(LOOK_SECONDS)

    # What is asked for changes what the browser keeps, and so is followed; all else is answered by the list itself.
    panel.rows.input(acted, stored, [stored, panel.rows, panel.note], **QUIET | {"trigger_mode": "multiple"})  # type: ignore[attr-defined]
    gr.on([demo.load, stored.change, result.change], follow, stored, [panel.rows, panel.chart, stored], **QUIET)
