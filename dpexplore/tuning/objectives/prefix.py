"""Prompts that begin alike: what they begin with is computed once, and its keys and values serve all of them."""

from __future__ import annotations

import inspect
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache

from dpexplore.models import LanguageModel
from dpexplore.wanted import NotWanted

PAYS_FROM = 8
"""Positions in common from which a pass is cheaper with a cache than without (`tests/benchmarks/tuners.py cache`),"""
PAYS_FOR = 16
"""with this many prompts or more for each beginning."""
AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Nats by which log q of any one token may differ with and without a cache; the trial of a model, rounding aside."""
COARSE_AGREEMENT = 0.1
TRIED = 12
"""Positions of the prompts at which it is tried."""

_sharing: WeakKeyDictionary[LanguageModel, bool] = WeakKeyDictionary()


class Prefix(NamedTuple):
    """What the prompts of a pass have in common."""

    owners: Tensor
    """`(rows,)` ascending: prompts of one owner begin alike."""
    length: int
    """Number of positions."""

    @property
    def pays(self) -> bool:
        """Whether a cache saves more than it costs."""
        return self.length >= PAYS_FROM and len(self.owners) >= PAYS_FOR * len(self.owners.unique())


def next_log_probs(lm: LanguageModel, embeds: Tensor, prefix: Prefix | None = None) -> Tensor:
    """log q at the last position, `(rows pos hidden)` -> `(rows vocab)` float32, the common prefix computed once.

    Where it does not pay, the model cannot do it, or a gradient is wanted, each prompt is computed as a whole.
    """
    if prefix is None or torch.is_grad_enabled() or not prefix.pays or not can_share(lm):
        return lm.log_probs(embeds)
    return shared_log_probs(lm, embeds, prefix)


def shared_log_probs(lm: LanguageModel, embeds: Tensor, prefix: Prefix) -> Tensor:
    """`next_log_probs` by two passes: over each owner's prefix, and over what stands behind it in each prompt."""
    embeds = embeds.to(lm.device, lm.dtype)
    _, index, counts = prefix.owners.unique_consecutive(return_inverse=True, return_counts=True)
    firsts = counts.cumsum(0) - counts
    cache = DynamicCache(config=lm.model.config)
    # transformers calls it `cache` from 5.24 on.
    name = "cache" if "cache" in inspect.signature(lm.model.forward).parameters else "past_key_values"
    settings = {name: cache, "use_cache": True, **lm.keep_logits(1)}
    lm.model(inputs_embeds=embeds[firsts, : prefix.length], **settings)
    cache.batch_select_indices(index)
    output = lm.model(inputs_embeds=embeds[:, prefix.length :], **settings)
    return output.logits[:, -1].float().log_softmax(-1)


def can_share(lm: LanguageModel) -> bool:
    """Whether a model says the same with a cache as without; it is asked once, by trying."""
    known = _sharing.get(lm)
    if known is None:
        known = _sharing[lm] = _sharing_agrees(lm)
    return known


@torch.no_grad()
def _sharing_agrees(lm: LanguageModel) -> bool:
    """Three prompts of two owners, half of each in common."""
    ids = lm.ordinary_ids[torch.linspace(0, len(lm.ordinary_ids) - 1, 3 * TRIED).long()].view(3, TRIED).clone()
    ids[1, : TRIED // 2] = ids[0, : TRIED // 2]
    embeds = lm.embed(ids)
    try:
        shared = shared_log_probs(lm, embeds, Prefix(torch.tensor([0, 0, 1], device=lm.device), TRIED // 2))
    except NotWanted:
        raise
    except Exception:  # as many kinds as there are models that keep no such cache
        return False
    return bool((shared - lm.log_probs(embeds)).abs().max() < AGREEMENT.get(lm.dtype, COARSE_AGREEMENT))
