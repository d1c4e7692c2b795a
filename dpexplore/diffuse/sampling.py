"""Answers drawn from a model: temperature 1, nothing truncated, by a generator of its own."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.targets import StringTarget

EXTRA_TOKENS = 8
"""An answer that is so much longer than every outcome is cut: it is none of them."""
MOST_AT_ONCE = 128


def sample_answers(
    lm: LanguageModel, target: StringTarget, count: int, seed: int = 0, prompt: Tensor | None = None
) -> list[str]:
    """`count` answers to a target's request, or to a prompt `(pos hidden)` in its place.

    The prefixes of the response take turns and are no part of the answers, and neither is the end.
    """
    rng = torch.Generator().manual_seed(seed)
    prefixes = [target.tree.sequence(prefix, 0)[0] for prefix in range(target.tree.paths.shape[0])]
    ends = _Ends(target)
    answers: list[str] = [""] * count
    with torch.no_grad():
        start = lm.embed(torch.tensor([target.request_ids])) if prompt is None else prompt[None].to(lm.device)
        for turn, prefix in enumerate(prefixes):
            places = list(range(turn, count, len(prefixes)))
            given = torch.cat([start.to(lm.dtype), lm.embed(torch.tensor([prefix]))], 1) if prefix else start
            for first in range(0, len(places), MOST_AT_ONCE):
                part = places[first : first + MOST_AT_ONCE]
                for place, ids in zip(part, _draw(lm, given.to(lm.dtype), len(part), ends, rng), strict=True):
                    answers[place] = lm.decode(ends.cut(ids)) if ends.cut(ids) else ""
    return answers


class _Ends:
    """When an answer is over."""

    def __init__(self, target: StringTarget) -> None:
        tree = target.tree
        self.tokens = target.end_ids
        self.outcomes = set() if target.end_ids else {tuple(tree.sequence(0, i)[1]) for i in range(tree.paths.shape[1])}
        self.longest = tree.longest + EXTRA_TOKENS

    def reached(self, ids: list[int]) -> bool:
        return ids[-1] in self.tokens or tuple(ids) in self.outcomes or len(ids) >= self.longest

    def cut(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] in self.tokens else ids


def _draw(lm: LanguageModel, prompt: Tensor, rows: int, ends: _Ends, rng: torch.Generator) -> list[list[int]]:
    """Ids of `rows` answers to one prompt `(1 pos hidden)`; the prompt is computed once and its cache shared out."""
    output = lm.model(inputs_embeds=prompt, use_cache=True, **lm.keep_logits(1))
    # Newer releases of transformers name the cache `cache` and warn of the name that older ones know.
    named = "cache" if "cache" in signature(lm.model.forward).parameters else "past_key_values"
    cache: Any = getattr(output, named, None)
    drawn: list[list[int]] = [[] for _ in range(rows)]
    active = list(range(rows))
    logits = output.logits[:, -1].expand(rows, -1)
    if hasattr(cache, "batch_repeat_interleave"):
        cache.batch_repeat_interleave(rows)
    else:
        cache = None
    while True:
        picks = torch.multinomial(logits.float().softmax(-1).cpu(), 1, generator=rng)[:, 0].tolist()
        for row, token in zip(active, picks, strict=True):
            drawn[row].append(token)
        going = [place for place, row in enumerate(active) if not ends.reached(drawn[row])]
        active = [active[place] for place in going]
        if not active:
            return drawn
        if cache is None:  # a model without a cache that can be shared out reads everything again
            ids = torch.tensor([drawn[row] for row in active])
            embeds = torch.cat([prompt.expand(len(active), -1, -1), lm.embed(ids).to(prompt.dtype)], 1)
            logits = lm.model(inputs_embeds=embeds, use_cache=False, **lm.keep_logits(1)).logits[:, -1]
            continue
        if len(going) < len(picks):
            cache.batch_select_indices(torch.tensor(going, device=lm.device))
        words = lm.embed(torch.tensor([[drawn[row][-1]] for row in active]))
        logits = lm.model(inputs_embeds=words, use_cache=True, **{named: cache}).logits[:, -1]
