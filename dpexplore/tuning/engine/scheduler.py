"""Who gets how many rows: pure functions of what runs want and hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from dpexplore.tuning.engine.fairness import Owner, group_weights, shares_of_owners


class Claim(NamedTuple):
    """What one run wants; claims are in order of arrival."""

    owner: Owner
    """Owners have fair shares; runs of one owner are served in order."""
    kind: Hashable
    """Rows of one kind share the places of `capacity`."""
    waiting: int
    active: int

    @property
    def wanted(self) -> int:
        return self.waiting + self.active


def wanted_by_owner(claims: Sequence[Claim]) -> Counter[Owner]:
    """Rows that each owner has or waits for, owners in order of arrival."""
    wanted = Counter[Owner]()
    for claim in claims:
        wanted[claim.owner] += claim.wanted
    return wanted


def allocate(claims: Sequence[Claim], room: int, capacity: Callable[[Hashable], int]) -> list[int]:
    """Rows that each claim may have in the batches.

    `room` rows of all kinds together are shared among the owners (`shares_of_owners`), and `capacity` of each kind
    within that. Where one owner alone wants a kind, rows that run keep their places: nobody would gain by their
    leaving.
    """
    wanted = wanted_by_owner(claims)
    shares = shares_of_owners(wanted, room)
    given = [0] * len(claims)
    for kind in dict.fromkeys(claim.kind for claim in claims):
        places = [place for place, claim in enumerate(claims) if claim.kind == kind]
        owners = wanted_by_owner([claims[place] for place in places])
        fits = capacity(kind)
        if len(owners) == 1:
            fits = max(fits, sum(claims[place].active for place in places))
        left = shares_of_owners({owner: min(want, shares[owner]) for owner, want in owners.items()}, fits)
        for owner, share in left.items():
            shares[owner] -= share
        for place in places:
            owner = claims[place].owner
            given[place] = min(claims[place].wanted, left[owner])
            left[owner] -= given[place]
    return given


class Party(NamedTuple):
    """An owner, or a group of owners, in the queue."""

    active: int
    waiting: int
    weight: int


def queue_positions(claims: Sequence[Claim]) -> list[int]:
    """For each claim the place of its next row in the queue, 1 for the next one to get in.

    The group with the fewest rows for its weight is next, and within it the owner with the fewest; the earlier one
    among equals.
    """
    waiting, active = Counter[Owner](), Counter[Owner]()
    for claim in claims:
        waiting[claim.owner] += claim.waiting
        active[claim.owner] += claim.active
    weights = group_weights(waiting)
    members: dict[str, dict[Owner, Party]] = {group: {} for group in weights}
    for owner in waiting:
        members[owner.group][owner] = Party(active[owner], waiting[owner], 1)
    groups = {
        group: Party(sum(one.active for one in own.values()), sum(one.waiting for one in own.values()), weights[group])
        for group, own in members.items()
    }
    before, positions = Counter[Owner](), []
    for claim in claims:
        owner, own = claim.owner, before[claim.owner]
        in_group = own + _dealt_before(members[owner.group], owner, own)
        positions.append(1 + in_group + _dealt_before(groups, owner.group, in_group))
        before[owner] += claim.waiting
    return positions


def _dealt_before(parties: Mapping[Any, Party], one: Hashable, more: int) -> int:
    """Rows that the other parties get before one that gets `more` rows first."""
    level, weight = parties[one].active + more, parties[one].weight  # dealt at level / weight rows for each share
    found, earlier = 0, True
    for name, other in parties.items():
        if name == one:
            earlier = False
            continue
        whole, part = divmod(level * other.weight, weight)
        found += max(0, min(other.waiting, whole + (part > 0 or earlier) - other.active))
    return found
