"""Panels to recipe text and back: what each tab of the target designer writes, and what it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dpexplore.errors import InputError
from dpexplore.targets import Recipe, parse_recipe
from dpexplore.targets.sources import Capture, Entropy, RandomPrompt
from dpexplore.targets.transforms import Transform

DEFAULT_RECIPE = "entropy(bits=7, seed=0)"


@dataclass(frozen=True)
class SplitRecipe:
    """A recipe as the designer shows it: what it starts from, and the transforms stacked on top."""

    base: Recipe
    transforms: list[str]
    """Their calls in order, such as `shuffle(seed=1)`."""


def split_recipe(text: str) -> SplitRecipe:
    """InputError, with the place, for a text that is no recipe."""
    recipe, calls = parse_recipe(text), []
    while isinstance(recipe, Transform):
        calls.append(recipe.call)
        recipe = recipe.base
    return SplitRecipe(recipe, calls[::-1])


def join_recipe(base: str, transforms: list[str]) -> str:
    """The canonical text of a base with transforms on top. InputError if it is no recipe."""
    return str(parse_recipe("".join([base, *(f".{call}" for call in transforms)])))


def with_base(text: str, base: Recipe) -> str:
    """`text` with another beginning; a text that cannot be read gives way altogether."""
    try:
        kept = split_recipe(text).transforms
    except InputError:
        kept = []
    return join_recipe(str(base), kept)


def entropy_recipe(bits: float, seed: float, method: str) -> Recipe:
    return Entropy(_number("Entropy", bits), seed=_whole("Seed", seed), method="temperature" if "temp" in method else "gradient")


def prompt_recipe(text: str, model: str, options: list[str]) -> Recipe:
    """`options` as the panel's check boxes name them."""
    if not text:
        raise InputError("Type or paste a prompt; the target is then what the model says after it.")
    return Capture(text, model=model.strip() or None, chat=CHAT in options, bos=BOS in options)


def random_prompt_recipe(length: float, seed: float, model: str) -> Recipe:
    return RandomPrompt(_whole("Tokens", length), _whole("Seed", seed), model=model.strip() or None)


CHAT, BOS = "chat template", "start-of-text token"


def panel_values(base: Recipe) -> tuple[str, dict[str, Any]]:
    """Which tab a recipe belongs to, and the values of that tab's controls by name; no values where none fit."""
    match base:
        case Entropy(outliers=0):
            return "entropy", {"bits": base.bits, "seed": base.seed, "method": METHOD_NAMES[base.method]}
        case Capture():
            options = [name for name, on in ((CHAT, base.chat), (BOS, base.bos)) if on]
            return "prompt", {"text": base.text, "source": base.model or "", "options": options}
        case RandomPrompt():
            return "prompt", {"length": base.length, "prompt_seed": base.seed, "source": base.model or ""}
    return "", {}


METHOD_NAMES = {"gradient": "gradient descent (the paper's)", "temperature": "temperature"}


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} is empty; a number is needed.")
    return float(value)


def _whole(name: str, value: object) -> int:
    number = _number(name, value)
    if number != int(number) or number < 0:
        raise InputError(f"{name} is {number:g}; a whole number, 0 or more, is needed.")
    return int(number)
