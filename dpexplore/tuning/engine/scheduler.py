"""Who gets how many rows: pure functions of what runs want and hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from dpexplore.tuning.engine.fairness import fair_shares


class Claim(NamedTuple):
    """What one run wants; claims are in order of arrival."""

    owner: str
    """Owners have fair shares; runs of one owner are served in order."""
    kind: Hashable
    """Rows of one kind share the places of `capacity`."""
    waiting: int
    active: int

    @property
    def wanted(self) -> int:
        return self.waiting + self.active


def wanted_by_owner(claims: Sequence[Claim]) -> Counter[str]:
    """Rows that each owner has or waits for, owners in order of arrival."""
    wanted = Counter[str]()
    for claim in claims:
        wanted[claim.owner] += claim.wanted
    return wanted


def allocate(claims: Sequence[Claim], room: int, capacity: Callable[[Hashable], int]) -> list[int]:
    """Rows that each claim may have in the batches.

    `room` rows of all kinds together are shared among the owners, and `capacity` of each kind within that. Where one
    owner alone wants a kind, rows that run keep their places: nobody would gain by their leaving.
    """
    wanted = wanted_by_owner(claims)
    shares = dict(zip(wanted, fair_shares([*wanted.values()], room), strict=True))
    given = [0] * len(claims)
    for kind in dict.fromkeys(claim.kind for claim in claims):
        places = [place for place, claim in enumerate(claims) if claim.kind == kind]
        owners = wanted_by_owner([claims[place] for place in places])
        fits = capacity(kind)
        if len(owners) == 1:
            fits = max(fits, sum(claims[place].active for place in places))
        wants = [min(want, shares[owner]) for owner, want in owners.items()]
        left = dict(zip(owners, fair_shares(wants, fits), strict=True))
        for owner, share in left.items():
            shares[owner] -= share
        for place in places:
            owner = claims[place].owner
            given[place] = min(claims[place].wanted, left[owner])
            left[owner] -= given[place]
    return given


def queue_positions(claims: Sequence[Claim]) -> list[int]:
    """For each claim the place of its next row in the queue, 1 for the next one to get in.

    The owner with the fewest rows is next, the earlier one among equals.
    """
    waiting, active = Counter[str](), Counter[str]()
    for claim in claims:
        waiting[claim.owner] += claim.waiting
        active[claim.owner] += claim.active
    order = {owner: place for place, owner in enumerate(waiting)}
    before, positions = Counter[str](), []
    for claim in claims:
        own = before[claim.owner] + active[claim.owner]
        turns = {other: own - active[other] + (order[other] < order[claim.owner]) for other in order}
        del turns[claim.owner]
        others = sum(max(0, min(waiting[other], turn)) for other, turn in turns.items())
        positions.append(1 + before[claim.owner] + others)
        before[claim.owner] += claim.waiting
    return positions
