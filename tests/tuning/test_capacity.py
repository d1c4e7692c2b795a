"""Two memories: rows are held against the card's, records and tables against the machine's."""

from __future__ import annotations

import pytest

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.tuning.engine.capacity import Capacity, Memory

GIB = 2**30


def capacity(lm: LanguageModel, card: int, machine: int) -> Capacity:
    return Capacity(
        lm, device=Memory("the card's memory", lambda: card), machine=Memory("the machine's memory", lambda: machine)
    )


def test_records_are_not_held_against_the_card(lm: LanguageModel) -> None:
    room = capacity(lm, card=GIB, machine=128 * GIB)
    room.check(5, restarts=1_000, steps=10**6)
    with pytest.raises(InputError, match=r"1,000 restarts .* 74\.5 GiB of the machine's memory, of which 32\.0 GiB"):
        capacity(lm, card=128 * GIB, machine=32 * GIB).check(5, restarts=1_000, steps=10**6)


def test_rows_are_not_held_against_the_machine(lm: LanguageModel) -> None:
    room = capacity(lm, card=GIB, machine=128 * GIB)
    rows = room.rows(5)
    assert rows == int(0.7 * GIB // room.bytes_per_row(5))
    assert capacity(lm, card=2 * GIB, machine=1).rows(5) == int(1.4 * GIB // room.bytes_per_row(5)) > rows
    with pytest.raises(InputError, match=r"tokens needs .* GiB of the card's memory"):
        capacity(lm, card=1_000, machine=128 * GIB).check(5, restarts=1, steps=1)


def test_tables_live_in_the_machine(lm: LanguageModel) -> None:
    capacity(lm, card=1, machine=GIB).check_table(GIB // 2)
    with pytest.raises(InputError, match="GiB of the machine's memory"):
        capacity(lm, card=GIB, machine=1).check_table(GIB // 2)


def test_on_a_processor_both_are_the_machine(lm: LanguageModel) -> None:
    plain = Capacity(lm)
    assert plain.device.name == plain.machine.name == "the machine's memory"
    assert plain.device.free() > 0
