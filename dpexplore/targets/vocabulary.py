"""What a model's token ids stand for, looked up by content: one token by its text, search, migration's keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from dpexplore.errors import InputError

if TYPE_CHECKING:
    from dpexplore.models.language_model import LanguageModel

MOST_CHARACTERS = 1000
"""A longer text is not split into its tokens to say that it is none."""
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")

Key = bytes | str
"""What a token stands for: its bytes, or the name of a special token."""


@dataclass(frozen=True)
class FoundToken:
    """A token of the vocabulary."""

    token_id: int
    token: str
    """As a person reads it (`LanguageModel.token_text`)."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A model's tokens by id and by content. One is kept for each living model (`vocabulary`)."""

    names: dict[int, str]
    """Id -> the token as the tokenizer stores it; padded rows are absent."""
    keys: list[Key | None]
    """By id; None for padded rows, `(vocab,)` long."""
    texts: list[str]
    """By id, as a person reads them."""

    @cached_property
    def ids(self) -> dict[Key, int]:
        """Content -> id; of several tokens with it, a whole piece goes before a byte-fallback one, then the first."""
        ids: dict[Key, int] = {}
        for i, key in enumerate(self.keys):
            if key is not None and (key not in ids or _BYTE_PIECE.fullmatch(self.names[ids[key]])):
                ids[key] = i
        return ids

    @cached_property
    def folded(self) -> list[str]:
        """`texts` for search without regard to case; empty for padded rows, which nobody looks for."""
        return [text.casefold() if key is not None else "" for text, key in zip(self.texts, self.keys, strict=True)]


_known: WeakKeyDictionary[LanguageModel, Vocabulary] = WeakKeyDictionary()


def vocabulary(lm: LanguageModel) -> Vocabulary:
    """The model's vocabulary, read on the first call (0.1 s for 50,000 tokens)."""
    found = _known.get(lm)
    if found is None:
        names = {i: name for name, i in lm.tokenizer.get_vocab().items()}
        ids = range(lm.vocab_size)
        found = _known[lm] = Vocabulary(
            names, [lm.token_bytes(i) or names.get(i) for i in ids], [lm.token_text(i) for i in ids]
        )
    return found


def token_name(lm: LanguageModel, token: int) -> str | int:
    """A token as a recipe names it: by its text where that names it alone, by its id elsewhere."""
    text = lm.token_text(token)
    try:
        return text if token_id(lm, text) == token else token
    except InputError:
        return token


def token_id(lm: LanguageModel, token: str | int) -> int:
    """The id of a token given by its text (or given as an id).

    InputError if the text is not one token of the vocabulary, saying how the tokenizer splits it,
    or if there is no such id.
    """
    if isinstance(token, int):
        if not 0 <= token < lm.vocab_size:
            raise InputError(f"There is no token id {token}; {lm.name} has the ids 0 to {lm.vocab_size - 1}.")
        return token
    ids = vocabulary(lm).ids
    found = ids.get(token.encode(), ids.get(token))
    if found is not None:
        return found
    if not token:
        raise InputError("A token's text is empty; every token has at least one character.")
    if len(token) > MOST_CHARACTERS:
        raise InputError(f"A token's text has {len(token):,} characters; no token of {lm.name} is as long.")
    pieces = [lm.token_text(i) for i in lm.encode(token, bos=False)]
    split = " + ".join(repr(piece) for piece in pieces[:8]) + (" + …" if len(pieces) > 8 else "")
    spaced = " " + token
    stored = lm.tokenizer.get_vocab().get(token)
    hint = f"; {spaced!r}, with a space, is one" if spaced.encode() in ids else ""
    if stored is not None and stored < lm.vocab_size:  # Ġthe, ▁the, <0x0A>: the tokenizer's own spelling
        hint = f"; the tokenizer's own name for {lm.token_text(stored)!r} (id {stored}) is not text; write that"
    raise InputError(f"{token[:80]!r} is not one token of {lm.name}: it splits into {split}{hint}.")


def search_tokens(lm: LanguageModel, query: str, limit: int = 50) -> list[FoundToken]:
    """Tokens that match `query`: the same text first, then those that begin with it, then those that hold it.

    Case and the space in front of a word do not count, but the closer match comes first; within each
    kind shorter tokens come before longer ones. A number also finds the token of that id.
    """
    if not query or limit < 1:
        return []
    known, wanted = vocabulary(lm), query.casefold()
    bare = wanted.strip() or wanted
    ranked = [
        (_rank(text, folded, query, wanted, bare), len(text), i)
        for i, (text, folded) in enumerate(zip(known.texts, known.folded, strict=True))
        if bare in folded
    ]
    found = [i for _, _, i in sorted(ranked)[:limit]]
    if query.isdecimal() and len(query) <= 9 and int(query) < lm.vocab_size and int(query) not in found[:1]:
        found = [*found[:1], int(query), *(i for i in found[1:] if i != int(query))][:limit]
    return [FoundToken(i, known.texts[i]) for i in found]


def _rank(text: str, folded: str, query: str, wanted: str, bare: str) -> int:
    if text == query:
        return 0
    if folded == wanted:
        return 1
    stripped = folded.strip()
    if stripped == bare:
        return 2
    return 3 if folded.startswith(wanted) else 4 if stripped.startswith(bare) else 5
