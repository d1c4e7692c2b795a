"""Tiny randomly initialised models, each with a small trained tokenizer, saved as ordinary model folders.

Two families of tokenizers: byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece's way, spaces written
`▁` with bytes such as `<0x0A>` for what the vocabulary lacks (Llama 2, Mistral, Gemma).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
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


def _shape(**extra: object) -> dict:
    """What most configurations call their sizes."""
    return {
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3,  # wide enough that the output depends visibly on the prompt
        **extra,
    }


def _gemma(**extra: object) -> dict:
    return _shape(head_dim=8, query_pre_attn_scalar=8, sliding_window=16, **extra)


ConfigBuilder = Callable[[int, dict[str, int]], PretrainedConfig]
"""Vocabulary size and special ids -> configuration."""

_CONFIGS: dict[str, tuple[ConfigBuilder, Callable[[], PreTrainedTokenizerBase]]] = {
    "gpt2": (
        lambda vocab, ids: GPT2Config(
            vocab_size=vocab,
            n_embd=HIDDEN,
            n_layer=2,
            n_head=4,
            n_positions=POSITIONS,
            initializer_range=0.3,
            **ids,
        ),
        byte_level_tokenizer,
    ),
    "llama": (
        lambda vocab, ids: LlamaConfig(vocab_size=vocab, tie_word_embeddings=True, **_shape(**ids)),
        lambda: byte_level_tokenizer(bos=True),
    ),
    "falcon": (
        lambda vocab, ids: FalconConfig(
            vocab_size=vocab,
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            initializer_range=0.3,
            **ids,
        ),
        byte_level_tokenizer,
    ),
    "qwen2": (
        lambda vocab, ids: Qwen2Config(vocab_size=vocab + PADDED_ROWS, tie_word_embeddings=True, **_shape(**ids)),
        byte_level_tokenizer,
    ),
    "qwen3": (
        lambda vocab, ids: Qwen3Config(vocab_size=vocab, head_dim=8, **_shape(**ids)),
        byte_level_tokenizer,
    ),
    "mistral": (
        lambda vocab, ids: MistralConfig(vocab_size=vocab, sliding_window=None, **_shape(**ids)),
        sentencepiece_tokenizer,
    ),
    "gemma2": (
        lambda vocab, ids: Gemma2Config(vocab_size=vocab, **_gemma(**ids)),
        sentencepiece_tokenizer,
    ),
    "gemma3": (
        lambda vocab, ids: Gemma3TextConfig(vocab_size=vocab, **_gemma(**ids)),
        sentencepiece_tokenizer,
    ),
    "gpt_neox": (
        lambda vocab, ids: GPTNeoXConfig(
            vocab_size=vocab + PADDED_ROWS,
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=POSITIONS,
            initializer_range=0.3,
            **ids,
        ),
        byte_level_tokenizer,
    ),
    "opt": (
        lambda vocab, ids: OPTConfig(
            vocab_size=vocab,
            hidden_size=HIDDEN,
            word_embed_proj_dim=16,  # narrower than the layers, as in OPT-350m
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=48,
            max_position_embeddings=POSITIONS,
            init_std=0.3,
            **ids,
        ),
        lambda: byte_level_tokenizer(bos=True),
    ),
    "phi3": (
        lambda vocab, ids: Phi3Config(vocab_size=vocab, **_shape(**ids)),
        lambda: sentencepiece_tokenizer(bos=False),
    ),
    "bloom": (
        lambda vocab, ids: BloomConfig(
            vocab_size=vocab, hidden_size=HIDDEN, n_layer=2, n_head=4, initializer_range=0.3, **ids
        ),
        byte_level_tokenizer,
    ),
}

ARCHITECTURES: tuple[str, ...] = tuple(_CONFIGS)


def save_tiny_model(architecture: str, folder: Path) -> Path:
    """Build the architecture's tiny model from a fixed seed and save it, tokenizer included."""
    config_of, tokenizer_of = _CONFIGS[architecture]
    tokenizer = tokenizer_of()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = config_of(len(tokenizer), ids)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
