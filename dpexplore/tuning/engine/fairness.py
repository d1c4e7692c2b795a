"""Who gets how many rows when several people tune one model at the same time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

SHARED_STEP_SECONDS = 0.8
"""A step that several owners share takes about this long at most, so that each sees an update a second."""
SMOOTHING = 0.2
"""Share of the newest step in the running mean of a row's cost."""


class Owner(NamedTuple):
    """The user a run belongs to, which decides its share of the rows."""

    name: str = ""
    """Owners within a group have equal shares. A session may be several owners: `<session> <part of its page>`."""
    group: str = ""
    """A network address, for example: rows are divided among groups first, then among the owners in each."""
    most_shares: int = 2**31
    """A group has a share for each of its sessions, up to this many."""

    @property
    def session(self) -> str:
        """The owner's name without the part of its page."""
        return self.name.partition(" ")[0]


NOBODY = Owner()
"""The owner of every run where users are not distinguished, as on the command line."""


def group_weights(owners: Iterable[Owner]) -> dict[str, int]:
    """Shares of each group, in order of arrival: one per session, up to the group's `most_shares`."""
    sessions: dict[str, set[str]] = {}
    most: dict[str, int] = {}
    for owner in owners:
        sessions.setdefault(owner.group, set()).add(owner.session)
        most[owner.group] = owner.most_shares
    return {group: max(1, min(len(names), most[group])) for group, names in sessions.items()}


def fair_shares(wants: Sequence[int], room: int, weights: Sequence[int] | None = None) -> list[int]:
    """Divide `room` rows by weight: each row goes to the one with the fewest rows per unit of weight that wants more.

    No one gets more rows than it wants, and at most `room` are given out. With equal weights (None), anyone who gets
    fewer than it wants has at most one row fewer than anyone else. Ties go to the earlier one.
    """
    weights = weights or [1] * len(wants)
    shares = [0] * len(wants)
    hungry = [i for i, want in enumerate(wants) if want > 0]
    while hungry and room >= (turn := sum(weights[i] for i in hungry)):
        turns = max(1, min(room // turn, *(-(-(wants[i] - shares[i]) // weights[i]) for i in hungry)))
        for i in hungry:
            dealt = min(turns * weights[i], wants[i] - shares[i])
            shares[i] += dealt
            room -= dealt
        hungry = [i for i in hungry if shares[i] < wants[i]]
    while hungry and room > 0:
        shares[min(hungry, key=lambda i: (shares[i] / weights[i], i))] += 1
        room -= 1
        hungry = [i for i in hungry if shares[i] < wants[i]]
    return shares


def shares_of_owners(wanted: Mapping[Owner, int], room: int) -> dict[Owner, int]:
    """Rows for each owner: divided among the groups by weight, then equally among the owners of each group."""
    shares: dict[Owner, int] = {}
    weights = group_weights(wanted)
    members = {group: [owner for owner in wanted if owner.group == group] for group in weights}
    wants = [sum(wanted[owner] for owner in owners) for owners in members.values()]
    dealt = fair_shares(wants, room, [*weights.values()])
    for owners, rows in zip(members.values(), dealt, strict=True):
        shares |= zip(owners, fair_shares([wanted[owner] for owner in owners], rows), strict=True)
    return shares


class Pace:
    """What a row costs in a step, and so how many rows a shared step may hold."""

    def __init__(self) -> None:
        self._seconds_per_row: float | None = None

    def note(self, seconds: float, rows: int) -> None:
        """A step of this many rows took this long."""
        cost, before = seconds / max(rows, 1), self._seconds_per_row
        self._seconds_per_row = cost if before is None else before + SMOOTHING * (cost - before)

    def room(self, shares: int) -> int:
        """Rows of a step that is divided into this many shares; each share is at least one row."""
        if self._seconds_per_row is None:
            return shares
        return max(shares, int(SHARED_STEP_SECONDS / max(self._seconds_per_row, 1e-9)))
