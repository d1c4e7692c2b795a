"""The Experiments tab: the paper's figures beside its claims and what the data say; sweeps started and watched."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from dpexplore.experiments import Store, known_specs, load_spec, plan_sweep
from dpexplore.experiments.gallery import Shown, gallery_of, shipped_gallery
from dpexplore.experiments.progress import duration
from dpexplore.serving.app_context import AppContext, sentence
from dpexplore.serving.sweep_runner import SweepRunner, SweepState
from dpexplore.ui.components.markup import message, progress_bar
from dpexplore.ui.components.widgets import card_title, chart, view

QUIET: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
SHIPPED, HERE = "shipped", "here"
SOURCES = [("shipped with dpexplore", SHIPPED), ("computed on this machine", HERE)]
SIZES = [("small: minutes on a laptop", "small"), ("paper: as in the paper, for GPUs", "paper")]
STORE = Path("runs")
"""Where sweeps started from the page write; the command line's default too."""
NOTHING_HERE = (
    "Nothing has been computed on this machine yet. Start an experiment above, or run "
    "`python -m dpexplore sweep fig1` in a terminal; its figure appears here while it runs."
)
VERDICTS = {"supported": "is-good", "not supported": "is-bad", "undecided": "is-open"}
HEARTBEAT_SECONDS = 2.0


def build_experiments(app: AppContext, demo: gr.Blocks, store: Path = STORE) -> None:
    """The tab. On a public server visitors see the figures; who runs it for themselves starts sweeps too."""
    runner = SweepRunner(store)
    local = app.rules is None
    with gr.Column(elem_id="experiments"):
        if local:
            with gr.Column(elem_classes="dpx-card", elem_id="sweep-card"):
                ended = _build_runner(runner, demo)
        with gr.Column(elem_classes="dpx-card", elem_id="gallery-card"):
            card_title("The figures, and what is seen here")
            source = gr.Radio(
                SOURCES, value=SHIPPED, label="Results", elem_id="gallery-source", visible=local, interactive=True
            )
            figures = gr.Radio([], label="Figure", elem_id="gallery-figures")
            empty = view(live=True, elem_id="gallery-empty")
            with gr.Row(elem_id="gallery-row"):
                with gr.Column(scale=3, min_width=300):
                    drawn = chart("figure", [("dpx-figure", "")], "Choose a figure above.", elem_id="gallery-figure")
                with gr.Column(scale=2, min_width=280):
                    told = view(elem_id="gallery-told")
        with gr.Column(elem_classes="dpx-card", elem_id="claims-card"):
            card_title("Every claim at a glance")
            claims = view(elem_id="claims")
    outputs = [figures, empty, drawn, told, claims]

    def choose_source(chosen: str) -> list[Any]:
        return show_gallery(shown_figures(chosen, runner.store))

    def choose_figure(chosen: str, name: str) -> list[Any]:
        return show_figure(shown_figures(chosen, runner.store), name)

    source.change(choose_source, source, outputs, **QUIET)
    figures.input(choose_figure, [source, figures], [drawn, told], **QUIET)
    demo.load(choose_source, source, outputs, **QUIET)
    if local:
        ended.change(choose_source, source, outputs, **QUIET)


def _build_runner(runner: SweepRunner, demo: gr.Blocks) -> gr.State:
    """Controls of sweeps. The state counts the sweeps that have ended, so that figures follow."""
    card_title("Run an experiment")
    names = [(f"{_figure_number(name)}  {title}", name) for name, title in known_specs().items()]
    with gr.Row(elem_id="sweep-row"):
        spec = gr.Dropdown(names, value="fig1", label="Experiment", elem_id="sweep-spec", scale=3, min_width=220)
        own = gr.UploadButton("Own YAML", file_types=[".yaml", ".yml"], elem_id="sweep-own", scale=0, min_width=96)
        size = gr.Radio(SIZES, value="small", label="Size", elem_id="sweep-size", scale=3, min_width=220)
        start = gr.Button("Start", variant="primary", elem_id="sweep-start", scale=0, min_width=90)
        stop = gr.Button("Stop", elem_id="sweep-stop", scale=0, min_width=70, interactive=False)
    plan = view(elem_id="sweep-plan")
    progress = view(live=True, elem_id="sweep-progress")
    ended = gr.State(0)

    def show_plan(name: str, size: str) -> str:
        return plan_html(name, size, runner.store)

    def begin(name: str, size: str, count: int) -> Iterator[list[Any]]:
        try:
            runner.start(name, size)
        except Exception as error:
            yield [message(sentence(error), "error"), gr.skip(), gr.skip(), gr.skip()]
            return
        yield from watch(count)

    def watch(count: int) -> Iterator[list[Any]]:
        running = False
        for state in follow(runner):
            buttons = [gr.update(interactive=not state.running), gr.update(interactive=state.running)]
            yield [state_html(state), *buttons, count + (running and not state.running)]
            running = state.running

    def take(path: str, size: str) -> list[Any]:
        choice = gr.update(choices=[*names, (Path(path).name, path)], value=path)
        return [choice, show_plan(path, size)]

    outputs = [progress, start, stop, ended]
    own.upload(take, [own, size], [spec, plan], **QUIET)
    gr.on([spec.input, size.input, ended.change], show_plan, [spec, size], plan, **QUIET)
    start.click(begin, [spec, size, ended], outputs, **QUIET)
    stop.click(runner.stop, queue=False, **QUIET)
    demo.load(show_plan, [spec, size], plan, **QUIET)
    demo.load(watch, ended, outputs, **QUIET)
    return ended


def follow(runner: SweepRunner) -> Iterator[SweepState]:
    """The runner's states until no sweep runs; at least one."""
    seen = -1
    while True:
        seen = runner.wait(seen, HEARTBEAT_SECONDS)
        state = runner.state
        yield state
        if not state.running:
            return


def state_html(state: SweepState) -> str:
    """How far the sweep is, what could not be computed, or how it ended."""
    failed = "".join(message(why, "error") for why in state.failed[-3:])
    if not state.running:
        return failed + (message(state.end, "ready" if " finished" in state.end else "info") if state.end else "")
    told = state.progress
    if not told.get("total"):
        return progress_bar(f"{state.name}: loading the model", None) + failed
    of = f", model {told['model_number']} of {told['models']}" if told["models"] > 1 else ""
    rate = f", {told['per_minute']:.1f} a minute" if told["per_minute"] else ""
    left = f", about {duration(told['seconds_left'])} left" if told["seconds_left"] is not None else ""
    text = f"{state.name}, {told['model']}{of}: {told['done']:,} of {told['total']:,} problems{rate}{left}"
    return progress_bar(text, told["done"] / told["total"]) + failed


def plan_html(name: str, size: str, store: Path) -> str:
    """What a sweep of a shipped spec or a YAML file would ask of this machine."""
    try:
        spec = load_spec(name, size)
        plans = plan_sweep(spec, store)
    except Exception as error:
        return message(sentence(error), "error")
    problems, done = sum(plan.problems for plan in plans), sum(plan.done for plan in plans)
    seconds = sum(plan.seconds or 0.0 for plan in plans)
    memory = max((plan.memory_bytes or 0 for plan in plans), default=0)
    models = ", ".join(plan.model for plan in plans)
    share = (1 - done / problems) if problems else 1.0
    if problems and done >= problems:
        return f"<p class='dpx-note'>All {problems:,} problems on {escape(models)} are done.</p>"
    return (
        f"<p class='dpx-note'>{problems:,} problem{'s' * (problems != 1)} ({done:,} done) on {escape(models)}; "
        f"{memory / 2**30:.1f} GiB of memory or more; roughly {duration(seconds * share)} on this machine when idle, "
        "floors apart. "
        f"Results go to <code>{escape(str(store))}</code>; stopping loses nothing.</p>"
    )


def shown_figures(source: str, store: Path) -> list[Shown]:
    """The figures of a source."""
    return gallery_of(Store(store)) if source == HERE else shipped_gallery()


def show_gallery(shown: list[Shown]) -> list[Any]:
    """Values for (figures, empty, drawn, told, claims)."""
    if not shown:
        return [gr.update(choices=[], value=None, visible=False), message(NOTHING_HERE), "", "", ""]
    choices = [(_chip(figure), figure.name) for figure in shown]
    picker = gr.update(choices=choices, value=shown[0].name, visible=True)
    return [picker, "", *show_figure(shown, shown[0].name), claims_html(shown)]


def show_figure(shown: list[Shown], name: str) -> list[Any]:
    """Values for (drawn, told)."""
    found = next((figure for figure in shown if figure.name == name), None)
    return ["", ""] if found is None else [found.figure + "\n", told_html(found)]


def told_html(figure: Shown) -> str:
    """The claims that go with a figure, what the data say, and how the figure came about."""
    claims = "".join(
        f"<li><p class='dpx-claim'>{verdict_html(claim['verdict'])} {escape(claim['claim'])}.</p>"
        f"<p class='dpx-finding'>{escape(_capital(claim['finding']))}</p></li>"
        for claim in figure.claims
    )
    heading = "<h3>What is claimed, and what is seen here</h3>" if claims else ""
    return (
        f"{heading}<ul class='dpx-claims'>{claims}</ul>"
        f"<p class='dpx-note'>{escape(figure.caption)} <i>{escape(_capital(figure.coverage))}.</i></p>"
    )


def claims_html(shown: list[Shown]) -> str:
    """All claims as a table; on a phone a list."""
    rows = "".join(
        f"<tr><td>{verdict_html(claim['verdict'])}</td><td>{escape(claim['claim'])}</td>"
        f"<td>{escape(_capital(claim['finding']))}</td></tr>"
        for figure in shown
        for claim in figure.claims
    )
    if not rows:
        return "<p class='dpx-note'>The claims appear with the results of their figures.</p>"
    return (
        "<p class='dpx-note'>Supported: the 95 % interval lies on the claim's side. Not supported: on the other side. "
        "Undecided: across, or the data are about something else.</p>"
        "<table class='dpx-claims-table'><thead><tr><th scope='col'>here</th><th scope='col'>claim</th>"
        f"<th scope='col'>effect and interval</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def verdict_html(verdict: str) -> str:
    return f"<b class='dpx-verdict {VERDICTS.get(verdict, 'is-open')}'>{escape(verdict)}</b>"


def _chip(figure: Shown) -> str:
    kind, *rest = figure.name.split("-")
    what = ["paper size" if word == "paper" else word for word in rest if word != "small"]
    return ", ".join([_figure_number(kind), *what])


def _figure_number(name: str) -> str:
    digits = name.removeprefix("fig")
    return f"Fig. {digits}" if digits.isdigit() else name.capitalize()


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
