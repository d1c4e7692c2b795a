"""A tiny Llama as a GGUF file, quantised as the default model is, and the wheel that would carry it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
)

from tests.tiny_models import byte_level_tokenizer, tiny_config

QUANTISATION = gguf.GGMLQuantizationType.Q4_1
_BLOCK = 32  # Q4_1 quantises 32 values of a row together


def write_tiny_gguf(file: Path) -> PreTrainedModel:
    """Write the file; returns the model that must come out of it, with the weights as the file rounds them."""
    tokenizer = byte_level_tokenizer()
    config = tiny_config("llama", tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert isinstance(model, LlamaForCausalLM)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    state = model.state_dict()
    for name, tensor in state.items():
        if name == "lm_head.weight":  # tied
            continue
        _add_tensor(writer, names.get_name(name, try_suffixes=(".weight",)), name, tensor, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model.eval()


def _add_tensor(writer: gguf.GGUFWriter, gguf_name: str | None, name: str, tensor: torch.Tensor, config) -> None:
    """Add a tensor, and round the model's own to what the file holds."""
    assert gguf_name is not None
    array = tensor.numpy()
    if array.ndim == 1 or array.shape[-1] % _BLOCK:
        return writer.add_tensor(gguf_name, array)
    quantised = gguf.quants.quantize(array, QUANTISATION)
    tensor.copy_(torch.from_numpy(gguf.quants.dequantize(quantised, QUANTISATION)))
    if "q_proj" in name or "k_proj" in name:
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        # llama.cpp keeps the two halves of a rotary head interleaved; rows move whole, blocks stay
        quantised = quantised.reshape(heads, 2, -1, quantised.shape[-1]).swapaxes(1, 2).reshape(quantised.shape)
    writer.add_tensor(gguf_name, np.ascontiguousarray(quantised), raw_dtype=QUANTISATION)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if i in special else normal for i in range(len(tokens))])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)


def write_wheel(file: Path, member: str, content: Path) -> None:
    """A wheel that pip accepts, holding `content` as `member`; the file's name says package and version."""
    name, version = file.name.split("-")[:2]
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(content, member)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
