"""Targets over the tokens of one part of speech (Distribution Prompting, App. C)."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.targets.pos_table import tags_of
from dpexplore.targets.recipe import Provenance
from dpexplore.targets.vocabulary import vocabulary

if TYPE_CHECKING:
    from dpexplore.models.language_model import LanguageModel

Mode = Literal["strict", "paper"]
MODES: tuple[str, ...] = ("strict", "paper")
TAGS = (
    "NOUN", "PROPN", "VERB", "ADJ", "ADV", "PRON", "DET", "ADP", "AUX",
    "NUM", "CCONJ", "SCONJ", "PART", "INTJ", "SYM", "PUNCT", "X",
)  # fmt: skip
"""The universal part-of-speech tags."""

_ENGLISH_WORD = re.compile(rb" ([A-Za-z]+)")
_LETTERS = re.compile(rb"[A-Za-z]+")
NO_SPACE, NO_ONE_TAG = "no space in front", "no single tag"
"""Why tokens of letters count as no part of speech."""


def check_tag(tag: object) -> str:
    """The tag in upper case; InputError if it is none."""
    if isinstance(tag, str) and tag.upper() in TAGS:
        return tag.upper()
    raise InputError(f"`tag` is {tag!r}; use a universal part of speech: {', '.join(TAGS)}.")


def word_ids(lm: LanguageModel) -> dict[str, int]:
    """The vocabulary's English words, without the space that each begins with, and their ids."""
    matches = (
        (match, i)
        for i, key in enumerate(vocabulary(lm).keys)
        if isinstance(key, bytes) and (match := _ENGLISH_WORD.fullmatch(key))
    )
    return {match[1].decode(): i for match, i in matches}


def tokens_by_pos(lm: LanguageModel, mode: Mode = "strict") -> dict[str, list[int]]:
    """Sorted token ids of each part of speech that the vocabulary has, the most frequent part first.

    `paper`: every English word by the tag it gets alone. `strict`: the words whose tag is the same
    in three frames and the only one the lexicon allows; proper nouns are title-case and have no
    lower-case twin in the vocabulary.
    """
    return _tokens_by_pos(lm, mode)[0]


def pos_histogram(lm: LanguageModel, mode: Mode = "strict") -> dict[str, int]:
    """Tokens of each part of speech, most frequent first (Fig. 12)."""
    return {tag: len(ids) for tag, ids in tokens_by_pos(lm, mode).items()}


def pos_left_out(lm: LanguageModel, mode: Mode = "strict") -> dict[str, int]:
    """Tokens of letters alone that `tokens_by_pos` leaves out, by reason.

    Pieces without a space in front continue a word, so that what the tagger would say of them is no part of speech.
    """
    pieces = sum(isinstance(key, bytes) and bool(_LETTERS.fullmatch(key)) for key in vocabulary(lm).keys)
    untagged = len(word_ids(lm)) - sum(pos_histogram(lm, mode).values())
    return {NO_SPACE: pieces, NO_ONE_TAG: untagged}


def _tokens_by_pos(lm: LanguageModel, mode: Mode) -> tuple[dict[str, list[int]], str]:
    words = word_ids(lm)
    tags, key = tags_of(words)
    found: dict[str, list[int]] = defaultdict(list)
    for word, i in words.items():
        tag = tags[word].paper if mode == "paper" else tags[word].strict
        if mode == "strict" and tag == "PROPN" and word.lower() in words:
            continue
        if tag:
            found[tag].append(i)
    ranked = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return {tag: sorted(ids) for tag, ids in ranked}, key


def pos_target(lm: LanguageModel, tag: str, n: int, seed: int, mode: Mode) -> tuple[Tensor, Provenance]:
    """Uniform `(vocab,)` over `n` tokens of a part of speech, drawn without replacement by their own generator."""
    by_pos, key = _tokens_by_pos(lm, mode)
    candidates = torch.tensor(by_pos.get(tag, []), dtype=torch.long)
    if n > len(candidates):
        raise InputError(
            f"The vocabulary of {lm.name} has {len(candidates):,} tokens tagged {tag} in the {mode} mode; "
            f"{n:,} were asked for."
        )
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    probs = torch.zeros(lm.vocab_size, dtype=torch.float64)
    probs[candidates[order[:n]]] = 1 / n
    provenance: Provenance = {"kind": "pos", "tag": tag, "mode": mode, "tagger": key, "candidates": len(candidates)}
    return probs, provenance
