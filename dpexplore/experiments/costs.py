"""What a sweep would cost, before anything is loaded: parameters from the registry or a config, speed by a probe."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.models.config import read_config
from dpexplore.models.loading import RANDOM_PREFIX, is_path
from dpexplore.models.precision import choose_precision, split_dtype
from dpexplore.models.random_model import BYTES_LLAMA, bytes_llama_config
from dpexplore.models.registry import REGISTRY, default_device, memory_needed
from dpexplore.models.sizes import count_parameters
from dpexplore.tuning import TuneConfig

PROBE = 1024
"""Side of the matrices whose product is timed."""
SHARE_OF_PEAK = 0.5
"""Of what a plain matrix product reaches, tuning reaches about so much (measured on two CPU cores)."""


@dataclass(frozen=True)
class ModelSize:
    """What is known of a model without its weights."""

    parameters: int
    vocab_size: int
    hidden_size: int | None
    dtype: torch.dtype
    """The precision it would be loaded in."""

    @property
    def memory_bytes(self) -> int:
        """What its weights and a handful of rows take."""
        return memory_needed(self.parameters, self.dtype)


def model_size(name: str, device: str | None = None) -> ModelSize | None:
    """By the registry, or by the configuration in a folder; None for a model that would have to be fetched first."""
    bare, asked = split_dtype(name.removeprefix(RANDOM_PREFIX).strip())
    place = default_device() if device is None else torch.device(device)
    entry = REGISTRY.get(bare.lower())
    if entry is not None:
        dtype = choose_precision(entry.parameters, place, asked).dtype
        return ModelSize(entry.parameters, entry.vocab_size, None, dtype)
    try:
        config = bytes_llama_config() if bare == BYTES_LLAMA else read_config(Path(bare).expanduser(), bare)
        parameters = count_parameters(config, bare)
    except InputError:
        if is_path(bare) and not bare.lower().endswith(".gguf"):
            raise
        return None
    text = config.get_text_config()
    dtype = choose_precision(parameters, place, asked).dtype
    return ModelSize(parameters, text.vocab_size, text.hidden_size, dtype)


def operations_of(size: ModelSize, positions: int, row_steps: int) -> float:
    """Floating-point operations of `positions` token positions in `row_steps` forward and backward passes.

    A multiplication and an addition for each parameter forward, as many backward: no weight gradients are computed.
    The unembedding is paid once a pass, not once a position.
    """
    head = size.vocab_size * (size.hidden_size or _hidden_guess(size))
    return 4.0 * (max(size.parameters - head, 0) * positions + head * row_steps)


def seconds_of(size: ModelSize, positions: int, row_steps: int, device: str | None = None) -> float:
    """Rough time for that on this machine."""
    return operations_of(size, positions, row_steps) / (SHARE_OF_PEAK * matrix_product_speed(size.dtype, device))


def seconds_of_run(lm: LanguageModel, config: TuneConfig) -> float:
    """Estimated most seconds of one run by itself on its device, as if every scored prompt took a gradient."""
    size = ModelSize(lm.parameter_count, lm.vocab_size, lm.hidden_size, lm.dtype)
    passes = config.restarts * config.most_evaluations
    positions = len(lm.bos_ids) + slot_tokens(config)
    return seconds_of(size, passes * positions, passes, lm.device.type)


def slot_tokens(config: TuneConfig) -> int:
    """Tokens of a prompt, those of fixed text guessed at three characters each."""
    items = config.parsed_slots().items
    return sum(slot.count if slot.kind != "text" else len(slot.text) // 3 + 1 for slot in items)


def _hidden_guess(size: ModelSize) -> int:
    """Width of a model of which only the size is known: GPT-2 has 768 at 124 M, Llama 3 4,096 at 8 B."""
    return round(768 * (size.parameters / 124e6) ** 0.4)


@cache
def matrix_product_speed(dtype: torch.dtype, device: str | None = None) -> float:
    """Operations a second of a plain matrix product in this precision."""
    place = default_device() if device is None else torch.device(device)
    left = torch.ones(PROBE, PROBE, device=place, dtype=dtype)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        float((left @ left)[0, 0])  # reading a number waits for the device
        times.append(time.perf_counter() - began)
    return 2 * PROBE**3 / min(times)
