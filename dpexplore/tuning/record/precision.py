"""Final scores in float32: what a model in low precision says of a KL is wrong by per cents near the optimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.models.precision import dtype_name
from dpexplore.models.upcast import in_float32
from dpexplore.tuning.engine.capacity import is_out_of_memory
from dpexplore.tuning.init.layout import NO_TOKEN, Start
from dpexplore.tuning.objectives.next_token import Objective, Scores

TOGETHER = 32
"""Prompts scored in one pass."""


@dataclass(frozen=True, eq=False)
class FinalScores:
    """What prompts come to, on the CPU, and in which precision that was computed."""

    loss: Tensor
    """`(prompts,)` float32."""
    kl: Tensor
    """`(prompts,)` float32, nats."""
    log_q: Tensor
    """`(prompts vocab)` float32."""
    scored_in: str
    """float32, or the model's own dtype where the memory does not hold one layer of it in float32."""


def final_scores(lm: LanguageModel, objectives: Sequence[Objective], prompts: Sequence[Start]) -> FinalScores:
    """Score prompts of one length in float32, whatever the model runs in, and without any cache.

    The objectives, one a prompt, are of one class and group. A prompt is its ids `(pos,)`, `NO_TOKEN` at soft tokens,
    and its embeddings `(pos hidden)`. A model in low precision is computed layer by layer (`models.upcast`), with the
    weights that it has: so no KL lies below its certified floor.
    """
    ids = torch.stack([ids for ids, _ in prompts])
    embeds = torch.stack([embeds for _, embeds in prompts])
    try:
        with in_float32(lm) as exact:
            return _in_parts(exact, objectives, ids, embeds)
    except RuntimeError as error:
        if lm.dtype == torch.float32 or not is_out_of_memory(error):
            raise
    return _in_parts(lm, objectives, ids, embeds)


def final_scores_of_ids(lm: LanguageModel, objective: Objective, ids: list[int]) -> FinalScores:
    """The same for one prompt of tokens alone."""
    return final_scores(lm, [objective], [(torch.tensor(ids), torch.zeros(len(ids), lm.hidden_size))])


def _in_parts(lm: LanguageModel, objectives: Sequence[Objective], ids: Tensor, embeds: Tensor) -> FinalScores:
    parts = [slice(start, start + TOGETHER) for start in range(0, len(ids), TOGETHER)]
    found = [_one_pass(lm, objectives[part], ids[part], embeds[part]) for part in parts]
    return FinalScores(
        torch.cat([scores.loss.cpu() for scores in found]),
        torch.cat([scores.kl.cpu() for scores in found]),
        torch.cat([scores.log_q.cpu() for scores in found]),
        dtype_name(lm.dtype),
    )


@torch.no_grad()
def _one_pass(lm: LanguageModel, objectives: Sequence[Objective], ids: Tensor, embeds: Tensor) -> Scores:
    ids, embeds = ids.to(lm.device), embeds.to(lm.device, torch.float32)
    words = lm.embed(ids.clamp_min(0)).float()
    prompts = torch.where((ids == NO_TOKEN)[..., None], embeds, words)
    return objectives[0].score(lm, prompts, objectives)
