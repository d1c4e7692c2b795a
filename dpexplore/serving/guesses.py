"""What a room guessed before it saw the answer: one guess a page and question, counted without names."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence

MAX_GUESSES = 1000
"""Pages remembered for a question; the oldest guess makes room."""


class Guesses:
    """The latest guess of each page for each question, kept in memory until the server ends."""

    def __init__(self, most: int = MAX_GUESSES) -> None:
        self._most = most
        self._guesses: dict[str, OrderedDict[str, int]] = {}
        self._gate = threading.Lock()

    def note(self, question: str, page: str, option: int) -> None:
        """A page's guess; it replaces the one that the page made before."""
        with self._gate:
            guesses = self._guesses.setdefault(question, OrderedDict())
            guesses[page] = option
            guesses.move_to_end(page)
            if len(guesses) > self._most:
                guesses.popitem(last=False)

    def counts(self, question: str, options: Sequence[str]) -> list[int]:
        """How many pages guessed each option."""
        with self._gate:
            found = Counter(self._guesses.get(question, {}).values())
        return [found[place] for place in range(len(options))]
