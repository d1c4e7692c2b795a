"""GGUF files as ordinary float32 models and tokenizers."""

from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


def read_config(file: Path) -> PretrainedConfig:
    return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)


def read_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The file's tokenizer. GGUF names the pre-tokenizer (`tokenizer.ggml.pre`); transformers ignores the name
    and always splits as GPT-2 does, so the one that differs in the default model is restored here.
    """
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def dequantise(file: Path) -> PreTrainedModel:
    """The file's weights as a plain float32 model, which, unlike what transformers returns, can be saved."""
    # transformers draws this progress bar whatever its own switch says
    with contextlib.redirect_stderr(io.StringIO()):
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = copy.deepcopy(loaded.config)
    delattr(config, "quantization_config")  # what marks the model as one that cannot be saved
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    for name, buffer in loaded.named_buffers():  # rotary frequencies are not part of a state dict
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner).register_buffer(leaf, buffer, persistent=False)
    return model
