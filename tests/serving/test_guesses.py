"""What a room guessed is counted once a page, and bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dpexplore.serving.guesses import Guesses

OPTIONS = ("a", "b", "c")


@given(st.lists(st.tuples(st.sampled_from("pqrstu"), st.integers(0, 2))))
def test_the_latest_guess_of_each_page_counts(made: list[tuple[str, int]]) -> None:
    guesses = Guesses()
    for page, option in made:
        guesses.note("question", page, option)
    latest = [*dict(made).values()]
    assert guesses.counts("question", OPTIONS) == [latest.count(place) for place in range(3)]
    assert guesses.counts("another question", OPTIONS) == [0, 0, 0]


def test_the_oldest_guess_makes_room() -> None:
    guesses = Guesses(most=2)
    for page, option in (("first", 0), ("second", 1), ("first", 2), ("third", 1)):
        guesses.note("question", page, option)
    assert guesses.counts("question", OPTIONS) == [0, 1, 1]
