"""The paper's Eq. 4."""

from __future__ import annotations

import torch
from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.tuning.engine.passes import Evaluation
from dpexplore.tuning.init.policy import survives
from dpexplore.tuning.rules.hard import HardRow, HardRows, Turn

SURVIVORS_AMONG = 256
"""Tokens among which Eq. 4 with a round trip looks for one that survives."""


class Eq4:
    """x = argmin over allowed tokens of [W(x) − θ]ᵀ∇ at one position a step, left to right, unchecked as in the paper.

    θᵀ∇ is the same for every x and drops out of the argmin.
    """

    def turn(self, stack: HardRows, present: Tensor, found: Evaluation, rows: Tensor) -> Turn:
        assert found.grad is not None
        now = stack.prompts.turns() & stack.prompts.hard
        rows = rows & now.any(1)
        position = now.long().argmax(1)
        which = torch.arange(len(rows), device=now.device)
        table = stack.lm.embedding_table
        scores = (found.grad[which, position].to(table.dtype) @ table.T).float()
        scores = scores.masked_fill(torch.stack([row.run.layout.barred for row in stack.rows]), torch.inf)
        token = scores.argmin(1)
        for i, row in enumerate(stack.rows):
            if row.run.config.round_trip and rows[i]:
                token[i] = _first_survivor(stack.lm, row, stack.prompts.ids[i].tolist(), int(position[i]), scores[i])
        which, position, token = which[rows], position[rows], token[rows]
        stack.prompts.ids = stack.prompts.ids.index_put((which, position), token)
        stack.prompts.embeds = stack.prompts.embeds.index_put((which, position), table[token].float())
        yield from ()


def _first_survivor(lm: LanguageModel, row: HardRow, ids: list[int], place: int, scores: Tensor) -> int:
    """The token of lowest score at a place with which the prompt survives decoding and encoding; else it stays."""
    tokens = scores.topk(min(SURVIVORS_AMONG, int(torch.isfinite(scores).sum())), largest=False).indices.tolist()
    prompts = [[*ids[:place], token, *ids[place + 1 :]] for token in tokens]
    lasts_each = survives(lm, prompts, len(row.run.layout.bos_ids))
    return next((token for token, lasts in zip(tokens, lasts_each, strict=True) if lasts), ids[place])
