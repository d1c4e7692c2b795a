"""Where the layers of a model go that is too large for one card: over all cards of the machine."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import infer_auto_device_map
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.initialization import no_init_weights

from dpexplore.models.registry import memory_needed, memory_present

WEIGHTS_SHARE = 0.8
"""Of each card's free memory; the rest is for the rows that pass through its layers."""


def device_map(config: PretrainedConfig, dtype: torch.dtype, cards: Mapping[int, int]) -> dict[str, int] | None:
    """Module name -> card, layer after layer, no layer on two cards; None if the cards do not hold the model.

    `cards` are the free bytes of each card.
    """
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, trust_remote_code=False)
        model.tie_weights()
    budgets = {card: int(WEIGHTS_SHARE * free) for card, free in cards.items()}
    # A place that holds nothing: what does not fit is put there, and seen.
    found: dict[str, Any] = infer_auto_device_map(
        model, max_memory={**budgets, "cpu": 0}, no_split_module_classes=model._no_split_modules, dtype=dtype
    )
    return None if set(found.values()) - set(cards) else found


def free_cards() -> dict[int, int]:
    """Free bytes of each card of this machine."""
    return {card: memory_present(torch.device("cuda", card)) for card in range(torch.cuda.device_count())}


def needs_all_cards(parameters: int, dtype: torch.dtype, cards: Mapping[int, int]) -> bool:
    """Whether several cards hold together what none of them holds alone."""
    needed = memory_needed(parameters, dtype)
    return len(cards) > 1 and max(cards.values()) < needed <= sum(cards.values())
