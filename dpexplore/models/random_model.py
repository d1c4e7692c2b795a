"""Randomly initialised models: an architecture without what training put into it (the paper's Fig. 6)."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from dpexplore.models.precision import dtype_name

BYTES_LLAMA = "bytes-llama"
"""`random:bytes-llama` needs neither cache nor network: a small Llama over single bytes."""

MOST_DRAWN_ON_CPU = 200_000_000
"""Parameters; a second or two."""

_END = "<|endoftext|>"


def drawn_on(parameters: int, device: torch.device) -> torch.device:
    """Where the weights of a random model are drawn.

    On the CPU, the same numbers for every device, while that is quick. A large model that goes to a CUDA card is drawn
    there: 8 billion numbers take minutes on a CPU, a moment on a card.
    """
    large = parameters > MOST_DRAWN_ON_CPU
    return device if large and device.type == "cuda" else torch.device("cpu")


def random_identity(seed: int, config_name: str, drawn: torch.device, dtype: torch.dtype) -> str:
    """What the weights are. A card draws other numbers than a CPU from the same seed, and others in each dtype."""
    where = "" if drawn.type == "cpu" else f"@{drawn.type}-{dtype_name(dtype)}"
    return f"random:{seed}:{config_name}{where}"


def initialise(config: PretrainedConfig, seed: int, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The architecture with its own initialisation from `seed`, drawn on `device`; generators are left alone.

    On the CPU always in float32, from which any dtype is rounded; elsewhere directly in `dtype`.
    """
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reseed the CUDA generators as well, which fork_rng does not restore here
            torch.default_generator.manual_seed(seed)
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    with torch.random.fork_rng(devices=[device], device_type=device.type), device:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def bytes_llama_config() -> LlamaConfig:
    """A small Llama whose vocabulary is the 256 bytes and an end mark.

    It does not pose as SmolLM2 without its tokenizer: there, all but 257 of 49,152 rows would have no text.
    """
    return LlamaConfig(
        vocab_size=257,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=256,
        eos_token_id=256,
    )


def bytes_tokenizer() -> PreTrainedTokenizerBase:
    """One token for each byte (ids 0 to 255) and an end mark (256)."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(characters)} | {_END: len(characters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=_END, eos_token=_END)
