"""Directions and tokens: which tokens of the vocabulary point where a vector points."""

from __future__ import annotations

import torch
from torch import Tensor

from dpexplore.models import LanguageModel


def by_direction(lm: LanguageModel, vectors: Tensor) -> Tensor:
    """Products of vectors `(… hidden)` with every token's unit embedding, `(… vocab)` float32.

    Of unit vectors they are cosines; those of one vector rank tokens by cosine whatever its length.
    """
    table = lm.embedding_table
    norms = torch.linalg.vector_norm(table, dim=-1, dtype=torch.float32).clamp_min(1e-12)
    return (vectors.to(table.dtype) @ table.T).float() / norms
