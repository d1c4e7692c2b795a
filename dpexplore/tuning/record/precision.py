"""The same prompt in float32: what a model in low precision says of a KL is wrong by per cents near the optimum."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.models.registry import memory_present
from dpexplore.targets import Target
from dpexplore.tuning.objectives.sequences import objective_for

BYTES_FLOAT32 = 4
USABLE = 0.5  # share of the free memory that the second copy may take; other runs go on beside it


def kl_in_float32(lm: LanguageModel, target: Target, embeds: Tensor, ids: list[int] | None) -> float | None:
    """KL(p‖q) in nats of a prompt by a copy of the model in float32, which is dropped again.

    embeds `(pos hidden)`, and its ids if it has them. None where the model is in float32 already, or where the copy
    does not fit the memory.
    """
    if lm.dtype == torch.float32 or lm.parameter_count * BYTES_FLOAT32 > USABLE * memory_present(lm.device):
        return None
    exact = LanguageModel(lm.name, copy.deepcopy(lm.model).float(), lm.tokenizer, lm.identity)
    with torch.no_grad():
        prompt = embeds[None].to(lm.device) if ids is None else exact.embed(torch.tensor([ids]))
        objective = objective_for(exact, target)
        return float(objective.score(exact, prompt, [objective]).kl)
