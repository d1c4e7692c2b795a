"""Directions and tokens: which tokens of the vocabulary point where a vector points."""

from __future__ import annotations

from torch import Tensor

from dpexplore.models import LanguageModel


def by_direction(lm: LanguageModel, vectors: Tensor) -> Tensor:
    """Products of vectors `(… hidden)` with every token's unit embedding, `(… vocab)` float32.

    Of unit vectors they are cosines; those of one vector rank tokens by cosine whatever its length.
    """
    table = lm.embedding_table
    return (vectors.to(table.dtype) @ table.T).float() / lm.embedding_norms
