"""A frozen causal language model: token ids or embeddings in, next-token log-probabilities out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A loaded model. Made by `load_model`; never changed afterwards.

    Shapes: `rows` prompts in a batch, `pos` positions, `hidden` embedding width, `vocab` output rows.
    """

    name: str
    """What the user asked for: registry name, Hub id, path or `random:<config>`."""
    model: PreTrainedModel
    """Eval mode, no parameter requires a gradient."""
    tokenizer: PreTrainedTokenizerBase
    identity: str
    """What the weights are, for capsules: `sha256:…` of the weights file, `hub:<id>@<commit>`, `random:<seed>:<config>`."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @cached_property
    def vocab_size(self) -> int:
        """Length of the output distribution: rows of the unembedding, padded rows included."""
        raise NotImplementedError

    @property
    def hidden_size(self) -> int:
        """Width of an input embedding."""
        raise NotImplementedError

    @cached_property
    def max_positions(self) -> int | None:
        """Longest prompt the model accepts, in tokens; None if it sets no limit."""
        raise NotImplementedError

    @cached_property
    def parameter_count(self) -> int:
        raise NotImplementedError

    def embed(self, ids: Tensor) -> Tensor:
        """ids `(rows pos)` -> `(rows pos hidden)`, through the model's own embedding module (Gemma scales there)."""
        raise NotImplementedError

    @cached_property
    def embedding_table(self) -> Tensor:
        """Input embeddings of all ids, `(vocab hidden)`, as `embed` gives them, in the model's dtype."""
        raise NotImplementedError

    def log_probs(self, embeds: Tensor) -> Tensor:
        """Next-token log-probabilities (nats) at the last position.

        embeds `(rows pos hidden)` -> `(rows vocab)` float32; differentiable in `embeds`. No cache is used.
        """
        raise NotImplementedError

    def log_probs_of_ids(self, ids: Tensor) -> Tensor:
        """ids `(rows pos)` -> `(rows vocab)` float32, without gradient."""
        raise NotImplementedError

    @cached_property
    def bos_ids(self) -> list[int]:
        """What the tokenizer itself puts before a text: `[bos]` for Llama 3, `[]` for GPT-2 and SmolLM2."""
        raise NotImplementedError

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Text -> ids; `bos` asks for what the tokenizer itself puts in front. InputError if empty or over-long."""
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        """Ids -> the text they stand for (special tokens written out, no clean-up of spaces)."""
        raise NotImplementedError

    def token_text(self, token_id: int) -> str:
        """One token as a person reads it: ` the`, `<|endoftext|>`, `\\xe2\\x80` for a lone byte; never empty."""
        raise NotImplementedError

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes a token stands for (byte-level BPE, SentencePiece and byte-fallback alike); None for specials and padding."""
        raise NotImplementedError

    @cached_property
    def ordinary_ids(self) -> Tensor:
        """Sorted ids `(n,)` that are real tokens: not special, not added control tokens, not padded rows."""
        raise NotImplementedError
