"""Pieces of a prompt as ids, each as it stands in the whole text. The one way to encode what is not a whole prompt."""

from __future__ import annotations

from dpexplore.models.language_model import LanguageModel

_ANCHORS = ("\n", "a", ".", "1", "|")
"""Stand for unknown tokens in front of a piece; the first that does not melt into it is taken."""


def encode_behind(lm: LanguageModel, before: str | None, text: str) -> list[int]:
    """The ids of `text` as they stand behind `before`: "" for a prompt's beginning, None for tokens nobody knows yet.

    Written together with what is in front, so that SentencePiece puts no space of its own there. Where the two melt
    into one token, an anchor takes the place of what is in front. InputError as for `LanguageModel.text_ids`.
    """
    if not text:
        return []
    if before == "":
        return lm.text_ids(text)
    for front in ([before] if before else []) + list(_ANCHORS):
        first, whole = lm.text_ids(front), lm.text_ids(front + text)
        if whole[: len(first)] == first and len(whole) > len(first):
            return whole[len(first) :]
    return lm.text_ids(text)
