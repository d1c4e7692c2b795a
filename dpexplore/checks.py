"""What enters is checked here: texts that UTF-8 can hold, finite numbers in range. One place for every way in."""

from __future__ import annotations

import math
from collections.abc import Callable

from dpexplore.errors import InputError

MAX_SEED = 2**63 - 1


def check_whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """`value` as an integer from `low` to `high`; InputError that names the argument otherwise."""
    if isinstance(value, int | float) and not isinstance(value, bool) and _finite(value):
        whole = int(value)
        if whole == value and low <= whole and (high is None or whole <= high):
            return whole
    span = f"from {low} to {high}" if high is not None else f"{low} or more"
    raise InputError(f"`{name}` is {_shown(value)}; use a whole number {span}.")


def check_seed(value: object) -> int:
    """A seed: a whole number that the generator takes."""
    return check_whole("seed", value, 0, MAX_SEED)


def check_number(name: str, value: object, accepted: str, fits: Callable[[float], bool]) -> float:
    """`value` as a finite float for which `fits` holds; InputError that says what is `accepted` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value) or not fits(float(value)):
        raise InputError(f"`{name}` is {_shown(value)}; use {accepted}.")
    return float(value)


def check_flag(name: str, value: object) -> bool:
    """`value` if it is True or False; InputError that names the argument otherwise."""
    if not isinstance(value, bool):
        raise InputError(f"`{name}` is {_shown(value)}; use True or False.")
    return value


def check_text(name: str, value: object) -> str:
    """`value` if it is a text that UTF-8 can hold: half of an emoji, which JSON can write, is none."""
    if not isinstance(value, str):
        raise InputError(f"`{name}` is {_shown(value)}; write a text in quotes.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise InputError(
            f"`{name}` holds half of a character ({half}, a lone surrogate); write the whole character or leave it out."
        ) from None
    return value


def _finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _shown(value: object) -> str:
    try:
        shown = repr(value)
    except ValueError:  # an integer of thousands of digits
        shown = "a very large number"
    return shown if len(shown) <= 60 else shown[:57] + "…"
