"""JSON from elsewhere: its size is counted in its text before a parser sees it, and numbers that are none are refused.

Counting goes through the text once and keeps a few integers; a parser would recurse for every bracket and keep
a hundred bytes for every value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dpexplore.errors import InputError

# Up to the next bracket; a text that is never closed counts to its end, so that no byte is looked at twice.
_BRACKET = r'(?:"(?:[^"\\]++|\\.)*+"?|[^"\[\]{}]++)*+([\[\]{}]|\Z)'
_OPENING = ("[", "{", b"[", b"{")
_IN_TEXT, _IN_BYTES = re.compile(_BRACKET, re.DOTALL), re.compile(_BRACKET.encode(), re.DOTALL)


@dataclass(frozen=True)
class JsonLimits:
    """How much JSON is read."""

    items: int
    """Commas and opening brackets, so at most as many values."""
    depth: int = 50
    """Lists and objects within one another."""


class JsonRefused(InputError):
    """JSON that is too large, too deep or damaged; `reason` is the part of the sentence that says so."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"This is no JSON that can be read ({reason}).")
        self.reason = reason


def check_json(data: str | bytes, most: JsonLimits) -> None:
    """JsonRefused for JSON text beyond the limits; linear in time, constant in memory."""
    if isinstance(data, str):
        items, brackets = data.count(",") + data.count("[") + data.count("{"), _IN_TEXT.finditer(data)
    else:
        items, brackets = data.count(b",") + data.count(b"[") + data.count(b"{"), _IN_BYTES.finditer(data)
    if items > most.items:
        raise JsonRefused(f"more than {most.items:,} values")
    depth = 0
    for match in brackets:
        depth += 1 if match[1] in _OPENING else -1  # and -1 at the end, where nothing depends on it
        if depth > most.depth:
            raise JsonRefused("nested too deep")


def read_json(
    data: str | bytes,
    most: JsonLimits,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    *,
    finite: bool = True,
) -> Any:
    """The value of JSON text. JsonRefused for any other text, and for numbers that are not finite unless they may be.

    `pairs` makes objects from their pairs, as `object_pairs_hook` of `json`.
    """
    check_json(data, most)
    try:
        number, constant = (_finite, _refuse) if finite else (None, None)
        value = json.loads(data, object_pairs_hook=pairs, parse_float=number, parse_constant=constant)
    except JsonRefused:
        raise
    except UnicodeDecodeError:
        raise JsonRefused("not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits is a ValueError without `msg`
        raise JsonRefused(str(getattr(error, "msg", "a number is too long"))) from None
    if (b"\\ud" if isinstance(data, bytes) else "\\ud") in data.lower():  # type: ignore[operator]
        _check_characters(value)
    return value


def _check_characters(value: Any) -> None:
    """JsonRefused if a text holds half of a character, which JSON can write and UTF-8 cannot."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += [*each, *each.values()]
        elif isinstance(each, list | tuple):
            waiting += each
        elif isinstance(each, str) and not each.isascii():
            try:
                each.encode()
            except UnicodeEncodeError as error:
                half = ascii(each[error.start])
                raise JsonRefused(f"a text holds half of a character, {half}, a lone surrogate") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonRefused(f"{text[:20]} is beyond all numbers")
    return value


def _refuse(text: str) -> float:
    raise JsonRefused(f"{text} is not a JSON number")
