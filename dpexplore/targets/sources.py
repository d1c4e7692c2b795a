"""Recipes that make a target from nothing: the constructors `entropy(…)`, `capture(…)` and `random_prompt(…)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Literal, cast

from torch import Tensor

from dpexplore.checks import check_flag, check_number, check_seed, check_text, check_whole
from dpexplore.errors import InputError
from dpexplore.floor.prepared import ranking_solver
from dpexplore.floor.rankings import Ranking
from dpexplore.targets.by_pos import MODES, Mode, check_tag, pos_target
from dpexplore.targets.capture import capture_ids, prompt_ids, random_ids, source_model
from dpexplore.targets.descent import STEP_SIZE
from dpexplore.targets.files import read_target
from dpexplore.targets.listed import KINDS, RESTS, TOKENS_ARE, Kind, Rest, TokensAre
from dpexplore.targets.migration import migrate
from dpexplore.targets.outliers import (
    DELTA,
    MASSES,
    Mass,
    outlier_mass,
    outlier_target,
    random_outliers,
)
from dpexplore.targets.recipe import BuildContext, Provenance, Recipe, call_text, literal
from dpexplore.targets.vanilla import Method, check_bits, check_family, family_text, vanilla_target
from dpexplore.targets.vocabulary import token_id
from dpexplore.targets.weights import spread_weights

if TYPE_CHECKING:
    from dpexplore.models.language_model import LanguageModel


MAX_ORDER = 50
ORDER_GAP_NATS = 1e-4
"""The margin is this close to the largest there is, so that a recipe builds the same target everywhere."""
ORDER_SECONDS = 30.0


@dataclass(frozen=True)
class Source(Recipe):
    """A recipe that stands at the beginning of a chain."""


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
    step: float = STEP_SIZE
    """Adam's step in logits, of the method `gradient`."""
    mass: Mass = "own"
    """The outliers' mass m (App. A). `paper`: solved for one outlier and used for every number of them; `own`: solved
    for as many as there are, the most that they can hold."""

    def __post_init__(self) -> None:
        bits = check_number("bits", self.bits, "an entropy in bits, 0 or more", lambda x: x >= 0)
        object.__setattr__(self, "bits", bits)
        object.__setattr__(self, "seed", check_seed(self.seed))
        object.__setattr__(self, "step", check_family(self.method, self.step))
        if self.mass not in MASSES:
            raise InputError(f"`mass` is {self.mass!r}; use 'paper' (m for one outlier) or 'own' (m for as many).")
        if isinstance(self.outliers, list | tuple):
            object.__setattr__(self, "outliers", tuple(_check_token(token) for token in self.outliers) or 0)
        else:
            object.__setattr__(self, "outliers", check_whole("outliers", self.outliers, 0))
        if self.outliers and (self.method != "gradient" or self.step != STEP_SIZE):
            raise InputError(
                "A target with outliers is made by its own descent (Eq. 3); leave out `method` and `step`."
            )
        if self.mass != "own" and not self.outliers:
            raise InputError("`mass` is that of outlier tokens; give `outliers` too, or leave `mass` out.")
        if self.count == 1:  # the two readings are one: equal targets have equal text
            object.__setattr__(self, "mass", "own")

    def __str__(self) -> str:
        named = {"outliers": self.outliers} if self.outliers else {}
        named |= {"mass": self.mass} if self.mass != "own" else {}
        return call_text("entropy", (), bits=self.bits, **named, seed=self.seed, **family_text(self.method, self.step))

    @property
    def count(self) -> int:
        """How many outliers there are."""
        return self.outliers if isinstance(self.outliers, int) else len(self.outliers)

    def probabilities(self, context: BuildContext) -> tuple[Tensor, Provenance]:
        vocab_size = context.lm.vocab_size
        check_bits(self.bits, vocab_size)
        if not self.outliers:
            return vanilla_target(vocab_size, self.bits, self.seed, self.method, self.step), self.provenance
        ids = self.outlier_ids(context.lm)
        probs = outlier_target(vocab_size, self.bits, ids, self.seed, self.mass)
        return probs, self.provenance | {
            "mass": self.mass,
            "outlier_ids": ids,
            "outlier_mass": float(probs[ids].sum()),
            "outlier_mass_required": round(outlier_mass(vocab_size, len(ids), self.bits, self.mass) - DELTA, 2),
        }

    @property
    def provenance(self) -> Provenance:
        """What there is to tell before it is built."""
        family = {"method": self.method} | ({"step": self.step} if self.method == "gradient" else {})
        return {"kind": "entropy", "bits": self.bits, "seed": self.seed, **family}

    def outlier_ids(self, lm: LanguageModel) -> list[int]:
        """The outlier tokens: those named, or ordinary tokens drawn with the seed."""
        if isinstance(self.outliers, int):
            return random_outliers(lm.ordinary_ids, self.outliers, self.seed)
        ids = [token_id(lm, token) for token in self.outliers]
        if len(set(ids)) < len(ids):
            raise InputError("An outlier token is given twice; each is named once.")
        return ids


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
            probs, provenance = capture_ids(source, ids, context.recorded_ids(self, source))
            return migrate(probs, {"kind": "capture", **provenance}, source, context.lm)


@dataclass(frozen=True)
class RandomPrompt(Source):
    """What a model says after a prompt of random token ids (§5.3)."""

    length: int
    """Tokens."""
    seed: int = 0
    model: str | None = None
    """The source model's name; None is the tuning model."""
    bos: bool = True
    """Begin with what the tokenizer itself puts before a text, as every preset's prompts do."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", check_whole("length", self.length, 1, 1_000_000))
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.model is not None:
            check_text("model", self.model)
        check_flag("bos", self.bos)

    def __str__(self) -> str:
        named: dict[str, object] = {"model": self.model} if self.model is not None else {}
        named |= {"bos": False} if not self.bos else {}
        return call_text("random_prompt", (), length=self.length, seed=self.seed, **named)

    def probabilities(self, context: BuildContext) -> tuple[Tensor, Provenance]:
        with source_model(context, self.model) as source:
            ids = random_ids(source, self.length, self.seed, bos=self.bos)
            probs, provenance = capture_ids(source, ids, context.recorded_ids(self, source))
            return migrate(probs, {"kind": "random_prompt", "seed": self.seed, **provenance}, source, context.lm)


@dataclass(frozen=True)
class Pos(Source):
    """Uniform over tokens of one part of speech (App. C)."""

    tag: str
    """Universal part-of-speech tag, such as NOUN, PROPN, VERB, ADJ."""
    n: int = 100
    """Tokens."""
    seed: int = 0
    mode: Mode = "strict"
    """`strict`: words with one part of speech, by three frames and a lexicon; `paper`: the tag the word gets alone."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tag", check_tag(self.tag))
        object.__setattr__(self, "n", check_whole("n", self.n, 1))
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.mode not in MODES:
            raise InputError(f"`mode` is {self.mode!r}; use 'strict' or 'paper'.")

    def __str__(self) -> str:
        mode = {"mode": self.mode} if self.mode != "strict" else {}
        return call_text("pos", (self.tag,), n=self.n, seed=self.seed, **mode)

    def probabilities(self, context: BuildContext) -> tuple[Tensor, Provenance]:
        return pos_target(context.lm, self.tag, self.n, self.seed, self.mode)


@dataclass(frozen=True)
class Tokens(Source):
    """Weights on tokens, by hand."""

    weights: tuple[tuple[str | int, float], ...]
    """Token (text or id) and weight, 0 or more, not all 0."""
    rest: float = 0.0
    """Share of the probability that all other tokens split evenly."""

    def __post_init__(self) -> None:
        if not self.weights:
            raise InputError('`tokens` needs at least one token, as in `tokens({" yes": 0.7, " no": 0.3})`.')
        weights = tuple(
            (_check_token(token), check_number("weight", weight, "a number 0 or more", lambda w: w >= 0))
            for token, weight in self.weights
        )
        object.__setattr__(self, "weights", weights)
        if all(weight == 0 for _, weight in weights):
            raise InputError("All weights are 0; at least one token needs a weight above 0.")
        rest = check_number("rest", self.rest, "a share from 0 to less than 1", lambda r: 0 <= r < 1)
        object.__setattr__(self, "rest", rest)

    def __str__(self) -> str:
        table = ", ".join(f"{literal(token)}: {literal(weight)}" for token, weight in self.weights)
        return f"tokens({{{table}}}, rest={literal(self.rest)})" if self.rest else f"tokens({{{table}}})"

    def probabilities(self, context: BuildContext) -> tuple[Tensor, Provenance]:
        return spread_weights(context.lm, self.weights, self.rest), {"kind": "tokens"}


@dataclass(frozen=True)
class Order(Source):
    """The distribution within the head's reach that puts tokens first, in this order, by the largest margin."""

    words: tuple[str | int, ...]
    """Tokens (texts or ids), the likeliest first."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.words) <= MAX_ORDER:
            raise InputError(f'`order` takes 1 to {MAX_ORDER} tokens, as in `order(" the", " a", " an")`.')
        object.__setattr__(self, "words", tuple(_check_token(word) for word in self.words))

    def __str__(self) -> str:
        return call_text("order", self.words)

    def probabilities(self, context: BuildContext) -> tuple[Tensor, Provenance]:
        ids = [token_id(context.lm, word) for word in self.words]
        found = ranking_solver(context.lm).decide(ids, gap_nats=ORDER_GAP_NATS, seconds=ORDER_SECONDS)
        if not found.can or found.probs is None:
            raise InputError(_unreachable(context.lm, found))
        return found.probs.cpu(), {"kind": "order", "ids": ids, "margin_nats": found.margin_nats}


def _unreachable(lm: LanguageModel, found: Ranking) -> str:
    words = ", ".join(repr(lm.token_text(index)) for index in found.ids)
    if found.can is None:
        return f"Whether {lm.name} can say {words} in this order could not be proved; use another order."
    return f"No prompt can make {lm.name} say {words} in this order (certified; see `dpexplore reach`)."


@dataclass(frozen=True)
class File(Source):
    """What a file holds."""

    path: str
    """.npz, .npy, .csv, .tsv or .json."""
    kind: Kind | None = None
    """What its numbers are: probabilities, weights of any sum, natural log-probabilities (`logprobs`) or `logits`."""
    rest: Rest | None = None
    """Of a list of tokens: what becomes of the probability it does not account for."""
    tokens: TokensAre | None = None
    """Whether tokens that are whole numbers are ids or the text of digits."""
    array: str | None = None
    """The name of one array among several."""

    def __post_init__(self) -> None:
        check_text("path", self.path)
        for name, choices in (("kind", KINDS), ("rest", RESTS), ("tokens", TOKENS_ARE)):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise InputError(f"`{name}` is {value!r}; choose one of {', '.join(map(repr, choices))}.")
        if self.array is not None:
            check_text("array", self.array)

    def __str__(self) -> str:
        named = {name: getattr(self, name) for name in ("kind", "rest", "tokens", "array")}
        return call_text("file", (self.path,), **{name: value for name, value in named.items() if value is not None})

    def probabilities(self, context: BuildContext) -> tuple[Tensor, Provenance]:
        probs, provenance = read_target(
            self.path, context.lm, kind=self.kind, rest=self.rest, tokens=self.tokens, array=self.array
        )
        return probs, {"kind": "file", **provenance}


def _check_token(token: object) -> str | int:
    if isinstance(token, int) and not isinstance(token, bool):
        return check_whole("token id", token, 0)
    return check_text("token", token)


def entropy(
    bits: float,
    seed: int = 0,
    method: Literal["gradient", "temperature"] = "gradient",
    outliers: int | Sequence[str | int] = 0,
    step: float = STEP_SIZE,
    mass: Mass = "own",
) -> Entropy:
    """A target of `bits` bits of entropy: vanilla (Eq. 1) or, with `outliers`, an outlier target (Eq. 2, 3).

    Vanilla targets come in two families: `method="gradient"` follows the gradient of Eq. 1 by Adam with steps of `step`
    logits, `method="temperature"` scales normal logits. `outliers` is how many tokens, drawn with the seed, or which
    ones, as texts or ids; `mass="paper"` gives them the m of App. A, which is that of one outlier, `mass="own"` (what
    recipes without it mean) the most that this number of tokens can
    hold. InputError for values that no target can have; the range depends on the vocabulary and is checked by `build`.
    """
    chosen = (
        outliers if isinstance(outliers, int) else tuple(outliers) if isinstance(outliers, list | tuple) else outliers
    )
    return Entropy(bits, seed, method, cast("int | tuple[str | int, ...]", chosen), step, mass)


def capture(text: str, model: str | None = None, chat: bool = False, bos: bool = True) -> Capture:
    """The next-token distribution after `text`, migrated (§5.4) if `model` has another vocabulary."""
    return Capture(text, model, chat, bos)


def random_prompt(length: int, seed: int = 0, model: str | None = None, bos: bool = True) -> RandomPrompt:
    """The next-token distribution after `length` random token ids (§5.3), specials left out.

    They stand behind what the tokenizer puts before a text, as in `capture` and in every preset, so that the source
    prompt itself scores 0; `bos=False` leaves that out.
    """
    return RandomPrompt(length, seed, model, bos)


def pos(tag: str, n: int = 100, seed: int = 0, mode: Mode = "strict") -> Pos:
    """Uniform over `n` tokens of a part of speech, drawn with the seed (App. C).

    InputError for no universal part-of-speech tag; `build` checks that the vocabulary has `n` such tokens.
    """
    return Pos(tag, n, seed, mode)


def tokens(weights: Mapping[str | int, float], rest: float = 0.0) -> Tokens:
    """Tokens, each given by its text or id, in proportion to their weights; `rest` is shared evenly by all others."""
    if not isinstance(weights, Mapping):
        raise InputError('`weights` is not a table; write one as in `tokens({" yes": 0.7, " no": 0.3})`.')
    return Tokens(tuple(weights.items()), rest)


def order(*words: str | int) -> Order:
    """The distribution within reach that puts `words` first, in this order, by the largest margin between logits.

    It is what some soft prompt says, so its floor is 0. `build` raises InputError for words that no prompt can put
    into this order.
    """
    return Order(words)


def file(
    path: str | PathLike[str],
    kind: Kind | None = None,
    rest: Rest | None = None,
    tokens: TokensAre | None = None,
    array: str | None = None,
) -> File:
    """What a file holds: a NumPy array over the vocabulary, or tokens with numbers in CSV or JSON.

    `kind` is 'probabilities', 'weights' (counts, percent), 'logprobs' or 'logits'; `rest` ('spread', 'drop', 'refuse')
    is what becomes of the probability that a server's likeliest tokens leave; `tokens` ('id', 'text') settles what
    whole numbers are; `array` names one of several arrays.
    """
    return File(fspath(path) if isinstance(path, PathLike) else path, kind, rest, tokens, array)


def check_entropies(recipe: Recipe, vocab_size: int) -> None:
    """InputError if a recipe asks for an entropy that no distribution over `vocab_size` tokens has."""
    for part in recipe.walk():
        if isinstance(part, Entropy):
            check_bits(part.bits, vocab_size)


def source_models(recipe: Recipe) -> list[str]:
    """Names of the models that building the recipe loads, besides the tuning model; a server asks before it builds."""
    captures = (part for part in recipe.walk() if isinstance(part, Capture | RandomPrompt))
    return [part.model for part in captures if part.model is not None]


def source_files(recipe: Recipe) -> list[str]:
    """Paths of the files that building the recipe reads; a server asks before it builds what a visitor wrote."""
    return [part.path for part in recipe.walk() if isinstance(part, File)]
