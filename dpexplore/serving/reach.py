"""What a page and a program share about reach: words as a person types them, answers, and the unsayable ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from dpexplore.errors import InputError
from dpexplore.floor.reach import Reach, reach, words_of
from dpexplore.floor.whole_vocabulary import listing_file, reach_all
from dpexplore.models import LanguageModel

ANSWER_SECONDS = 5.0
"""For one word or order; nearly all take a tenth of a second."""
REPORT_EVERY = 512
"""Tokens between two reports of a listing: as many as are decided at once."""
MAX_TEXT = 1000


def answers(lm: LanguageModel, text: str) -> list[Reach]:
    """What somebody who typed `text` wants to know: a word, or words separated by commas.

    A word typed without the space that most words begin with is answered both ways, where both are tokens; one typed
    with a space that no token has is answered without it. InputError if neither is a token.
    """
    if len(text) > MAX_TEXT:
        raise InputError(f"The text has {len(text):,} characters; use at most {MAX_TEXT:,}.")
    words = [text] if text.strip() == "," else words_of(text)
    if len(words) > 1:
        return [reach(lm, words, seconds=ANSWER_SECONDS)]
    found: list[Reach] = []
    refusal: InputError | None = None
    spaced = words[0][:1].isspace()
    for word in [words[0], words[0].lstrip()] if spaced else [" " + words[0], words[0]]:
        try:
            found.append(reach(lm, word, seconds=ANSWER_SECONDS))
        except InputError as error:
            refusal = refusal or error
        else:
            if spaced:
                break
    if not found:
        assert refusal is not None
        raise refusal
    return found


@dataclass(frozen=True)
class Listing:
    """How far the listing of a whole vocabulary is."""

    decided: int
    total: int
    unsayable: list[dict[str, Any]]
    """Records of the tokens that can never come first, so far."""
    undecided: int

    @property
    def done(self) -> bool:
        return self.decided == self.total


def listing(lm: LanguageModel) -> Iterator[Listing]:
    """The model's unsayable tokens, kept on disk: reports while it works, then the whole. One at a time for a model."""
    unsayable: list[dict[str, Any]] = []
    undecided = 0
    with closing(reach_all(lm, listing_file(lm), seconds=ANSWER_SECONDS)) as records:
        for decided, record in enumerate(records, 1):
            if record["can"] is False:
                unsayable.append(record)
            undecided += record["can"] is None
            if decided % REPORT_EVERY == 0 and decided < lm.vocab_size:
                yield Listing(decided, lm.vocab_size, list(unsayable), undecided)
    yield Listing(lm.vocab_size, lm.vocab_size, unsayable, undecided)
