"""A model that no card holds, laid over several: the map, from given numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig

from dpexplore.models import LanguageModel
from dpexplore.models.language_model import is_spread
from dpexplore.models.placement import device_map, needs_all_cards
from dpexplore.models.registry import memory_needed
from dpexplore.models.sizes import count_parameters

MIB = 2**20


@pytest.fixture(scope="module")
def config() -> LlamaConfig:
    """Eight layers of about 3 MiB in bfloat16."""
    return LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=4
    )


def test_layers_go_to_the_cards_in_order(config: LlamaConfig) -> None:
    found = device_map(config, torch.bfloat16, {0: 10 * MIB, 1: 10 * MIB, 2: 10 * MIB})
    assert found is not None
    layers = [found[f"model.layers.{i}"] for i in range(8)]
    assert layers == sorted(layers)
    assert set(layers) == {0, 1, 2}
    assert found["model.embed_tokens"] == 0
    assert found["lm_head"] == 2


def test_the_emptier_card_gets_more(config: LlamaConfig) -> None:
    found = device_map(config, torch.bfloat16, {0: 8 * MIB, 1: 40 * MIB})
    assert found is not None
    layers = [found[f"model.layers.{i}"] for i in range(8)]
    assert layers.count(1) > layers.count(0) > 0


def test_what_the_cards_do_not_hold(config: LlamaConfig) -> None:
    assert device_map(config, torch.bfloat16, {0: 8 * MIB, 1: 8 * MIB}) is None


def test_several_cards_are_taken_only_where_one_is_too_small(config: LlamaConfig) -> None:
    parameters = count_parameters(config, "it")
    needed = memory_needed(parameters, torch.bfloat16)
    assert not needs_all_cards(parameters, torch.bfloat16, {})
    assert not needs_all_cards(parameters, torch.bfloat16, {0: needed - 1})
    assert not needs_all_cards(parameters, torch.bfloat16, {0: needed, 1: needed})
    assert needs_all_cards(parameters, torch.bfloat16, {0: needed - 1, 1: needed - 1})
    assert not needs_all_cards(parameters, torch.bfloat16, {0: needed // 3, 1: needed // 3})


def test_a_model_on_one_device_is_not_spread(tiny_lm: Callable[[str], LanguageModel]) -> None:
    model = tiny_lm("llama").model
    assert not is_spread(model)
