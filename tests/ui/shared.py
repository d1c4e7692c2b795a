"""What the tests of handlers share: settings of short runs, and ways to read what handlers answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from dpexplore.serving.app_context import AppContext
from dpexplore.ui.components.floor_panel import follow_floor
from dpexplore.ui.components.settings import preset_values
from dpexplore.ui.components.target_tabs import Tab, build_tabs

MODEL = "tiny"
"""Name of the model of `conftest.app`."""
SOFT = {"method": "soft", "length": 2, "restarts": 2, "steps": 6, "seed": 0}
HARD = {"method": "hard", "length": 2, "restarts": 2, "steps": 4, "seed": 0}
HYBRID = {**preset_values("fast"), "method": "hybrid", "slots": '"I love" soft*1 hard*1', "restarts": 1, "steps": 3}
LONG = {**SOFT, "restarts": 1, "steps": 100_000}
LIVE, RANKS, STATUS, RESULT, MICROSCOPE, CAPSULE, TUNE, STOP = range(8)
STRINGS_RECORD = {"request": "I love the", "response": [""], "targets": ["sea", "shore"], "weights": [1, 3]}


def tab_of(key: str) -> Tab:
    """A tab of the target designer."""
    with gr.Blocks(), gr.Tabs():
        return next(tab for tab in build_tabs() if tab.key == key)


def last(values: Iterator[list[Any]]) -> list[Any]:
    *_, final = values
    return final


def lines(stream: str) -> list[Any]:
    return [json.loads(line) for line in stream.splitlines()]


def floors_of(app: AppContext, recipe: str, session: str = "floor") -> list[Any]:
    *_, final = follow_floor(app, session, "tiny", recipe)
    return final


def write_files(folder: Path, **texts: str) -> list[str]:
    """Files by their names, with `__` for the dot; their paths."""
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return [str(folder / name.replace("__", ".")) for name in texts]
