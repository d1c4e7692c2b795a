"""A run's settings as controls: each is built from its knob, and all of them together are a `TuneConfig`."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

import gradio as gr
from gradio.components import Component

from dpexplore.errors import InputError
from dpexplore.tuning import PRESETS, Slot, Slots, TuneConfig
from dpexplore.tuning.knobs import HARD_RULES, KNOBS, SOFT_RULES, Knob
from dpexplore.ui.components.recipes import number

MAIN = ("method", "slots", "length", "restarts", "steps", "seed")
"""Settings that are always in view."""
ADVANCED = tuple(name for name in KNOBS if name not in MAIN)
"""The others, behind the fold."""
PRESET_FIELDS = tuple(name for name in KNOBS if name not in ("method", "slots", "seed"))
"""What a preset sets: everything but the question that is asked."""
TEXTS = ("init_text", "slots", "norm_budget")
"""Settings that are written; an empty field is their being off."""
CUSTOM = "custom"
"""Stands in the list of presets for settings that are no preset's."""

NAMES = {
    "bos": "Start token",
    "screen": "Screened beginnings",
    "init": "Beginning",
    "init_text": "Beginning's text",
    "policy": "Allowed tokens",
    "allow": "Only these tokens",
    "forbid": "Not these tokens",
    "chat": "Chat template",
    "top": "Top tokens",
    "epoch": "Epoch of Eq. 4",
    "strict": "One slot a step (hybrid)",
}
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')


def name_of(knob: str) -> str:
    return NAMES.get(knob, knob.replace("_", " ").capitalize())


def paper_value(knob: Knob) -> str:
    """The paper's value in words, or that the paper has no use for the knob."""
    if knob.rules and not set(knob.rules) & {SOFT_RULES[0], HARD_RULES[0]}:
        return f"For {', '.join(knob.rules)} only; not in the paper."
    value = getattr(TuneConfig(), knob.name)
    zero = " 0 is off." if _may_be_off(knob) else ""
    word = "none" if value == () else "off" if value is None or value is False else "on" if value is True else value
    return f"Paper: {word}.{zero}"


def _may_be_off(knob: Knob) -> bool:
    """Whether 0 stands for the knob's being off: the page's fields of numbers cannot stay empty."""
    return knob.optional and knob.low is not None


def build_control(name: str) -> Component:
    """The control of an advanced setting, with what it does and the paper's value under its name."""
    knob = KNOBS[name]
    value = to_control(name, getattr(TuneConfig(), name))
    shared: dict[str, Any] = {
        "label": name_of(name),
        "info": f"{knob.text} {paper_value(knob)}",
        "elem_id": f"knob-{name}",
    }
    if knob.choices:
        return gr.Dropdown(list(knob.choices), value=value, **shared)
    if isinstance(value, bool):
        return gr.Checkbox(value, **shared)
    if isinstance(value, str):
        return gr.Textbox(value, **shared)
    return gr.Number(value, **shared)


def to_control(name: str, value: Any) -> Any:
    """A setting as its control shows it."""
    if name in ("allow", "forbid"):
        return " ".join(
            f"#{entry}" if isinstance(entry, int) else json.dumps(entry, ensure_ascii=False) for entry in value
        )
    if name in TEXTS:
        return str(value or "")
    return 0 if value is None and _may_be_off(KNOBS[name]) else value


def from_control(name: str, value: Any) -> Any:
    """A control's value as the setting it stands for. InputError for what it cannot be."""
    if name in ("allow", "forbid"):
        return _read_tokens(name, value or "")
    if name in TEXTS:
        return value or None
    knob = KNOBS[name]
    if _may_be_off(knob):
        value = value or None
    numeric = knob.low is not None or name == "learning_rate"
    if numeric and not knob.optional:
        number(name, value)
    return int(value) if numeric and value is not None and float(value).is_integer() else value


def _read_tokens(name: str, text: str) -> tuple[str | int, ...]:
    entries: list[str | int] = []
    for entry in _TOKENS.findall(text):
        try:
            quoted = entry.startswith('"')
            entries.append(json.loads(entry) if quoted else int(entry[1:]) if re.fullmatch(r"#\d+", entry) else entry)
        except ValueError:
            raise InputError(
                f'{name} cannot be read from {entry[:20]!r} on; tokens are written like " yes" " no" #42.'
            ) from None
    return tuple(entries)


def make_config(values: dict[str, Any]) -> TuneConfig:
    """The controls' values by name as a config; missing ones have the paper's. InputError for what no run can have."""
    settings = {name: from_control(name, value) for name, value in values.items()}
    if settings.get("method") != "hybrid":
        settings["slots"] = None
    if settings.get("init") != "text":
        settings["init_text"] = None
    return TuneConfig(**settings)


def control_values(config: TuneConfig) -> dict[str, Any]:
    """Every control's value for a config, by name."""
    return {name: to_control(name, getattr(config, name)) for name in KNOBS}


def preset_values(name: str) -> dict[str, Any]:
    """Values of the controls that a preset sets."""
    values = control_values(TuneConfig.preset(name))
    return {field: values[field] for field in PRESET_FIELDS}


def apply_preset(name: str) -> list[Any]:
    """Values for PRESET_FIELDS; `CUSTOM` changes nothing."""
    if name not in PRESETS:
        return [gr.skip()] * len(PRESET_FIELDS)
    return [*preset_values(name).values()]


def preset_of(values: dict[str, Any]) -> str:
    """The preset that the controls' values follow, or `CUSTOM`."""
    for name in PRESETS:
        if all(values[field] == value for field, value in preset_values(name).items()):
            return name
    return CUSTOM


# Slots as chips.


def chips_of(line: str) -> str:
    """The slots' line as the chips read it. InputError where the line cannot be read."""
    return json.dumps([asdict(slot) for slot in Slots.parse(line).items], ensure_ascii=False)


def line_of(chips: Any) -> str:
    """The chips as the slots' line. InputError if they are no slots."""
    try:
        slots = tuple(
            Slot("text", text=str(chip["text"]))
            if chip["kind"] == "text"
            else Slot(chip["kind"], count=int(chip["count"]))
            for chip in chips
            if chip["kind"] in ("text", "soft", "hard")
        )
    except (TypeError, KeyError, ValueError):
        raise InputError("A slot is fixed text, or at least one soft or hard token.") from None
    return str(Slots(slots))
