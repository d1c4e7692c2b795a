"""Recipes that make a target from nothing: the constructors `entropy(…)`, `capture(…)` and `random_prompt(…)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.targets.capture import capture_ids, prompt_ids, random_ids, source_model
from dpexplore.targets.migration import migrate
from dpexplore.targets.recipe import (
    BuildContext,
    Provenance,
    Recipe,
    call_text,
    check_flag,
    check_number,
    check_seed,
    check_text,
    check_whole,
)
from dpexplore.targets.vanilla import METHODS, Method, check_bits, vanilla_target


@dataclass(frozen=True)
class Source(Recipe):
    """A recipe that stands at the beginning of a chain."""

    @property
    def parts(self) -> int:
        return 1


@dataclass(frozen=True)
class Entropy(Source):
    """A vanilla target (Eq. 1), or one with outlier tokens (Eq. 2, 3)."""

    bits: float
    """Entropy in bits, from 0 to log2(vocab)."""
    seed: int = 0
    method: Method = "gradient"
    """`gradient`: Eq. 1 by gradient descent on random logits; `temperature`: the same logits scaled by bisection."""
    outliers: int | tuple[str | int, ...] = 0
    """How many outlier tokens, chosen at random, or which (texts or ids)."""

    def __post_init__(self) -> None:
        bits = check_number("bits", self.bits, "an entropy in bits, 0 or more,", lambda x: x >= 0)
        object.__setattr__(self, "bits", bits)
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.method not in METHODS:
            raise InputError(f"`method` is {self.method!r}; 'gradient' or 'temperature' is accepted.")
        if isinstance(self.outliers, list | tuple):
            object.__setattr__(self, "outliers", tuple(_check_token(token) for token in self.outliers) or 0)
        else:
            object.__setattr__(self, "outliers", check_whole("outliers", self.outliers, 0))
        if self.outliers and self.method != "gradient":
            raise InputError("A target with outliers is made by gradient descent (Eq. 3); leave `method` out.")

    def __str__(self) -> str:
        named = {"outliers": self.outliers} if self.outliers else {}
        method = {"method": self.method} if self.method != "gradient" else {}
        return call_text("entropy", (), bits=self.bits, **named, seed=self.seed, **method)

    def probabilities(self, context: BuildContext) -> tuple[Tensor, Provenance]:
        vocab_size = context.lm.vocab_size
        check_bits(self.bits, vocab_size)
        provenance: Provenance = {"kind": "entropy", "bits": self.bits, "seed": self.seed, "method": self.method}
        return vanilla_target(vocab_size, self.bits, self.seed, self.method), provenance


@dataclass(frozen=True)
class Capture(Source):
    """What a model says after a text."""

    text: str
    model: str | None = None
    """The source model's name; None is the tuning model."""
    chat: bool = False
    """Put the text into the source model's chat template, as a user's message."""
    bos: bool = True
    """Begin with what the tokenizer itself puts before a text."""

    def __post_init__(self) -> None:
        check_text("text", self.text)
        if self.model is not None:
            check_text("model", self.model)
        check_flag("chat", self.chat)
        check_flag("bos", self.bos)

    def __str__(self) -> str:
        named: dict[str, object] = {"model": self.model} if self.model is not None else {}
        named |= {"chat": True} if self.chat else {}
        named |= {"bos": False} if not self.bos else {}
        return call_text("capture", (self.text,), **named)

    def probabilities(self, context: BuildContext) -> tuple[Tensor, Provenance]:
        with source_model(context, self.model) as source:
            ids = prompt_ids(source, self.text, chat=self.chat, bos=self.bos)
            probs, provenance = capture_ids(source, ids)
            return migrate(probs, {"kind": "capture", **provenance}, source, context.lm)


@dataclass(frozen=True)
class RandomPrompt(Source):
    """What a model says after a prompt of random token ids (§5.3)."""

    length: int
    """Tokens."""
    seed: int = 0
    model: str | None = None
    """The source model's name; None is the tuning model."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", check_whole("length", self.length, 1, 1_000_000))
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.model is not None:
            check_text("model", self.model)

    def __str__(self) -> str:
        named = {"model": self.model} if self.model is not None else {}
        return call_text("random_prompt", (), length=self.length, seed=self.seed, **named)

    def probabilities(self, context: BuildContext) -> tuple[Tensor, Provenance]:
        with source_model(context, self.model) as source:
            ids = random_ids(source, self.length, self.seed)
            probs, provenance = capture_ids(source, ids)
            return migrate(probs, {"kind": "random_prompt", "seed": self.seed, **provenance}, source, context.lm)


def _check_token(token: object) -> str | int:
    if isinstance(token, int) and not isinstance(token, bool):
        return check_whole("token id", token, 0)
    return check_text("token", token)


def entropy(
    bits: float,
    seed: int = 0,
    method: Literal["gradient", "temperature"] = "gradient",
    outliers: int | Sequence[str | int] = 0,
) -> Entropy:
    """A target of `bits` bits of entropy: vanilla (Eq. 1) or, with `outliers`, an outlier target (Eq. 2, 3).

    `outliers` is how many tokens, drawn with the seed, or which ones, as texts or ids. InputError
    for values that no target can have; the range depends on the vocabulary and is checked by `build`.
    """
    chosen = (
        outliers if isinstance(outliers, int) else tuple(outliers) if isinstance(outliers, list | tuple) else outliers
    )
    return Entropy(bits, seed, method, cast("int | tuple[str | int, ...]", chosen))


def capture(text: str, model: str | None = None, chat: bool = False, bos: bool = True) -> Capture:
    """The next-token distribution after `text`, migrated (§5.4) if `model` has another vocabulary."""
    return Capture(text, model, chat, bos)


def random_prompt(length: int, seed: int = 0, model: str | None = None) -> RandomPrompt:
    """The next-token distribution after `length` random token ids (§5.3), specials left out."""
    return RandomPrompt(length, seed, model)
