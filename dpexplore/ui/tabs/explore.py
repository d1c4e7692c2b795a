"""Explore, the main page: model, target and floor on the left, the run and what came of it on the right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from dpexplore.serving.app_context import AppContext
from dpexplore.ui.components.continuation import ContinuationPanel, build_continuation, wire_continuation
from dpexplore.ui.components.dials_panel import build_dials_card, wire_dials_panel
from dpexplore.ui.components.disc_panel import build_disc_card, wire_disc_panel
from dpexplore.ui.components.examples import build_examples, wire_examples
from dpexplore.ui.components.floor_panel import build_floor_card, build_why_card, wire_floor_panel
from dpexplore.ui.components.frontier_panel import build_frontier_card, wire_frontier_panel
from dpexplore.ui.components.microscope import MICROSCOPE_EMPTY
from dpexplore.ui.components.model_panel import (
    ModelPanel,
    accept_terms,
    again_in,
    build_model_panel,
    in_precision,
    show_terms,
    use_model,
    why_html,
)
from dpexplore.ui.components.reach_panel import build_reach_card, wire_reach_panel
from dpexplore.ui.components.result_view import EMPTY_RESULT
from dpexplore.ui.components.runs_panel import build_runs_card, wire_runs_panel
from dpexplore.ui.components.share_bar import ShareBar, build_share_bar, show_arrivals, wire_share_bar
from dpexplore.ui.components.target_panel import (
    TargetPanel,
    build_target_panel,
    entropy_limits,
    show_target,
    wire_target_panel,
)
from dpexplore.ui.components.tune_panel import (
    ResultPanel,
    TunePanel,
    achieved_chart,
    build_tune_panel,
    live_chart,
    settings_line,
    wire_tune_panel,
)
from dpexplore.ui.components.widgets import axis_switch, card_title, legend, microscope, segmented, view
from dpexplore.ui.components.words_panel import build_words_card, wire_words_panel

TITLE = "<h2><i class='is-target'></i>Target and <i class='is-achieved'></i>achieved</h2>"
BY = [("by rank", "achieved-chart:by:rank"), ("by token", "achieved-chart:by:token")]


@dataclass(frozen=True)
class Explore:
    """What other tabs follow."""

    model: gr.Textbox
    """The name of the model that the page works with."""
    result: gr.HTML
    """Changes when a run has ended."""
    target: TargetPanel


def build_explore(app: AppContext, demo: gr.Blocks, strip: gr.HTML, kept: gr.BrowserState) -> Explore:
    """The tab's content. `strip` shows the model's loading, `kept` are the runs of this browser."""
    examples = build_examples()
    with gr.Row(elem_id="page"):
        with gr.Column(elem_id="left", scale=0, min_width=320):
            with gr.Column(elem_classes="dpx-card", elem_id="model-card"):
                models = build_model_panel(app, strip)
            with gr.Column(elem_classes="dpx-card", elem_id="target-card"):
                target = build_target_panel()
            with gr.Column(elem_classes="dpx-card", elem_id="floor-card"):
                told, ladder = build_floor_card()
            with gr.Column(elem_classes="dpx-card", elem_id="why-card"):
                floor = build_why_card(told, ladder)
            with gr.Column(elem_classes="dpx-card", elem_id="reach-card"):
                reach = build_reach_card()
        with gr.Column(elem_id="right", scale=1, min_width=320):
            with gr.Column(elem_classes="dpx-card", elem_id="tune-card"):
                tuning = build_tune_panel()
            shown, onward, bar = _results(app)
            with gr.Column(elem_classes="dpx-card", elem_id="runs-card"):
                runs = build_runs_card()
            with gr.Row(elem_id="geometry"):
                with gr.Column(elem_classes="dpx-card", elem_id="disc-card", scale=3, min_width=300):
                    states = build_disc_card()
                with gr.Column(elem_classes="dpx-card", elem_id="words-card", scale=2, min_width=300):
                    words = build_words_card()
            with gr.Row(elem_id="limits"):
                with gr.Column(elem_classes="dpx-card", elem_id="frontier-card", min_width=300):
                    frontier = build_frontier_card()
                with gr.Column(elem_classes="dpx-card", elem_id="dials-card", min_width=300):
                    dials = build_dials_card()
    wire_target_panel(app, target, models.name)
    run_after = wire_tune_panel(app, demo, tuning, shown, models.name, target.recipe)
    wire_examples(app, examples, target, tuning, models.name, run_after)
    wire_continuation(app, onward, models.name, shown.result, shown.capsule)
    wire_floor_panel(app, floor, target, shown.result, models.name)
    wire_disc_panel(app, states, target, models.name)
    wire_words_panel(app, words, target, floor.sentence, shown.result, models.name)
    wire_reach_panel(app, reach, target, models.name)
    wire_frontier_panel(app, frontier, target, models.name)
    wire_dials_panel(app, dials, models.name)
    wire_runs_panel(app, demo, runs, kept, shown.result)
    arrivals = wire_share_bar(app, demo, bar, models.name, target, tuning, runs.rows)
    starts = [tuning.tune, *examples.buttons.values()]
    for loaded in _wire_models(app, models, target, tuning, starts, arrivals, bar):
        show_arrivals(app, loaded, bar, models.name, target, tuning, shown)
    return Explore(models.name, shown.result, target)


def _results(app: AppContext) -> tuple[ResultPanel, ContinuationPanel, ShareBar]:
    with gr.Column(elem_classes="dpx-card", elem_id="live-card"):
        live = live_chart()
    with gr.Row(elem_id="lower"):
        with gr.Column(elem_id="middle", min_width=300):
            with gr.Column(elem_classes="dpx-card", elem_id="achieved-card"):
                switches = segmented("Order of tokens", BY, "switch", BY[0][1])
                switches += axis_switch("Axis of probability", "achieved-chart:scale", "log")
                view(f"<div class='dpx-card-title'>{TITLE}{switches}</div>")
                ranks = achieved_chart()
            with gr.Column(elem_classes="dpx-card", elem_id="onward-card"):
                card_title("What it says next")
                onward = build_continuation()
        with gr.Column(elem_classes="dpx-card", elem_id="result-card", min_width=300):
            card_title("Result")
            result = view(EMPTY_RESULT, elem_id="result")
            bar = build_share_bar(app)
    with gr.Column(elem_classes="dpx-card", elem_id="microscope-card"):
        card_title("Where the KL comes from", legend([("target", "target p"), ("achieved", "achieved q")]))
        lens = microscope(MICROSCOPE_EMPTY, elem_id="microscope")
    return ResultPanel(live, ranks, result, lens, bar.capsule), onward, bar


def _wire_models(
    app: AppContext,
    models: ModelPanel,
    target: TargetPanel,
    tuning: TunePanel,
    starts: list[gr.Button],
    arrivals: tuple[Any, ...],
    bar: ShareBar,
) -> list[Any]:
    """Arriving and choosing a model load it, and what depends on it follows; gives the events of what arrivals load."""
    outputs = [models.strip, models.name, models.picker]
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}

    def follow(wanted: str, current: str, precision: str) -> Iterator[tuple]:
        yield from use_model(app, in_precision(wanted or "", precision), current)

    def again(precision: str, current: str) -> Iterator[tuple]:
        yield from use_model(app, again_in(current, precision), current)

    def opened(wanted: str, current: str) -> Iterator[tuple]:
        yield from use_model(app, wanted, current)

    loaded = [event.then(opened, [bar.wanted, models.name], outputs, **quiet) for event in arrivals]
    chosen = models.choice.input(follow, [models.choice, models.name, models.precision], outputs, **quiet)
    chosen.then(partial(show_terms, app), models.choice, models.accept, **quiet)
    accepted = models.accept.click(accept_terms, models.choice, None, **quiet)
    accepted = accepted.then(follow, [models.choice, models.name, models.precision], outputs, **quiet)
    accepted.then(partial(show_terms, app), models.choice, models.accept, **quiet)
    gr.on(
        [models.load.click, models.custom.submit],
        follow,
        [models.custom, models.name, models.precision],
        outputs,
        **quiet,
    )
    models.precision.input(again, [models.precision, models.name], outputs, **quiet)
    models.name.change(partial(why_html, app), models.name, models.why, **quiet)
    after = models.name.change(
        partial(_model_ready, app, len(starts), list(tuning.controls)),
        [models.name, bar.arrived, *tuning.controls.values()],
        [*starts, tuning.status, target.controls["bits"], target.controls["outlier_bits"]],
        **quiet,
    )
    shown = {name: target.outputs[name] for name in ("chart", "tokens", "facts", "problem")}

    def first_preview(model: str, recipe: str) -> dict[Any, Any]:
        return {shown[name]: value for name, value in show_target(app, model, recipe).items()}

    after.then(first_preview, [models.name, target.recipe], list(shown.values()), **quiet)
    return loaded


def _model_ready(app: AppContext, starts: int, names: list[str], model: str, arrived: str, *values: Any) -> list[Any]:
    """Values for (the buttons that start a run, status, both entropy sliders)."""
    if not model:
        return [gr.skip()] * (starts + 3)
    # What is about to be shown has a status of its own.
    told = gr.skip() if arrived else settings_line(app, model, dict(zip(names, values, strict=True)))
    return [*[gr.update(interactive=True)] * starts, told, *entropy_limits(app, model)]
