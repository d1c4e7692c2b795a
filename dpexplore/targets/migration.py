"""Moving a distribution from one model's vocabulary to another's by the tokens they share (§5.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.targets.recipe import Provenance
from dpexplore.targets.vocabulary import vocabulary

if TYPE_CHECKING:
    from dpexplore.models.language_model import LanguageModel

LOW_MASS = 0.5
"""Below this share of kept mass a migrated target says little about its source."""


@dataclass(frozen=True, eq=False)
class VocabularyMap:
    """Which token of the tuning model each token of the source model becomes."""

    target_ids: Tensor
    """`(source vocab,)` int64; −1 where the tuning model has no such token."""
    tokens_shared: int
    """Source tokens that have a counterpart."""
    tokens_source: int
    """Source tokens that stand for something (no padded rows)."""
    same: bool
    """Both vocabularies agree id by id."""


def map_vocabulary(source: LanguageModel, lm: LanguageModel) -> VocabularyMap:
    """Match tokens by the bytes they stand for, special tokens by name; `Ġthe`, `▁the` and ` the` meet."""
    theirs, ours = vocabulary(source), vocabulary(lm)
    present = sum(key is not None for key in theirs.keys)
    if theirs.keys == ours.keys:
        return VocabularyMap(torch.arange(len(ours.keys)), present, present, True)
    target_ids = torch.tensor([-1 if key is None else ours.ids.get(key, -1) for key in theirs.keys])
    return VocabularyMap(target_ids, int((target_ids >= 0).sum()), present, False)


def migrate(
    probs: Tensor, provenance: Provenance, source: LanguageModel, lm: LanguageModel
) -> tuple[Tensor, Provenance]:
    """The source's distribution `(source vocab,)` on the tuning model's vocabulary `(vocab,)`, renormalised.

    Source tokens with the same bytes are summed. Where the vocabularies agree nothing changes, and
    the provenance says nothing; otherwise it tells the share of mass and of tokens kept, with a
    warning under 50 % of the mass. InputError when no mass is shared.
    """
    if source is lm:
        return probs, provenance
    mapped = map_vocabulary(source, lm)
    if mapped.same:
        return probs, provenance
    kept = mapped.target_ids >= 0
    moved = torch.zeros(lm.vocab_size, dtype=torch.float64)
    moved.index_add_(0, mapped.target_ids[kept], probs[kept])
    mass = float(moved.sum())
    if mass <= 0:
        raise InputError(f"No token that {source.name} gives mass to exists in the vocabulary of {lm.name}.")
    migration: Provenance = {
        "to": lm.name,
        "mass_kept": mass,
        "tokens_kept": mapped.tokens_shared / mapped.tokens_source,
        "tokens_shared": mapped.tokens_shared,
        "tokens_source": mapped.tokens_source,
    }
    facts: Provenance = {**provenance, "migration": migration}
    if mass < LOW_MASS:
        warning = (
            f"Only {mass:.0%} of the probability of {source.name} lies on tokens that {lm.name} has too: "
            "the target says little about its source."
        )
        facts["warnings"] = [*provenance.get("warnings", []), warning]
    return moved / mass, facts
