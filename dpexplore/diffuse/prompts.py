"""Prompts tuned towards distributions over strings: free slots anywhere in the request, by the row engine."""

from __future__ import annotations

import json
import re
from typing import Any

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.models.chat import has_chat
from dpexplore.targets import Strings
from dpexplore.tuning import TuneConfig
from dpexplore.tuning.knobs import METHODS

DEFAULT_SLOTS = {"soft": "request soft*5", "hard": "request hard*5", "hybrid": "request soft*3 hard*2"}
"""Where the tuned tokens stand; the word `request` is the request as it is written."""

_WORD = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|(?<!\S)request(?!\S)""")


def prompt_config(
    lm: LanguageModel, asked: Strings, method: str, slots: str | None = None, preset: str = "fast", **changes: Any
) -> TuneConfig:
    """The settings of a run that tunes tokens in and around a target's request.

    `slots` is a line such as `soft*3 request hard*2`; the whole stands in the user's turn of the chat template where
    the model has one. InputError for an unknown method or preset, or slots that cannot be read.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}; use one of {', '.join(map(repr, METHODS))}.")
    return TuneConfig.preset(
        preset,
        method=method,
        slots=fill_slots(slots or DEFAULT_SLOTS[method], asked.request),
        chat=has_chat(lm),
        **changes,
    )


def fill_slots(slots: str, request: str) -> str:
    """Slots with the word `request` written out as a text in quotes."""
    written = json.dumps(request, ensure_ascii=False) if request else ""
    return _WORD.sub(lambda match: written if match[0] == "request" else match[0], slots).strip()
