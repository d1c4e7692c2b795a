"""Three words as the page shows them: how they are chosen and typed, and their triangle as JSON-ready numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.floor.prepared import floor_solver
from dpexplore.floor.reach import words_of
from dpexplore.floor.three_words import ThreeWords, closest_two, three_words
from dpexplore.models import LanguageModel
from dpexplore.targets import Target, token_id, token_name, tokens

MAX_TEXT = 300
DIGITS = 5


def chosen_words(lm: LanguageModel, target: Target, text: str) -> list[int]:
    """Ids of the three words that somebody typed, separated by commas; of the target's likeliest where nothing was.

    A word without the space that most words begin with is read with it where that is a token. InputError for anything
    but three different tokens.
    """
    if not text.strip():
        return target.probs.topk(3).indices.tolist()
    if len(text) > MAX_TEXT:
        raise InputError(f"The text has {len(text):,} characters; use at most {MAX_TEXT:,}.")
    words = words_of(text)
    if len(words) != 3:
        raise InputError(f"There are {len(words)} words; give three, separated by commas.")
    return [_id_of(lm, word) for word in words]


def _id_of(lm: LanguageModel, word: str) -> int:
    if not word[:1].isspace():
        try:
            return token_id(lm, " " + word)
        except InputError:
            pass
    try:
        return token_id(lm, word)
    except InputError:
        return token_id(lm, word.lstrip())


def inseparable_words(lm: LanguageModel, target: Target) -> list[int]:
    """Two tokens that the head can hardly tell apart, and the target's likeliest other one. NoHead without a head."""
    first, second = closest_two(floor_solver(lm).products)
    third = next(i for i in target.probs.topk(3).indices.tolist() if i not in (first, second))
    return [first, second, third]


def words_recipe(lm: LanguageModel, ids: Sequence[int], shares: Sequence[float]) -> str:
    """The target of three words alone, as a recipe. InputError for ids or shares that make none."""
    if len(ids) != 3 or len(shares) != 3:
        raise InputError("The point has three words and three shares.")
    for i in ids:
        token_id(lm, i)
    return str(tokens({token_name(lm, i): share for i, share in zip(ids, shares, strict=True)}))


def triangle(
    lm: LanguageModel, target: Target, ids: list[int], closest: Tensor | None, achieved: Sequence[float] | None
) -> dict[str, Any]:
    """The picture: shares of the three words within each distribution.

    closest: log q of the floor's optimum `(vocab,)`. achieved: a run's probabilities of the three. InputError as from
    `three_words`; NoHead, which is one too, without a head.
    """
    found = three_words(floor_solver(lm), ids)
    share = target.probs[ids].double()
    mass = float(share.sum())
    within = (share / mass).tolist() if mass > 0 else [1 / 3] * 3
    return {
        "ids": ids,
        "words": [lm.token_text(i) for i in ids],
        "outline": [_short(row) for row in found.outline.tolist()],
        "target": within,
        "mass": mass,
        "closest": None if closest is None else _short(closest[ids].double().softmax(0).tolist()),
        "achieved": None if achieved is None or not sum(achieved) else _short([q / sum(achieved) for q in achieved]),
        "can": mass > 0 and min(within) > 0 and found.can_say(within),
        "narrowest": narrowest(found),
    }


def _short(values: Sequence[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]


def narrowest(found: ThreeWords) -> dict[str, Any]:
    """The pair hardest to tell apart: their places, and the largest odds either way as a power of ten."""
    pairs = [(0, 1), (0, 2), (1, 2)]
    odds = [max(found.most_log_odds(i, j), found.most_log_odds(j, i)) / math.log(10) for i, j in pairs]
    least = min(range(3), key=odds.__getitem__)
    return {"pair": list(pairs[least]), "log10_odds": odds[least]}
