"""Numbers on listed tokens, from whatever file or program, as probabilities over a model's vocabulary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from dpexplore.errors import InputError
from dpexplore.targets.recipe import Provenance
from dpexplore.targets.vocabulary import token_id, vocabulary
from dpexplore.targets.weights import spread_weights

if TYPE_CHECKING:
    from torch import Tensor

    from dpexplore.models.language_model import LanguageModel

Kind = Literal["probabilities", "weights", "logprobs", "logits"]
"""What a file's numbers are; weights (counts, percent) have any sum, log-probabilities are natural logarithms."""
KINDS: tuple[Kind, ...] = get_args(Kind)
Rest = Literal["spread", "drop", "refuse"]
"""What becomes of probability that a list of tokens does not account for: evenly to all others, nothing, an error."""
RESTS: tuple[Rest, ...] = get_args(Rest)
TokensAre = Literal["text", "id"]
TOKENS_ARE: tuple[TokensAre, ...] = get_args(TokensAre)

NEVER = -9990.0
"""Servers write −9999 for a log-probability of minus infinity."""
SUM_TOLERANCE = 0.02
"""Log-probabilities are printed with two digits or more; beyond this a sum above 1 is another unit."""
REST_WORTH_SAYING = 1e-3

Token = str | bytes | int


@dataclass(frozen=True)
class Listed:
    """Tokens with a number each, as a file lists them."""

    entries: list[tuple[Token, float]]
    """Token (text, bytes or id) and number, in the file's order."""
    kind: Kind | None = None
    """What the file itself says its numbers are; None if it does not."""
    ids_or_digits: bool = False
    """Every token is a whole number, and nothing says whether they are ids or texts of digits."""
    dump_of: str | None = None
    """The server whose answer this is: the likeliest tokens only, of a vocabulary that may be another."""
    shown: list[str] | None = None
    """The text that stands beside each id, empty where none does; None for tokens given by text alone."""
    whole: bool = False
    """One number for each id from 0 on, as a list without tokens."""


def listed_target(
    name: str, listed: Listed, lm: LanguageModel, kind: Kind | None, rest: Rest | None, tokens: TokensAre | None
) -> tuple[Tensor, Provenance]:
    """Probabilities `(vocab,)` of a file called `name`, and what was done with it.

    A plain table is normalised. The likeliest tokens that a server gives leave a rest, which by default is spread
    evenly over all other tokens. InputError for what is ambiguous, naming the argument that settles it.
    """
    if listed.whole and len(listed.entries) not in (lm.vocab_size, len(lm.tokenizer)):
        raise InputError(
            f"{name!r} has {len(listed.entries):,} numbers, but the model's vocabulary has {lm.vocab_size:,} tokens."
        )
    entries = _resolved(name, listed, tokens)
    _check_shown(name, entries, listed.shown or [], lm)
    kind = kind or listed.kind
    shares = _shares(name, entries, kind)
    facts: Provenance = {"sum": sum(share for _, share in shares)}
    if listed.dump_of:
        shares, facts = _known_tokens(name, shares, lm, listed.dump_of)
    partial = listed.dump_of is not None or kind == "logprobs"
    policy = rest or ("spread" if partial else "drop")
    return _with_rest(name, shares, lm, policy, facts, says_so=partial)


def _resolved(name: str, listed: Listed, tokens: TokensAre | None) -> list[tuple[Token, float]]:
    if listed.ids_or_digits and tokens is None:
        first = listed.entries[0][0]
        raise InputError(
            f"The tokens of {name!r} are whole numbers such as {first!r}, which may be token ids or the text of "
            "digits; name the column `id` or `text`, or write file(…, tokens='id') or file(…, tokens='text')."
        )
    if tokens != "id":
        return listed.entries
    entries: list[tuple[Token, float]] = []
    for token, value in listed.entries:
        if isinstance(token, str) and not token.strip().isdecimal():
            raise InputError(f"{name!r} has the token {token[:40]!r} where tokens='id' expects a token id.")
        entries.append((int(token) if isinstance(token, str) else token, value))
    return entries


def _check_shown(name: str, entries: list[tuple[Token, float]], shown: list[str], lm: LanguageModel) -> None:
    """InputError if most ids have another text beside them than in this model: the table is of another vocabulary."""
    named = [(i, text) for (i, _), text in zip(entries, shown, strict=False) if isinstance(i, int) and text.strip()]
    others = [(i, text) for i, text in named if 0 <= i < lm.vocab_size and not _is_written(lm, i, text)]
    if 2 * len(others) > len(named):
        i, text = others[0]
        raise InputError(
            f"{name!r} calls the token id {i} {_shown(text)}, but in {lm.name} it is {_shown(lm.token_text(i))}; leave "
            "the ids out if they are another model's, else the texts."
        )


def _is_written(lm: LanguageModel, i: int, text: str) -> bool:
    """Whether a text may stand for a token: as it is shown, as its tokenizer stores it, or without spaces."""
    if text.strip() == lm.token_text(i).strip():
        return True
    raw = lm.token_bytes(i)
    forms = {lm.token_text(i), vocabulary(lm).names.get(i, ""), raw.decode(errors="replace") if raw else ""}
    return text.strip() in {form.strip() for form in forms} | {repr(form)[1:-1].strip() for form in forms}


def _shares(name: str, entries: list[tuple[Token, float]], kind: Kind | None) -> list[tuple[Token, float]]:
    """Each token's share of the probability, 0 or more; not normalised."""
    values = [value for _, value in entries]
    if kind in ("logprobs", "logits"):
        for token, value in entries:
            if math.isnan(value) or value == math.inf:
                raise InputError(f"{name!r} gives {_shown(token)} the value {value}; {kind} are finite numbers.")
        top = max(values, default=0.0) if kind == "logits" else 0.0
        if kind == "logprobs" and any(value > SUM_TOLERANCE for value in values):
            raise InputError(f"{name!r} holds {max(values):g}, but log-probabilities are 0 or less; try kind='logits'.")
        shares = [0.0 if value <= NEVER else math.exp(value - top) for value in values]
        if kind == "logits":
            total = sum(shares) or 1.0
            shares = [share / total for share in shares]
        elif sum(shares) > 1 + SUM_TOLERANCE:
            raise InputError(
                f"The log-probabilities of {name!r} add up to a probability of {sum(shares):.4g}; they are natural "
                "logarithms, and kind='logits' normalises other scores."
            )
        return [(token, share) for (token, _), share in zip(entries, shares, strict=True)]
    for token, value in entries:
        if not math.isfinite(value) or value < 0:
            hint = ""
            if kind is None and math.isfinite(value):
                hint = f"; if these are {_look(values)}"
            raise InputError(
                f"{name!r} gives {_shown(token)} the probability {value:g}; write numbers 0 or more{hint}."
            )
    return list(entries)


def _look(values: list[float]) -> str:
    if all(value <= 0 for value in values):
        return "log-probabilities, add kind='logprobs'"
    return "logits, add kind='logits'"


def _known_tokens(
    name: str, shares: list[tuple[Token, float]], lm: LanguageModel, server: str
) -> tuple[list[tuple[Token, float]], Provenance]:
    """The tokens that this model has too, ids given; a server's vocabulary may be another."""
    ids = vocabulary(lm).ids
    kept: dict[int, float] = {}
    lost: list[Token] = []
    for token, share in shares:
        found = token if isinstance(token, int) else ids.get(token if isinstance(token, bytes) else token.encode())
        if found is None and isinstance(token, str):
            found = ids.get(token)  # a special token goes by its name
        if found is None:
            lost.append(token)
        else:
            i = token_id(lm, found)
            kept[i] = kept.get(i, 0.0) + share
    if not kept:
        raise InputError(f"No token that {name!r} lists exists in the vocabulary of {lm.name}.")
    facts: Provenance = {"server": server, "listed": len(shares), "sum": sum(kept.values())}
    if lost:
        facts["warnings"] = [
            f"{len(lost)} of the {len(shares)} tokens in {name!r} do not exist in {lm.name} and are left out, "
            f"{_shown(lost[0])} first."
        ]
    return list(kept.items()), facts


def _with_rest(
    name: str, shares: list[tuple[Token, float]], lm: LanguageModel, policy: Rest, facts: Provenance, *, says_so: bool
) -> tuple[Tensor, Provenance]:
    missing = max(0.0, 1 - facts["sum"])
    if missing > REST_WORTH_SAYING and policy == "refuse":
        raise InputError(
            f"{name!r} accounts for {facts['sum']:.4g} of the probability; rest='spread' gives the other {missing:.4g} "
            "to all other tokens evenly, rest='drop' scales up what is there."
        )
    spread = missing if policy == "spread" and missing < 1 else 0.0
    if missing > REST_WORTH_SAYING and says_so:
        done = "is spread evenly over all other tokens" if spread else "is left out"
        warning = f"{name!r} accounts for {facts['sum']:.2%} of the probability; the other {missing:.2%} {done}."
        facts = {**facts, "rest": missing, "warnings": [*facts.get("warnings", []), warning]}
    weights = [(_key(lm, token), share) for token, share in shares]
    return spread_weights(lm, weights, spread), facts


def _key(lm: LanguageModel, token: Token) -> str | int:
    if not isinstance(token, bytes):
        return token
    found = vocabulary(lm).ids.get(token)
    if found is None:
        raise InputError(f"{_shown(token)} is not one token of {lm.name}.")
    return found


def _shown(token: Token) -> str:
    return repr(token if isinstance(token, int) else token[:40])
