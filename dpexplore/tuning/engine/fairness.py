"""Who gets how many rows when several people tune one model at the same time."""

from __future__ import annotations

from collections.abc import Sequence

SHARED_STEP_SECONDS = 0.8
"""A step that several owners share takes about this long at most, so that each sees an update a second."""
SMOOTHING = 0.2
"""Share of the newest step in the running mean of a row's cost."""


def fair_shares(wants: Sequence[int], room: int) -> list[int]:
    """Rows for each owner as turns would deal them: one each in order, again and again, to those who want more.

    Nobody gets more than wanted, no more than `room` are dealt, and each that gets less than wanted has at most one row
    less than anybody else.
    """
    shares = [0] * len(wants)
    hungry = [i for i, want in enumerate(wants) if want > 0]
    while room > 0 and hungry:
        each = max(1, room // len(hungry))
        for i in hungry:
            dealt = min(each, wants[i] - shares[i], room)
            shares[i] += dealt
            room -= dealt
        hungry = [i for i in hungry if shares[i] < wants[i]]
    return shares


class Pace:
    """What a row costs in a step, and so how many rows a shared step may hold."""

    def __init__(self) -> None:
        self._seconds_per_row: float | None = None

    def note(self, seconds: float, rows: int) -> None:
        """A step of this many rows took this long."""
        cost, before = seconds / max(rows, 1), self._seconds_per_row
        self._seconds_per_row = cost if before is None else before + SMOOTHING * (cost - before)

    def room(self, owners: int) -> int:
        """Rows of a step that this many owners share; each of them has one at least."""
        if self._seconds_per_row is None:
            return owners
        return max(owners, int(SHARED_STEP_SECONDS / max(self._seconds_per_row, 1e-9)))
