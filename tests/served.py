"""The page served by this process, for tests and benchmarks."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
import pytest

from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.model_pool import ModelPool
from dpexplore.ui.page import build, launch_settings

GRADIO_LEAVES_OPEN = [
    # Gradio and its client leave sockets and event loops to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@contextmanager
def context_of(lm: LanguageModel, **settings: Any) -> Iterator[AppContext]:
    """The page's state, with one model under whatever name it is asked for."""
    app = AppContext(pool=ModelPool(lambda _name, progress: lm), **settings)
    try:
        yield app
    finally:
        app.close()


@contextmanager
def served(app: AppContext) -> Iterator[tuple[gr.Blocks, str]]:
    """The page and its address on a free port, which ends with a slash."""
    demo = build(app)
    try:
        _, address, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, **launch_settings())
        yield demo, address
    finally:
        demo.close()
        gc.collect()  # what Gradio and its client left open is closed here, where it may be
