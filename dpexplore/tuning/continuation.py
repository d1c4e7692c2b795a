"""What a model goes on to say after a prompt: sampled from its own probabilities, nothing truncated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel


def continue_prompt(
    lm: LanguageModel, prompt_embeds: Tensor, tokens: int, samples: int = 1, seed: int = 0
) -> list[list[int]]:
    """Ids of `samples` continuations of `prompt_embeds` `(pos hidden)`, each of `tokens` tokens or up to its end token.

    The first token of each is a draw from q, the distribution that was tuned. The same seed gives the same ones.
    InputError for fewer than one token, or more than the model has positions for.
    """
    length = len(prompt_embeds)
    if tokens < 1 or (lm.max_positions is not None and length + tokens > lm.max_positions):
        most = "" if lm.max_positions is None else f" to {lm.max_positions - length:,}"
        raise InputError(f"A continuation of {tokens} tokens was asked for; ask for 1{most} after this prompt.")
    rng = torch.Generator().manual_seed(seed)
    end: Any = lm.tokenizer.eos_token_id
    embeds = prompt_embeds.to(lm.device, lm.dtype).expand(samples, -1, -1)
    drawn = torch.empty(samples, 0, dtype=torch.long)
    with torch.no_grad():
        for _ in range(tokens):
            picks = torch.multinomial(lm.log_probs(embeds).exp().cpu(), 1, generator=rng)
            drawn = torch.cat([drawn, picks], dim=1)
            # Padded rows of some vocabularies can be drawn but not read; they end what they stand in.
            readable = picks.clamp(max=lm.embedding_table.shape[0] - 1)
            embeds = torch.cat([embeds, lm.embed(readable).to(lm.dtype)], dim=1)
    return [_until(row, end) for row in drawn.tolist()]


def _until(ids: list[int], end: int | None) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
