"""Tiny randomly initialised models, each with a small trained tokenizer, saved as ordinary model folders.

Two families of tokenizers: byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece's way, spaces written
`▁` with bytes such as `<0x0A>` for what the vocabulary lacks (Llama 2, Mistral, Gemma).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "I love the sea, and the sea loves the shore.",
    "The capital of France is Paris; the capital of Italy is Rome.",
    "A language model gives a probability to every word that may follow.",
    "She said that they had never seen the other side of the mountain.",
    "for i in range(10):\n    print(i, 'naïve café')\n",
]

HIDDEN = 32
POSITIONS = 64
PADDED_ROWS = 13
"""Output rows beyond the tokenizer in the architectures that pad (Qwen2, GPT-NeoX)."""


def byte_level_tokenizer(bos: bool = False) -> PreTrainedTokenizerBase:
    """Byte-level BPE of about 340 tokens; `bos` puts `<|begin|>` before every text, as Llama 3 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|end|>"
    )


def sentencepiece_tokenizer(bos: bool = True) -> PreTrainedTokenizerBase:
    """Llama 2's way: a space before the text, `▁` for spaces, BPE merges, bytes for unknown characters."""
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special + byte_tokens, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    tokenizer = _with_byte_fallback(trained)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def _with_byte_fallback(trained: Tokenizer) -> Tokenizer:
    """The trained merges in a fresh tokenizer that falls back on bytes; there the byte tokens are plain ones."""
    model = json.loads(trained.to_str())["model"]
    merges = [(left, right) for left, right in model["merges"]]
    return Tokenizer(
        models.BPE(vocab=model["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )


# What most configurations call their sizes.
_SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.3,  # wide enough that the output depends visibly on the prompt
}
_GATED: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2, "intermediate_size": 48}
_GEMMA: dict[str, Any] = {**_GATED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}


@dataclass(frozen=True)
class TinyArchitecture:
    """A configuration by transformers' name for it, and the tokenizer that goes with the family."""

    model_type: str
    sizes: dict[str, Any]
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    padded_rows: int = 0
    """Output rows beyond the tokenizer."""


_ARCHITECTURES: dict[str, TinyArchitecture] = {
    "gpt2": TinyArchitecture("gpt2", _SIZES, byte_level_tokenizer),
    "llama": TinyArchitecture("llama", {**_GATED, "tie_word_embeddings": True}, lambda: byte_level_tokenizer(bos=True)),
    "falcon": TinyArchitecture("falcon", _SIZES, byte_level_tokenizer),
    "qwen2": TinyArchitecture("qwen2", {**_GATED, "tie_word_embeddings": True}, byte_level_tokenizer, PADDED_ROWS),
    "qwen3": TinyArchitecture("qwen3", {**_GATED, "head_dim": 8}, byte_level_tokenizer),
    "mistral": TinyArchitecture("mistral", {**_GATED, "sliding_window": 16}, sentencepiece_tokenizer),
    "gemma2": TinyArchitecture("gemma2", _GEMMA, sentencepiece_tokenizer),
    "gemma3": TinyArchitecture("gemma3_text", _GEMMA, sentencepiece_tokenizer),
    "gpt_neox": TinyArchitecture("gpt_neox", {**_SIZES, "intermediate_size": 48}, byte_level_tokenizer, PADDED_ROWS),
    "opt": TinyArchitecture(
        "opt",
        # embeddings narrower than the layers, as in OPT-350m
        {**_SIZES, "init_std": 0.3, "ffn_dim": 48, "word_embed_proj_dim": 16},
        lambda: byte_level_tokenizer(bos=True),
    ),
    "phi3": TinyArchitecture("phi3", _GATED, lambda: sentencepiece_tokenizer(bos=False)),
    "bloom": TinyArchitecture(
        "bloom",
        {"hidden_size": HIDDEN, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
        byte_level_tokenizer,
    ),
}

ARCHITECTURES: tuple[str, ...] = tuple(_ARCHITECTURES)


def tiny_config(architecture: str, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    tiny = _ARCHITECTURES[architecture]
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = tiny.sizes | {"vocab_size": len(tokenizer) + tiny.padded_rows}
    return AutoConfig.for_model(tiny.model_type, **sizes, **special)


def save_tiny_model(architecture: str, folder: Path) -> Path:
    """Build the architecture's tiny model from a fixed seed and save it, tokenizer included."""
    tokenizer = _ARCHITECTURES[architecture].tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        config = tiny_config(architecture, tokenizer)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
