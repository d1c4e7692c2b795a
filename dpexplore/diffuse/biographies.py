"""Biography sketches as text, and how many different people they show (Forcing Diffuse Distributions)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dpexplore.targets import StringTarget

_LINE = re.compile(r"\{\s*([^{}\s][^{}\n]*)\}")
_SKETCH = re.compile(rf"\s*(?:{_LINE.pattern}\s*){{5,}}")  # the paper's repository has a sixth line, of accomplishments


@dataclass(frozen=True)
class Biography:
    """A sketch of an invented person; each field stands between braces on a line of its own."""

    name: str
    """First name and last name."""
    gender: str
    born: str
    """Date and year of birth."""
    place: str
    """Of birth."""
    career: str

    def __str__(self) -> str:
        return "\n".join(f"{{{value}}}" for value in (self.name, self.gender, self.born, self.place, self.career))

    @classmethod
    def parse(cls, text: str) -> Biography | None:
        """The sketch that a text holds and nothing else, lines after the career left out; None if it is none."""
        if not _SKETCH.fullmatch(text):
            return None
        return cls(*(value.strip() for value in _LINE.findall(text)[:5]))


@dataclass(frozen=True)
class BiographyCounts:
    """The paper's measure of diversity: different values among samples, upper and lower case alike."""

    sketches: int
    """Samples that are sketches, whether of a person trained on or not; only these are counted."""
    first_names: int
    birth_places: int
    careers: int


def biography_counts(target: StringTarget, samples: Sequence[str]) -> BiographyCounts | None:
    """Different first names, places of birth and careers among samples; None if a target's outcomes are no sketches."""
    if not all(Biography.parse(text) for text in target.outcomes):
        return None
    sketches = [sketch for sketch in map(Biography.parse, samples) if sketch is not None]
    return BiographyCounts(
        sketches=len(sketches),
        first_names=len({sketch.name.split()[0].casefold() for sketch in sketches}),
        birth_places=len({sketch.place.casefold() for sketch in sketches}),
        careers=len({sketch.career.casefold() for sketch in sketches}),
    )
