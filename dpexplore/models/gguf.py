"""GGUF files as ordinary float32 models and tokenizers."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dpexplore.models.checksums import write_checksums


def convert(file: Path, folder: Path) -> None:
    """Write a GGUF file's model, in float32, and its tokenizer into a folder, with checksums (`is_whole`)."""
    dequantise(file).save_pretrained(folder)
    read_tokenizer(file).save_pretrained(folder)
    write_checksums(folder)


class _Reader(gguf.GGUFReader):
    """A reader that slices the file as a plain array: a slice of `numpy.memmap` costs three times as much."""

    @property
    def data(self) -> np.ndarray:
        return self._data

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._data = mapped.view(np.ndarray)


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """Within, a file is parsed once, however many ask for a reader of it.

    transformers parses a file for its configuration, its tokenizer and its weights, half a minute each for a
    vocabulary of 262,144. Not for two threads at once.
    """
    plain = gguf.GGUFReader
    gguf.GGUFReader = cache(_Reader)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        gguf.GGUFReader = plain  # type: ignore[misc]


def read_config(file: Path) -> PretrainedConfig:
    """The transformers config that a GGUF file describes."""
    return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)


def read_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The file's tokenizer.

    GGUF names the pre-tokenizer (`tokenizer.ggml.pre`); transformers ignores the name and always splits as GPT-2 does,
    so the one that differs in the default model is restored here.
    """
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    field = gguf.GGUFReader(file).get_field("tokenizer.ggml.pre")
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
