"""A frozen causal language model: token ids or embeddings in, next-token log-probabilities out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dpexplore.checks import check_text
from dpexplore.errors import InputError
from dpexplore.models.tokens import TokenTable

MOST_POSITIONS = 10**8
"""A larger limit on the length of a prompt is none."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A loaded model. Made by `load_model`; never changed afterwards.

    Shapes: `rows` prompts in a batch, `pos` positions, `hidden` embedding width, `vocab` output rows.
    """

    name: str
    """What the user asked for: registry name, Hub id, path or `random:<config>`."""
    model: PreTrainedModel = field(repr=False)
    """Eval mode, no parameter requires a gradient."""
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    identity: str
    """What the weights are, for capsules: `sha256:…` of the weights, `hub:<id>@<commit>`, `random:<seed>:<config>`."""
    untunable: str | None = None
    """Why no prompt can be tuned on it, a sentence; None if one can. Found by trying when it is loaded (`proof`)."""
    dtype_reason: str = ""
    """Why the weights have the precision that they have, in a sentence."""
    compute_dtype: torch.dtype | None = None
    """What it computes in, where that is not the dtype of its weights (`upcast.in_float32`)."""

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in, and expects of embeddings."""
        return self.compute_dtype or self.model.dtype

    @property
    def is_spread(self) -> bool:
        """Whether its layers are on several cards: then no pass can be captured."""
        return is_spread(self.model)

    @property
    def dtype_name(self) -> str:
        """The name of the precision: `float32`, `bfloat16`, …."""
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def vocab_size(self) -> int:
        """Length of the output distribution: rows of the unembedding, padded rows included."""
        head = self.model.get_output_embeddings()
        weight = getattr(head, "weight", None)
        return self.model.config.get_text_config().vocab_size if weight is None else weight.shape[0]

    @property
    def hidden_size(self) -> int:
        """Width of an input embedding (OPT-350m's is narrower than its layers)."""
        return self._embedding.weight.shape[1]

    @cached_property
    def max_positions(self) -> int | None:
        """Longest prompt the model accepts, in tokens; None if it sets no limit (ALiBi)."""
        config = self.model.config.get_text_config()
        attention = getattr(config, "attn_config", None)
        if getattr(config, "alibi", False) or getattr(attention, "alibi", False):
            return None
        limit = getattr(config, "max_position_embeddings", None)
        # Architectures without a limit write −1 or a number beyond all reason.
        return limit if isinstance(limit, int) and 0 < limit <= MOST_POSITIONS else None

    @cached_property
    def parameter_count(self) -> int:
        """Parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def embed(self, ids: Tensor) -> Tensor:
        """ids `(rows pos)` -> `(rows pos hidden)`, through the model's own embedding module (Gemma scales there)."""
        return self._embedding(ids.to(self.device))

    @cached_property
    def embedding_table(self) -> Tensor:
        """Input embeddings of all ids, `(vocab hidden)`, as `embed` gives them, in the model's dtype.

        In the rare model that reads more or fewer ids than it predicts, one row for each id it reads.
        """
        if type(self._embedding) is nn.Embedding:  # a plain lookup: the weight is the table, no copy
            return self._embedding.weight.detach()
        with torch.no_grad():
            return self.embed(torch.arange(self._embedding.weight.shape[0]))

    @cached_property
    def embedding_norms(self) -> Tensor:
        """Lengths of the embeddings in `embedding_table`, `(vocab,)` float32, above zero."""
        return torch.linalg.vector_norm(self.embedding_table, dim=-1, dtype=torch.float32).clamp_min(1e-12)

    @cached_property
    def median_token_norm(self) -> float:
        """Median length of the embeddings of ordinary tokens, as they enter the first layer."""
        return float(self.embedding_norms[self.ordinary_ids.to(self.embedding_norms.device)].median())

    def log_probs(self, embeds: Tensor) -> Tensor:
        """Next-token log-probabilities (nats) at the last position.

        embeds `(rows pos hidden)` -> `(rows vocab)` float32; differentiable in `embeds`. No cache is used.
        """
        embeds = embeds.to(device=self.device, dtype=self.dtype)
        output = self.model(inputs_embeds=embeds, use_cache=False, **self.keep_logits(1))
        return output.logits[:, -1].float().log_softmax(dim=-1)

    def keep_logits(self, count: int) -> dict[str, int]:
        """What tells the model to compute the logits of the last `count` positions alone.

        Models that cannot be told compute all of them: right, but slow and large.
        """
        return {"logits_to_keep": count} if self._keeps_logits else {}

    def log_probs_of_ids(self, ids: Tensor) -> Tensor:
        """ids `(rows pos)` -> `(rows vocab)` float32, without gradient."""
        with torch.no_grad():
            if self.untunable is None:
                return self.log_probs(self.embed(ids))
            output = self.model(input_ids=ids.to(self.device), use_cache=False, **self.keep_logits(1))
            return output.logits[:, -1].float().log_softmax(dim=-1)

    def check_tunable(self) -> None:
        """InputError if no prompt can be tuned on this model, saying why and what still works."""
        if self.untunable is not None:
            raise InputError(self.untunable)

    @cached_property
    def bos_ids(self) -> list[int]:
        """What the tokenizer itself puts before a text: `[bos]` for Llama 3, `[]` for GPT-2 and SmolLM2."""
        plain = self._ids("a", special=False)
        full = self._ids("a", special=True)
        return next((full[:i] for i in range(len(full)) if full[i : i + len(plain)] == plain), [])

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Text -> ids; `bos` asks for what the tokenizer itself puts in front. InputError if empty or over-long."""
        ids = self.text_ids(text)
        if not ids:
            raise InputError("The prompt is empty; write at least one character that the tokenizer knows.")
        if bos:
            ids = self.bos_ids + ids
        self.check_length(ids)
        return ids

    def text_ids(self, text: str) -> list[int]:
        """The ids of a text as the tokenizer writes it, nothing put in front.

        InputError if the text is none that UTF-8 can hold, or has tokens that the model has no embedding for.
        """
        ids = self._ids(text, special=False)
        if ids and max(ids) >= self._embedding.weight.shape[0]:
            raise InputError(f"The prompt has tokens that {self.name} has no embedding for; leave out special marks.")
        return ids

    def check_ids(self, ids: Sequence[int]) -> None:
        """InputError if a prompt of ids (from a record, say) is longer than the model accepts or not its own."""
        self.check_length(ids)
        if not 0 <= min(ids, default=0) <= max(ids, default=0) < self._embedding.weight.shape[0]:
            raise InputError(f"The recorded prompt has tokens that {self.name} has no embedding for.")

    def check_length(self, ids: Sequence[int]) -> None:
        """InputError if a prompt is longer than the model accepts."""
        if self.max_positions is not None and len(ids) > self.max_positions:
            raise InputError(
                f"The prompt is {len(ids):,} tokens long, but {self.name} accepts at most {self.max_positions:,}."
            )

    def decode(self, ids: list[int]) -> str:
        """Ids -> the text they stand for (special tokens written out, no clean-up of spaces)."""
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def token_text(self, token_id: int) -> str:
        r"""One token as a person reads it: ` the`, `<|endoftext|>`, `\xe2\x80` for a lone byte; never empty."""
        return self._tokens.token_text(token_id)

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes a token stands for, in byte-level BPE and SentencePiece with byte fallback alike.

        None for special and control tokens and for padded rows. Joined over an encoded text they give
        the text back, with the space that a SentencePiece tokenizer puts in front of it.
        """
        return self._tokens.token_bytes(token_id)

    @cached_property
    def ordinary_ids(self) -> Tensor:
        """Sorted ids `(n,)` that are real tokens: not special, not added control tokens, not padded rows."""
        limit = min(self.vocab_size, self._embedding.weight.shape[0])
        return torch.tensor(self._tokens.ordinary_ids(limit), dtype=torch.long)

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that mark structure rather than stand for text, by the tokenizer's table of added tokens."""
        return self._tokens.control_ids

    @cached_property
    def _embedding(self) -> nn.Embedding:
        module = self.model.get_input_embeddings()
        assert isinstance(module, nn.Embedding)
        return module

    @cached_property
    def _keeps_logits(self) -> bool:
        return "logits_to_keep" in inspect.signature(self.model.forward).parameters

    @cached_property
    def _tokens(self) -> TokenTable:
        return TokenTable(self.tokenizer)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        check_text("prompt", text)
        try:
            ids = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        except Exception as error:  # tokenizers without a token for the unknown raise as each of them likes
            raise InputError(
                f"The tokenizer of {self.name} cannot encode {text[:40]!r}; use other characters."
            ) from error
        assert isinstance(ids, list)
        return ids


def is_spread(model: PreTrainedModel) -> bool:
    """Whether the layers of a model are on several devices."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1
