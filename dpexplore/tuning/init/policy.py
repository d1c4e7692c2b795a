"""Which tokens a hard slot may hold, and which prompts survive being read as text and encoded again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import token_id
from dpexplore.tuning.knobs import TokenPolicy


def allowed_ids(
    lm: LanguageModel,
    policy: TokenPolicy = "no_special",
    allow: Sequence[str | int] = (),
    forbid: Sequence[str | int] = (),
) -> Tensor:
    """Sorted ids `(n,)` that hard slots may hold.

    any: every token of the tokenizer; no_special: those that stand for text; printable: text without control
    characters or broken bytes; ascii: printable ASCII; words: letters, with or without a space in front.
    `allow`, where it is not empty, takes the policy's place; `forbid` is taken away from either.
    InputError if an entry is not a single token of the vocabulary, or if nothing is left.
    """
    ids = {_token_id(lm, entry) for entry in allow} if allow else _ids_of_policy(lm, policy)
    ids -= {_token_id(lm, entry) for entry in forbid}
    if not ids:
        raise InputError(
            f"The token policy {policy!r} with {len(allow)} allowed and {len(forbid)} forbidden tokens leaves no token "
            "for the hard slots; use a policy that keeps at least one."
        )
    return torch.tensor(sorted(ids), dtype=torch.long)


def survives(lm: LanguageModel, prompts: Sequence[list[int]], bos: int) -> list[bool]:
    """Whether each prompt's text, encoded again, gives the same ids; the first `bos` ids are no part of the text."""
    bodies = [ids[bos:] for ids in prompts]
    texts = lm.tokenizer.batch_decode(bodies, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    again = lm.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [encoded == body for encoded, body in zip(again, bodies, strict=True)]


def _ids_of_policy(lm: LanguageModel, policy: TokenPolicy) -> set[int]:
    if policy == "any":
        limit = min(lm.vocab_size, lm.embedding_table.shape[0])
        return {i for i in lm.tokenizer.get_vocab().values() if i < limit}
    ordinary = lm.ordinary_ids.tolist()
    if policy == "no_special":
        return set(ordinary)
    return {i for i in ordinary if _fits(lm.token_bytes(i) or b"", policy)}


def _fits(data: bytes, policy: TokenPolicy) -> bool:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    if policy == "words":
        return text.removeprefix(" ").isalpha()
    return text.isprintable() and (policy == "printable" or text.isascii())


def _token_id(lm: LanguageModel, entry: str | int) -> int:
    """The id of a listed token, by its text as in `tokens({…})`; InputError if it can stand in no prompt."""
    found = token_id(lm, entry)
    limit = lm.embedding_table.shape[0]
    if found >= limit:
        raise InputError(f"Token {found} of the token list has no embedding; ids from 0 to {limit - 1:,} do.")
    return found
