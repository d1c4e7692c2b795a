"""The page: its header, its tabs, and how it is served."""

from __future__ import annotations

from typing import Any

import gradio as gr

from dpexplore.serving.app_context import AppContext
from dpexplore.ui.api import add_endpoints
from dpexplore.ui.components.kept_runs import kept_runs
from dpexplore.ui.components.widgets import segmented, view
from dpexplore.ui.lean import make_lean
from dpexplore.ui.shares import QUESTIONS
from dpexplore.ui.tabs.about import build_about
from dpexplore.ui.tabs.compare import build_compare
from dpexplore.ui.tabs.experiments import build_experiments
from dpexplore.ui.tabs.explore import build_explore
from dpexplore.ui.tabs.first_minute import INVITATION, build_first_minute
from dpexplore.ui.tabs.lessons import build_lessons
from dpexplore.ui.tabs.strings import build_strings
from dpexplore.ui.theme import css, script_routes, theme

UNITS = [("KL nats, H bits", "mixed"), ("nats", "nats"), ("bits", "bits")]
HEADER = (
    "<header class='dpx-header'><h1>dpexplore</h1>"
    f"<div class='dpx-tools'>{segmented('Units', UNITS, 'units', 'mixed')}"
    "<button type='button' class='dpx-round' data-present aria-pressed='false' aria-label='Presenter&#39;s view: text "
    "for the back row' title='Presenter&#39;s view'>▣</button>"
    "<button type='button' class='dpx-round' data-dark aria-label='Light or dark'>◐</button></div></header>"
)


SESSIONS_KEPT = 1000
"""Pages and programs of which Gradio remembers the values, 0.07 MiB each; the least recently active session is evicted.

A page that gave way tunes on, since it keeps its model's name itself, but not the strings that it was given as files.
"""


def build(app: AppContext | None = None) -> gr.Blocks:
    """The whole page. Models live in `app.pool`, runs in `app.sessions`; nothing is global."""
    app = app or AppContext()
    with gr.Blocks(title="dpexplore", analytics_enabled=False, fill_width=True, delete_cache=(3600, 7200)) as demo:
        view(HEADER, elem_id="header")
        strip = view(live=True, elem_id="model-strip")
        kept = kept_runs()  # outside the tabs: Gradio draws a tab's components when it is first opened
        view(INVITATION, elem_id="invitation")
        with gr.Tabs(elem_id="nav", overflow_behavior="wrap") as tabs:
            with gr.Tab("Explore", id="explore"):
                explore = build_explore(app, demo, strip, kept)
            with gr.Tab("First minute", id="first-minute") as first:
                build_first_minute(app, first, tabs, explore.model, explore.target)
            build_compare(app, explore.result, kept)
            with gr.Tab("Strings", id="strings"):
                build_strings(app, demo, explore.model)
            with gr.Tab("Experiments", id="experiments"):
                build_experiments(app, demo)
            with gr.Tab("Lessons", id="lessons") as lessons:
                build_lessons(app, lessons, explore.model)
            with gr.Tab("About", id="about"):
                build_about()
        add_endpoints(app)
    # `api_open`: there is no way around the queue.
    return make_lean(demo.queue(max_size=QUESTIONS, default_concurrency_limit=8, api_open=False))


def launch_settings() -> dict[str, Any]:
    """Arguments of `Blocks.launch` that make the page what it is."""
    return {
        "theme": theme(),
        "css": css(),
        "app_kwargs": {"routes": script_routes()},
        "footer_links": ["api"],
        "max_file_size": "20mb",
        "max_threads": QUESTIONS,
        "state_session_capacity": SESSIONS_KEPT,
        "enable_monitoring": False,
        "run_history": False,
        "show_error": False,
        "ssr_mode": False,
        "quiet": True,
    }
