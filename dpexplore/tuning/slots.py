"""What a prompt is made of: fixed text, soft virtual tokens and hard tokens, in any order.

The text form is a line such as `"Q:" soft*3 hard*2 " A:"`: Python string literals are fixed text,
`soft*n` are n free vectors, `hard*n` are n vocabulary ids to be searched.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from dpexplore.checks import check_text
from dpexplore.errors import InputError

SlotKind = Literal["text", "soft", "hard"]

ACCEPTED = 'Slots are written like "Q:" soft*3 hard*2 " A:" (quoted text, soft*n, hard*n).'

_ITEM = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?P<kind>soft|hard)(?:\*(?P<count>\d{1,6}))?)(?=\s|$)"""
)


@dataclass(frozen=True)
class Slot:
    """One stretch of a prompt."""

    kind: SlotKind
    text: str = ""
    """The fixed text of a `text` slot."""
    count: int = 1
    """How many virtual tokens a `soft` or `hard` slot holds."""

    def __str__(self) -> str:
        if self.kind == "text":
            return json.dumps(self.text, ensure_ascii=False)
        return f"{self.kind}*{self.count}"


@dataclass(frozen=True)
class Slots:
    """A prompt's slots from left to right; at least one of them is free."""

    items: tuple[Slot, ...]

    def __post_init__(self) -> None:
        if not any(slot.kind != "text" for slot in self.items):
            raise InputError(f"The slots leave nothing to tune: at least one soft or hard token is needed. {ACCEPTED}")
        if any(slot.count < 1 for slot in self.items):
            raise InputError(f"A slot holds at least one token. {ACCEPTED}")

    def __str__(self) -> str:
        return " ".join(str(slot) for slot in self.items)

    @classmethod
    def parse(cls, line: str) -> Slots:
        """Read the text form. InputError names the first place that cannot be read."""
        return _parsed(check_text("slots", line))

    @classmethod
    def of(cls, kind: Literal["soft", "hard"], count: int) -> Slots:
        """`count` tokens of one kind: the paper's soft and hard prompts."""
        return cls((Slot(kind, count=count),))

    def free(self, kind: Literal["soft", "hard"]) -> int:
        """How many tokens of this kind are tuned."""
        return sum(slot.count for slot in self.items if slot.kind == kind)


@lru_cache(maxsize=64)
def _parsed(line: str) -> Slots:
    """The slots of a line; a sweep asks thousands of times for the same."""
    items: list[Slot] = []
    at = 0
    while line[at:].strip():
        match = _ITEM.match(line, at)
        if match is None:
            place = line[at:].split()[0]
            raise InputError(f"The slots cannot be read from {place[:30]!r} on. {ACCEPTED}")
        if match["text"] is not None:
            items.append(Slot("text", text=_literal(match["text"])))
        else:
            items.append(Slot("soft" if match["kind"] == "soft" else "hard", count=int(match["count"] or 1)))
        at = match.end()
    return Slots(tuple(items))


def _literal(quoted: str) -> str:
    try:
        return check_text("slots", ast.literal_eval(quoted))
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"The slots hold a text that is not closed or not escaped correctly: {quoted[:30]}. {ACCEPTED}"
        ) from error
