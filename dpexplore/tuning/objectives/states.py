"""Last states: what the unembedding is given at the last position. Comparing them spares the product with it."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dpexplore.models import LanguageModel
from dpexplore.wanted import NotWanted

AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Nats by which log q of any one token may differ when it is computed from the last state; rounding aside."""
COARSE_AGREEMENT = 0.1
TRIED = 3
"""Prompts of as many tokens that it is tried on."""

_readable: WeakKeyDictionary[LanguageModel, bool] = WeakKeyDictionary()


@torch.no_grad()
def last_states(lm: LanguageModel, embeds: Tensor) -> Tensor:
    """embeds `(rows pos hidden)` -> `(rows width)` float32, without the product that gives the logits."""
    embeds = embeds.to(lm.device, lm.dtype)
    return lm.model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, -1].float()


def reads_states(lm: LanguageModel) -> bool:
    """Whether a model's logits are the plain product of these states; it is asked once, by trying."""
    known = _readable.get(lm)
    if known is None:
        known = _readable[lm] = _product_agrees(lm)
    return known


@torch.no_grad()
def _product_agrees(lm: LanguageModel) -> bool:
    unembedding = lm.model.get_output_embeddings()
    if not isinstance(unembedding, nn.Linear):
        return False
    embeds = lm.embed(lm.ordinary_ids[torch.linspace(0, len(lm.ordinary_ids) - 1, TRIED**2).long()].view(TRIED, TRIED))
    try:
        log_q = unembedding(last_states(lm, embeds).to(lm.dtype)).float().log_softmax(-1)
    except NotWanted:
        raise
    except Exception:  # as many kinds as there are models that have no such states
        return False
    if log_q.shape[-1] != lm.vocab_size:
        return False
    return bool((log_q - lm.log_probs(embeds)).abs().max() < AGREEMENT.get(lm.dtype, COARSE_AGREEMENT))
