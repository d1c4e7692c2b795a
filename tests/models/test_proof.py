"""What a model proves to be when it is loaded, and what still works where it proves to be less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dpexplore.errors import InputError
from dpexplore.floor.of_model import softmax_floor
from dpexplore.models import LanguageModel, load_model
from dpexplore.models.proof import prove
from dpexplore.targets import capture, strings
from dpexplore.tuning import TuneConfig, tune
from tests.tiny_models import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()


def built(model_type: str, **sizes: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        config = AutoConfig.for_model(model_type, vocab_size=len(TOKENIZER), **sizes)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def folder_of(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


def plain(model: PreTrainedModel) -> LanguageModel:
    return LanguageModel("m", model.eval().requires_grad_(False), TOKENIZER, "x")


def ctrl() -> PreTrainedModel:
    return built("ctrl", n_embd=32, dff=48, n_layer=2, n_head=4, n_positions=64)


def per_layer() -> PreTrainedModel:
    """A tiny Gemma 3n whose layers read embeddings of their own by id, as a trained one's do."""
    model = built(
        "gemma3n_text", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, vocab_size_per_layer_input=len(TOKENIZER), hidden_size_per_layer_input=8,
        altup_num_inputs=2, laurel_rank=4, num_kv_shared_layers=0, layer_types=["full_attention"] * 2,
        activation_sparsity_pattern=[0.0, 0.0], initializer_range=0.5,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "correct_output_scale" in name:  # 0 before training
                parameter.fill_(1.0)
    return model


@pytest.mark.parametrize(
    ("make", "says"), [(ctrl, "does not take input embeddings"), (per_layer, "more of its ids than their input embed")]
)
def test_a_model_that_embeddings_do_not_determine_is_captured_and_not_tuned(
    tmp_path: Path, make: Callable[[], PreTrainedModel], says: str
) -> None:
    model = make()
    lm = load_model(folder_of(model, tmp_path), device="cpu")
    assert says in str(lm.untunable)
    target = capture("I love").build(lm)
    ids = torch.tensor([lm.encode("I love")])
    expected = lm.model(input_ids=ids, use_cache=False).logits[0, -1].double().softmax(-1)
    assert torch.allclose(target.probs, expected, atol=1e-6)
    if make is ctrl:  # Gemma 3n caps its logits, so it has no floor
        assert softmax_floor(lm, target).lower_bound_nats < 1e-3
    for method in ("soft", "hard"):
        with pytest.raises(InputError, match="no prompt can be tuned"):
            tune(lm, target, TuneConfig(method=method, length=2, steps=1))
    with pytest.raises(InputError, match="no prompt can be tuned"):
        strings({"{1}": 1}, request="a").build(lm)


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    model = built("xlnet", d_model=32, n_layer=2, n_head=4, d_inner=48)
    with pytest.raises(InputError, match="not a left-to-right model"):
        load_model(folder_of(model, tmp_path), device="cpu")
    assert plain(model).max_positions is None  # the −1 that it writes is no limit


def test_nan_constant_and_ordinary_models(tmp_path: Path) -> None:
    model = built("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
    assert prove(plain(model)) is None
    with torch.no_grad():
        model.get_parameter("transformer.wte.weight").zero_()
    assert "gradient" in str(prove(plain(model)))
    with torch.no_grad():
        model.get_parameter("transformer.ln_f.weight").fill_(torch.nan)
    with pytest.raises(InputError, match="NaN"):
        load_model(folder_of(model, tmp_path), device="cpu")


@pytest.mark.parametrize("limit", [-1, 0, 10**30])
def test_a_sentinel_is_no_limit(limit: int) -> None:
    model = built("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model.config.max_position_embeddings = limit
    assert plain(model).max_positions is None
