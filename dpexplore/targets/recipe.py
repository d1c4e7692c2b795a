"""What every recipe is: a frozen value with canonical text, transforms on top, and `build`."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.targets.descent import STEP_SIZE
from dpexplore.targets.target import Target
from dpexplore.targets.vanilla import Method

if TYPE_CHECKING:
    from dpexplore.models.language_model import LanguageModel
    from dpexplore.targets.transforms import Matched, Mix, Shuffle, Temperature, TopK

MAX_PARTS = 50
"""Constructors and transforms in one recipe, those inside `.mix(…)` included."""

Load = Callable[[str], "LanguageModel"]
Provenance = dict[str, Any]


class RecordedPrompt(NamedTuple):
    """The ids that a source was captured from once."""

    identity: str
    """Of the model whose ids they are."""
    ids: list[int]


@dataclass(frozen=True)
class BuildContext:
    """What a recipe may use to build itself."""

    lm: LanguageModel
    """The tuning model: its vocabulary is the target's."""
    load: Load | None
    """Gives a source model by name, which the giver keeps; None loads by `load_model` and lets go after capture."""
    recorded: Mapping[str, RecordedPrompt] = field(default_factory=dict)
    """Text of a capturing source -> the prompt to capture from, whatever its text gives today."""

    def recorded_ids(self, source: Recipe, lm: LanguageModel) -> list[int] | None:
        """The recorded prompt of a source, if there is one of this model. InputError if the model lacks its ids."""
        found = self.recorded.get(str(source))
        if found is None or found.identity != lm.identity:
            return None
        lm.check_ids(found.ids)
        return found.ids


class Recipe(ABC):
    """How a target is made. Equal recipes have equal text and build equal targets.

    `str(recipe)` is the canonical text; `parse_recipe` reads it back.
    """

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def probabilities(self, context: BuildContext) -> tuple[Tensor, Provenance]:
        """Probabilities `(vocab,)` of the tuning model's vocabulary, and how they came about (JSON-ready)."""

    @property
    def inner(self) -> tuple[Recipe, ...]:
        """The recipes this one stands on."""
        return ()

    def walk(self) -> Iterator[Recipe]:
        """This recipe and all that it stands on, the outermost first: what does it load, what does it read?"""
        yield self
        for recipe in self.inner:
            yield from recipe.walk()

    def build(
        self, lm: LanguageModel, *, load: Load | None = None, recorded: Mapping[str, RecordedPrompt] | None = None
    ) -> Target:
        """The target over `lm`'s vocabulary.

        `load` gives migration sources by name (a cache, say) and keeps them; without it a source is
        loaded by `load_model` and released after capture. `recorded` are prompts to capture from
        again (`recorded.recorded_prompts`). InputError for what `lm` cannot have: an
        entropy out of range, a text that is not a token, a file for another vocabulary, …
        """
        probs, provenance = self.probabilities(BuildContext(lm, load, recorded or {}))
        return Target(probs, str(self), provenance)

    def shuffle(self, seed: int, top_k: int | None = None) -> Shuffle:
        """The same probabilities on other tokens (§5.4).

        All of them are permuted, or the `top_k` likeliest among themselves.
        """
        from dpexplore.targets.transforms import Shuffle

        return Shuffle(self, seed, top_k)

    def matched(self, seed: int, method: Method = "gradient", step: float = STEP_SIZE) -> Matched:
        """A vanilla target (Eq. 1) of the same entropy (§5.3), of the family that `entropy(…)` makes by `method`."""
        from dpexplore.targets.transforms import Matched

        return Matched(self, seed, method, step)

    def temperature(self, t: float) -> Temperature:
        """p^(1/t), renormalised: above 1 flatter, below 1 sharper."""
        from dpexplore.targets.transforms import Temperature

        return Temperature(self, t)

    def top_k(self, k: int) -> TopK:
        """The `k` likeliest tokens, renormalised; of equals the lower id stays."""
        from dpexplore.targets.transforms import TopK

        return TopK(self, k)

    def mix(self, other: Recipe, weight: float) -> Mix:
        """(1 − weight)·this + weight·other."""
        from dpexplore.targets.transforms import Mix

        return Mix(self, other, weight)


def check_parts(recipe: Recipe) -> None:
    """InputError if a recipe has grown past what is built."""
    parts = sum(1 for _ in recipe.walk())
    if parts > MAX_PARTS:
        raise InputError(f"The recipe has {parts} parts; use at most {MAX_PARTS}.")


def literal(value: object) -> str:
    """A value as canonical recipe text."""
    if value is None or isinstance(value, bool | Recipe):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(literal(item) for item in value) + "]"
    return str(value)


def call_text(name: str, positional: tuple[object, ...], **named: object) -> str:
    """`name(positional…, key=value…)`."""
    spelled = [*map(literal, positional), *(f"{key}={literal(value)}" for key, value in named.items())]
    return f"{name}({', '.join(spelled)})"
