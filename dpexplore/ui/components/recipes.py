"""Panels to recipe text and back: what each tab of the target designer writes, and what it reads."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from dpexplore.checks import check_number, check_whole
from dpexplore.errors import InputError
from dpexplore.targets import Recipe, parse_recipe
from dpexplore.targets.descent import STEP_SIZE
from dpexplore.targets.outliers import Mass
from dpexplore.targets.sources import Capture, Entropy, File, Pos, RandomPrompt, Tokens
from dpexplore.targets.transforms import Transform

DEFAULT_RECIPE = "entropy(bits=7, seed=0)"
HAND_EXAMPLE = '" yes" 0.7\n" no" 0.3'
CHAT, BOS = "chat template", "start token"
METHOD_NAMES = {"gradient": "gradient descent", "temperature": "temperature"}
MASS_NAMES: dict[Mass, str] = {"paper": "one outlier (the paper's)", "own": "as many as there are"}

_HAND_LINE = re.compile(
    r"\s*(?P<token>\"(?:[^\"\\]|\\.)*\"|#\d+|\S.*?)\s*[\s:=,\t]\s*(?P<weight>[0-9.eE+-]+)\s*%?\s*,?\s*"
)


@dataclass(frozen=True)
class SplitRecipe:
    """A recipe as the designer shows it: what it starts from, and the transforms stacked on top."""

    base: Recipe
    transforms: list[str]
    """Their calls in order, such as `shuffle(seed=1)`."""


def split_recipe(text: str) -> SplitRecipe:
    """InputError, with the place, for text that is not a recipe."""
    recipe, calls = parse_recipe(text), []
    while isinstance(recipe, Transform):
        calls.append(recipe.call)
        recipe = recipe.base
    return SplitRecipe(recipe, calls[::-1])


def join_recipe(base: str, transforms: list[str]) -> str:
    """The canonical text of a base with transforms on top. InputError if it is not a recipe."""
    return str(parse_recipe("".join([base, *(f".{call}" for call in transforms)])))


def with_base(text: str, base: Recipe) -> str:
    """`text` with another beginning; a text that cannot be read is replaced as a whole."""
    try:
        kept = split_recipe(text).transforms
    except InputError:
        kept = []
    return join_recipe(str(base), kept)


# What each tab writes.


def entropy_recipe(bits: float, seed: float, method: str, step: float = STEP_SIZE) -> Recipe:
    """`method` as `METHOD_NAMES` calls it; `step` counts for gradient descent alone."""
    if method == METHOD_NAMES["temperature"]:
        return Entropy(number("Entropy", bits), whole("Seed", seed), method="temperature")
    return Entropy(number("Entropy", bits), whole("Seed", seed), step=number("Step", step))


def outliers_recipe(bits: float, count: float, seed: float, picks: list[str] | None, mass: str) -> Recipe:
    """`picks` as `token_value` writes them; without any, `count` tokens are drawn with the seed."""
    outliers = tuple(_picked(pick) for pick in picks or ()) or whole("Outlier tokens", count, 1)
    return Entropy(number("Entropy", bits), whole("Seed", seed), outliers=outliers, mass=mass_of(mass))


def mass_of(name: str) -> Mass:
    """The mass that the designer calls so."""
    return "own" if name == MASS_NAMES["own"] else "paper"


def prompt_recipe(text: str, model: str, options: list[str]) -> Recipe:
    """`options` as the panel's check boxes name them."""
    if not text:
        raise InputError("Type or paste a prompt; the target is then what the model says after it.")
    return Capture(text, model=model.strip() or None, chat=CHAT in options, bos=BOS in options)


def random_prompt_recipe(length: float, seed: float, model: str) -> Recipe:
    return RandomPrompt(whole("Random tokens", length, 1), whole("Seed", seed), model=model.strip() or None)


def pos_recipe(tag: str, count: float, seed: float, mode: str) -> Recipe:
    return Pos(tag, whole("Tokens", count, 1), whole("Seed", seed), "paper" if mode == "paper" else "strict")


def hand_recipe(lines: str, rest: float) -> Recipe:
    return Tokens(tuple(read_weights(lines)), rest=number("Share", rest))


def file_recipe(path: str | None, kind: str = "", tokens: str = "", rest: str = "", array: str = "") -> Recipe:
    if not path:
        raise InputError("Drop a file here: .npz or .npy, or .csv, .tsv or .json of tokens and probabilities.")
    chosen: dict[str, Any] = {"kind": kind, "rest": rest, "tokens": tokens, "array": array}
    return File(path, **{name: value or None for name, value in chosen.items()})


# Weights by hand, as lines of text.


def read_weights(lines: str) -> list[tuple[str | int, float]]:
    """`" yes" 0.7` a line: a token, in quotes if it begins or ends with a space (or `#id`), and its weight."""
    read: list[tuple[str | int, float]] = []
    for number, line in enumerate(lines.split("\n"), start=1):
        if not line.strip():
            continue
        match = _HAND_LINE.fullmatch(line)
        try:
            if match is None:
                raise ValueError
            token = match["token"]
            name = (
                json.loads(token)
                if token.startswith('"')
                else int(token[1:])
                if re.fullmatch(r"#\d+", token)
                else token
            )
            read.append((name, float(match["weight"])))
        except ValueError:
            raise InputError(
                f'Line {number} cannot be read; write a token and its weight, as in `" yes" 0.7`.'
            ) from None
    if not read:
        raise InputError('Write at least one token and its weight, as in `" yes" 0.7`.')
    return read


def write_weights(weights: list[tuple[str | int, float]]) -> str:
    """Lines that `read_weights` reads."""
    names = (f"#{token}" if isinstance(token, int) else json.dumps(token, ensure_ascii=False) for token, _ in weights)
    return "\n".join(f"{name} {weight:g}" for name, (_, weight) in zip(names, weights, strict=True))


def set_weight(lines: str, index: int, weight: float) -> str:
    """The lines with one weight changed."""
    weights = read_weights(lines)
    if not 0 <= index < len(weights):
        raise InputError("This bar's line is gone; edit the lines.")
    weights[index] = (weights[index][0], float(weight))
    return write_weights(weights)


# What each tab reads.


def panel_values(base: Recipe) -> tuple[str, dict[str, Any]]:
    """Which tab a recipe belongs to, and the values of that tab's controls by name."""
    match base:
        case Entropy(outliers=0):
            family = {"method": METHOD_NAMES[base.method]}
            family |= {"entropy_step": base.step} if base.method == "gradient" else {}
            return "entropy", {"bits": base.bits, "seed": base.seed, **family}
        case Entropy():
            chosen = base.outliers if isinstance(base.outliers, tuple) else ()
            shown: dict[str, Any] = {"outlier_bits": base.bits, "outlier_seed": base.seed}
            shown["picks"] = [token_value(token) for token in chosen]
            shown |= {} if chosen else {"count": base.outliers}
            shown |= {"mass_of": MASS_NAMES[base.mass]} if base.count > 1 else {}  # of one outlier both are the same
            return "outliers", shown
        case Capture():
            options = [name for name, on in ((BOS, base.bos), (CHAT, base.chat)) if on]
            return "prompt", {"text": base.text, "source": base.model or "", "options": options}
        case RandomPrompt():
            return "prompt", {"length": base.length, "prompt_seed": base.seed, "source": base.model or ""}
        case Pos():
            return "pos", {"tag": base.tag, "pos_count": base.n, "pos_seed": base.seed, "mode": base.mode}
        case Tokens():
            return "hand", {"lines": write_weights(list(base.weights)), "rest": base.rest}
        case File():
            return "file", {
                "file_kind": base.kind or "",
                "file_tokens": base.tokens or "",
                "file_rest": base.rest or "",
                "file_array": base.array or "",
            }
    return "", {}


def token_value(token: str | int) -> str:
    """A token of a recipe as the value of a pick."""
    return f"#{token}" if isinstance(token, int) else f"={token}"


def _picked(pick: str) -> str | int:
    return int(pick[1:]) if pick.startswith("#") else pick[1:]


def number(name: str, value: object) -> float:
    """A field's value. InputError that names the field if it is empty."""
    if value is None:
        raise InputError(f"{name} is empty; a number is needed.")
    return check_number(name, value, "a number", lambda _: True)


def whole(name: str, value: object, low: int = 0, high: int | None = None) -> int:
    """A field's value as a whole number from `low` to `high`. InputError that names the field and its range."""
    number(name, value)
    return check_whole(name, value, low, high)
