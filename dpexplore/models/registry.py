"""The curated models, and whether each fits into the memory present."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dpexplore.models.memory import free_memory
from dpexplore.models.names import DEFAULT_MODEL
from dpexplore.models.precision import choose_precision


@dataclass(frozen=True)
class RegistryEntry:
    """A model that dpexplore knows by a short name."""

    name: str
    hub_id: str
    parameters: int
    """Tied parameters counted once."""
    vocab_size: int
    """Rows of the unembedding, padded rows included."""
    note: str
    licence: str = "Apache-2.0"
    gated: bool = False
    """Whether the Hub asks for an accepted licence and a token."""


# fmt: off
_ENTRIES = [
    RegistryEntry(DEFAULT_MODEL, "HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008, 49_152,
                  "the default, chat; comes from the Python package index in 4 bits"),
    RegistryEntry("gemma-3-270m", "google/gemma-3-270m", 268_098_176, 262_144,
                  "base; comes from the Python package index in 4 bits, under Google's terms", "Gemma"),
    RegistryEntry("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", 134_515_008, 49_152, "small, base"),
    RegistryEntry("smollm2-360m", "HuggingFaceTB/SmolLM2-360M", 361_821_120, 49_152, "small, base"),
    RegistryEntry("smollm2-360m-instruct", "HuggingFaceTB/SmolLM2-360M-Instruct", 361_821_120, 49_152, "small, chat"),
    RegistryEntry("distilgpt2", "distilbert/distilgpt2", 81_912_576, 50_257, "small, base"),
    RegistryEntry("pythia-70m", "EleutherAI/pythia-70m", 70_426_624, 50_304, "small, base, embeddings not tied"),
    RegistryEntry("pythia-160m", "EleutherAI/pythia-160m", 162_322_944, 50_304, "small, base, embeddings not tied"),
    RegistryEntry("gpt2", "openai-community/gpt2", 124_439_808, 50_257, "in the paper, base", "MIT"),
    RegistryEntry("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", 494_032_768, 151_936, "in the paper, base"),
    RegistryEntry("qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct", 494_032_768, 151_936, "in the paper, chat"),
    RegistryEntry("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B", 1_543_714_304, 151_936, "in the paper, base"),
    RegistryEntry("qwen2.5-1.5b-instruct", "Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304, 151_936, "in the paper, chat"),
    RegistryEntry("llama-3.2-1b", "meta-llama/Llama-3.2-1B", 1_235_814_400, 128_256,
                  "in the paper, base", "Llama 3.2", gated=True),
    RegistryEntry("llama-3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400, 128_256,
                  "in the paper, chat", "Llama 3.2", gated=True),
    RegistryEntry("falcon-7b", "tiiuae/falcon-7b", 6_921_720_704, 65_024, "in the paper, base"),
    RegistryEntry("llama-3-8b", "meta-llama/Meta-Llama-3-8B", 8_030_261_248, 128_256,
                  "in the paper, base", "Llama 3", gated=True),
]
# fmt: on

REGISTRY: dict[str, RegistryEntry] = {entry.name: entry for entry in _ENTRIES}


@dataclass(frozen=True)
class ModelInfo:
    """A curated model beside the machine it would run on, for the picker and `dpexplore models`."""

    name: str
    hub_id: str
    parameters: int
    vocab_size: int
    bytes_needed: int
    """Estimate of `memory_needed`, in bytes."""
    bytes_present: int
    """Free memory of the device it would be loaded on, in bytes."""
    gated: bool
    licence: str
    note: str
    is_default: bool

    @property
    def fits(self) -> bool:
        return self.bytes_needed <= self.bytes_present


def default_device() -> torch.device:
    """CUDA where there is a card, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def memory_needed(parameters: int, dtype: torch.dtype) -> int:
    """Bytes to hold the weights and to tune a handful of rows: the weights, a fifth more, and 256 MiB.

    A preflight for the picker, not a promise; the engine finds its batch size from the memory that is left.
    """
    return round(1.2 * parameters * dtype.itemsize) + 256 * 2**20


def memory_present(device: torch.device) -> int:
    """Free bytes of the device, of the machine or what this process may have of it for the CPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What PyTorch holds without using it is free to us.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_memory()


def describe_models(device: str | None = None) -> list[ModelInfo]:
    """The curated models with the memory each needs on `device` (default: CUDA if there is one)."""
    place = default_device() if device is None else torch.device(device)
    present = memory_present(place)
    return [
        ModelInfo(
            name=entry.name,
            hub_id=entry.hub_id,
            parameters=entry.parameters,
            vocab_size=entry.vocab_size,
            bytes_needed=memory_needed(entry.parameters, choose_precision(entry.parameters, place).dtype),
            bytes_present=present,
            gated=entry.gated,
            licence=entry.licence,
            note=entry.note,
            is_default=entry.name == DEFAULT_MODEL,
        )
        for entry in _ENTRIES
    ]
