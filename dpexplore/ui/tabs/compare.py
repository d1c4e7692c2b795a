"""The Compare tab: finished runs side by side, their curves over one another, and all of it to take away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from dpexplore.plots import figure_json
from dpexplore.serving.app_context import AppContext, sentence
from dpexplore.serving.uploads import upload_folder
from dpexplore.ui.components.compare_runs import (
    Axis,
    KeptRun,
    colour_of,
    differences,
    entropy_figure,
    grouped,
    kl_figure,
    letter,
    write_tables,
)
from dpexplore.ui.components.kept_runs import MOST_RUNS, Choice, Library, choice_of
from dpexplore.ui.components.markup import grouped_table, message, quantity
from dpexplore.ui.components.target_panel import QUIET
from dpexplore.ui.components.widgets import axis_switch, card_title, chart, scripted, view
from dpexplore.ui.visitor import session_of

EMPTY = (
    "<div class='dpx-empty-card dpx-compare-empty'><b>Nothing to compare yet.</b><br>Every run that ends in "
    "<b>Explore</b> is kept here by itself. Tune the same target soft and hard, or two targets of the same entropy, "
    "and come back; or open the capsules of earlier runs with the button above.</div>"
)
AXES = [("steps", "step"), ("prompts scored", "evaluations")]
FILES = ("runs csv", "runs parquet", "curves csv", "curves parquet")


def compare_table(runs: Sequence[KeptRun], hidden: frozenset[str]) -> str:
    """The runs as HTML."""
    if not runs:
        return EMPTY
    headers = [
        ("", "is-check"),
        ("run", "is-token"),
        ("target", "is-token"),
        ("KL(p‖q)", "is-num"),
        ("above floor", "is-num"),
        ("mean to worst", "is-num"),
        ("re-encoded", "is-num"),
        ("entropy of q, of p", "is-num"),
        ("steps", "is-num"),
        ("scored", "is-num"),
        ("time", "is-num"),
        ("", "is-check"),
    ]
    groups = [
        (heading, [_row(runs[place], place, runs[place].run_id not in hidden) for place in places])
        for heading, places in grouped(runs)
    ]
    caption = f"{_told_apart(runs)}Untick a run to take its curves away; what is kept here stays in this browser"
    return grouped_table(headers, groups, caption)


def _told_apart(runs: Sequence[KeptRun]) -> str:
    """In what the runs differ, as a sentence; nothing for a single run."""
    if len(runs) < 2:
        return ""
    names = differences(runs)
    if not names:
        return "These runs have the same target, model, slots and number of restarts. "
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"These runs differ in {listed}, which the legends name. "


def _row(run: KeptRun, place: int, shown: bool) -> list[str]:
    name = letter(place)
    restarts = run.finite_restarts
    mean = sum(restarts) / len(restarts) if restarts else None
    spread = f"{quantity(mean, 'kl')} to {quantity(max(restarts), 'kl')}" if len(restarts) > 1 else "one restart"
    swatch = f"<b class='dpx-letter' style='--run:{colour_of(place)}'>{name}</b>"
    described = (
        f"<a href='?run={run.run_id}' title='Open this run in Explore'>{escape(run.name)}</a> "
        f"<small>{escape(run.slots[:40])} · {escape(run.model[:40])}</small>"
    )
    return [
        f"<input type='checkbox' data-run-id='{run.run_id}' aria-label='Show run {name}'{' checked' * shown}>{swatch}",
        described,
        f"<code title='{escape(run.recipe)}'>{escape(run.recipe[:44])}{'…' * (len(run.recipe) > 44)}</code>",
        f"<b data-kl='{run.kl_nats:.6f}'>{quantity(run.kl_nats, 'kl', 3)}</b>",
        quantity(run.above_floor_nats, "kl", 3) if run.above_floor_nats is not None else "–",
        spread,
        quantity(run.kl_reencoded_nats, "kl", 3) if run.kl_reencoded_nats is not None else "–",
        f"{quantity(run.entropy_nats, 'h')}, {quantity(run.target_entropy_nats, 'h')}",
        f"{run.steps:,}",
        f"{run.evaluations:,}",
        f"{run.seconds:,.1f} s",
        f"<button type='button' class='dpx-drop' data-drop='{run.run_id}' aria-label='Take run {name} off'>×</button>",
    ]


def compared(library: Library, choice: Choice, axis: Axis, folder: Path) -> list[Any]:
    """Values for (stored, table, KL figure, entropy figure, note, *files)."""
    runs = library.runs(choice.run_ids)
    there = {run.run_id for run in runs}
    kept = tuple(run_id for run_id in choice.run_ids if run_id in there or library.is_under_way(run_id))
    choice = Choice(kept, choice.hidden)
    shown = [place for place, run in enumerate(runs) if run.run_id not in choice.hidden]
    figures = ["", ""]
    if shown:
        drawn = kl_figure(runs, shown, axis), entropy_figure(runs, shown, axis)
        figures = [figure_json(figure) + "\n" for figure in drawn]
    files = write_tables(runs, folder) if runs else {}
    buttons = [gr.update(value=str(files[name]) if runs else None, interactive=bool(runs)) for name in FILES]
    return [choice.stored(), compare_table(runs, choice.hidden), *figures, "", *buttons]


@dataclass(frozen=True)
class ComparePanel:
    add: gr.UploadButton
    note: gr.HTML
    rows: gr.HTML
    files: list[gr.DownloadButton]
    axis: gr.Radio
    kl: gr.HTML
    entropy: gr.HTML


def _build_panel() -> ComparePanel:
    with gr.Column(elem_classes="dpx-card", elem_id="compare-card"):
        with gr.Row(elem_classes="dpx-title-row"):
            card_title("Runs side by side")
            several: dict[str, Any] = {"file_types": [".json"], "file_count": "multiple"}
            add = gr.UploadButton("Add capsules", size="sm", elem_id="compare-add", scale=0, **several)
        note = view(live=True, elem_id="compare-note")
        rows = scripted("dpxCompare", EMPTY, "<div class='dpx-view'></div>", tells=True, elem_id="compare-table")
        with gr.Row(elem_id="compare-files"):
            ids = [f"compare-{name.replace(' ', '-')}" for name in FILES]
            files = [
                gr.DownloadButton(_file_label(name), interactive=False, size="sm", elem_id=elem_id)
                for name, elem_id in zip(FILES, ids, strict=True)
            ]
            axis = gr.Radio(AXES, value="step", label="Curves along", elem_id="compare-axis")
    with gr.Row(elem_id="compare-charts"):
        empty = "Every ticked run becomes a line here: its best KL so far."
        kl = _figure("compare-kl", "Distance to the target", empty)
        empty = "And here: the entropy of what that best prompt says."
        entropy = _figure("compare-entropy", "Entropy of what the prompts say", empty)
    return ComparePanel(add, note, rows, files, axis, kl, entropy)


def build_compare(app: AppContext, result: gr.HTML, stored: gr.BrowserState) -> None:
    """The tab, beside the others of the page's navigation. A run is kept as soon as its `result` is there."""
    library = Library(app)
    with gr.Tab("Compare", id="compare") as tab, gr.Column(elem_id="compare-page"):
        panel = _build_panel()
    outputs = [stored, panel.rows, panel.kl, panel.entropy, panel.note, *panel.files]

    def keep(kept: Any, request: gr.Request) -> dict[str, list[str]]:
        return choice_of(app, session_of(app, request), kept).stored()

    def opened(kept: Any, axis: Axis, request: gr.Request) -> list[Any]:
        session = session_of(app, request)
        return compared(library, choice_of(app, session, kept), axis, _folder(session))

    def clicked(kept: Any, axis: Axis, request: gr.Request, event: gr.EventData) -> list[Any]:
        choice = Choice.read(kept).changed(event._data)
        app.sessions.forget_finished(session_of(app, request), event._data.get("drop"))
        return compared(library, choice, axis, _folder(session_of(app, request)))

    def added(paths: list[str], kept: Any, axis: Axis, request: gr.Request) -> list[Any]:
        choice, problem, session = Choice.read(kept), "", session_of(app, request)
        for path in list(dict.fromkeys(paths or []))[:MOST_RUNS]:
            try:
                choice = choice.with_runs([library.add_capsule(Path(path), session)])
            except Exception as error:
                problem = sentence(error)
        values = compared(library, choice, axis, _folder(session))
        values[4] = message(problem, "error")
        return values

    settings = [stored, panel.axis]
    result.change(keep, stored, stored, **QUIET)
    gr.on([tab.select, panel.axis.input], opened, settings, outputs, **QUIET)
    panel.rows.input(clicked, settings, outputs, **QUIET)  # type: ignore[attr-defined]
    panel.add.upload(added, [panel.add, *settings], outputs, **QUIET)


def _figure(name: str, title: str, empty: str) -> gr.HTML:
    buttons = "".join(
        f"<button type='button' data-image='{name}:{kind}' aria-label='{title} as {kind}'>{kind.upper()}</button>"
        for kind in ("png", "svg")
    )
    switch = axis_switch(f"Axis of {title}", f"{name}:scale")
    caption = f"<h2>{escape(title)}</h2>{switch}<span class='dpx-copy'>{buttons}</span>"
    with gr.Column(elem_classes="dpx-card", min_width=320):
        return chart("figure", [("dpx-figure", caption)], empty, elem_id=name)


def _file_label(name: str) -> str:
    what, kind = name.split()
    return f"{'Table' if what == 'runs' else 'Curves'}, {'CSV' if kind == 'csv' else 'Parquet'}"


def _folder(session: str) -> Path:
    """Where a session's tables lie until Gradio has taken them over."""
    safe = "".join(character for character in session if character.isalnum())[:40]
    return upload_folder() / "downloads" / f"compare-{safe or 'nobody'}"
