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

BYTES_LLAMA = "bytes-llama"
"""`random:bytes-llama` needs neither cache nor network: a small Llama over single bytes."""

_END = "<|endoftext|>"


def initialise(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """The architecture with its own initialisation from `seed`, in float32; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the CUDA generators as well, which fork_rng does not restore here
        torch.default_generator.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


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
