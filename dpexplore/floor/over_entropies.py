"""The floor of a model over all entropies, for the paper's kinds of target; no tuning, kept on disk per model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dpexplore.errors import InputError
from dpexplore.files import write_file
from dpexplore.floor import FloorSolver
from dpexplore.floor.prepared import floor_solver
from dpexplore.floor.sweep import sweep
from dpexplore.models.default_model import cache_folder
from dpexplore.models.language_model import LanguageModel
from dpexplore.targets import Recipe, build_many, entropy, outlier_range, random_prompt

FORMAT = 1
"""Part of the cache's key: raised when the numbers would change."""
LEAST_BITS = 0.5
SHORT_OF_UNIFORM_BITS = 0.05
PROMPT_LENGTH = 5
ROWS_AT_ONCE = 64
"""Targets in memory at once, a multiple of the sweep's stride."""

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction done."""


@dataclass(frozen=True)
class CurvePoint:
    """The floor of one target of the curve."""

    recipe: str
    entropy_bits: float
    kl_nats: float
    lower_bound_nats: float
    head_optimum_nats: float | None


def _spread(vocab_size: int, points: int, most_bits: float | None = None) -> list[float]:
    limit = math.log2(vocab_size) - SHORT_OF_UNIFORM_BITS
    most = limit if most_bits is None else min(most_bits, limit)
    least = min(LEAST_BITS, 0.5 * most)
    return [round(bits, 6) for bits in torch.linspace(least, most, points, dtype=torch.float64).tolist()]


def _vanilla(vocab_size: int, points: int, seed: int) -> list[Recipe]:
    return [entropy(bits, seed=seed) for bits in _spread(vocab_size, points)]


def _outliers(k: int) -> Callable[[int, int, int], list[Recipe]]:
    def recipes(vocab_size: int, points: int, seed: int) -> list[Recipe]:
        most = math.floor(1e6 * outlier_range(vocab_size, k).max_bits) / 1e6
        return [entropy(bits, outliers=k, seed=seed) for bits in _spread(vocab_size, points, most)]

    return recipes


def _captured(_vocab_size: int, points: int, seed: int) -> list[Recipe]:
    return [random_prompt(PROMPT_LENGTH, seed=seed + number) for number in range(points)]


def _shuffled(vocab_size: int, points: int, seed: int) -> list[Recipe]:
    return [recipe.shuffle(seed=seed) for recipe in _captured(vocab_size, points, seed)]


def _matched(vocab_size: int, points: int, seed: int) -> list[Recipe]:
    return [recipe.matched(seed=seed) for recipe in _captured(vocab_size, points, seed)]


KINDS: dict[str, Callable[[int, int, int], list[Recipe]]] = {
    "vanilla": _vanilla,
    "1 outlier": _outliers(1),
    "5 outliers": _outliers(5),
    "20 outliers": _outliers(20),
    "captured": _captured,
    "shuffled": _shuffled,
    "matched": _matched,
}
"""The paper's kinds of target (§5.1 to §5.4): vocabulary size, number and seed -> recipes."""


def floor_curve(
    lm: LanguageModel,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    points: int = 40,
    seed: int = 0,
    head_optimum: bool = False,
    keep: bool = True,
    progress: Progress | None = None,
) -> dict[str, list[CurvePoint]]:
    """Kind of target -> its `points` floors, by rising entropy.

    head_optimum: also estimate the head optimum of every target (several times as long). keep: read and write the
    cache folder, by the model's identity. InputError for an unknown kind; NoHead if the model has no floor.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"`{kind}` is not a kind of target of the floor curve; use one of {', '.join(KINDS)}.")
    if not 2 <= points <= 1000:
        raise InputError(f"`points` is {points}; use 2 to 1000.")
    curve: dict[str, list[CurvePoint]] = {}
    for number, kind in enumerate(kinds):
        if progress is not None:
            progress(f"Floor of {kind} targets", number / len(kinds))
        file = _file(lm, kind, points, seed, head_optimum)
        found = _read(file) if keep else None
        if found is None:
            found = _measure(floor_solver(lm), lm, KINDS[kind](lm.vocab_size, points, seed), head_optimum)
            if keep:
                _write(file, found)
        curve[kind] = found
    return curve


def _measure(solver: FloorSolver, lm: LanguageModel, recipes: Sequence[Recipe], ladder: bool) -> list[CurvePoint]:
    found: list[CurvePoint] = []
    for first in range(0, len(recipes), ROWS_AT_ONCE):
        targets = list(build_many(recipes[first : first + ROWS_AT_ONCE], lm))
        floors = sweep(solver, torch.stack([target.probs for target in targets]), ladder=ladder)
        found += [
            CurvePoint(
                target.recipe, target.entropy_bits, floor.kl_nats, floor.lower_bound_nats, floor.head_optimum_nats
            )
            for target, floor in zip(targets, floors, strict=True)
        ]
    return sorted(found, key=lambda point: point.entropy_bits)


def _file(lm: LanguageModel, kind: str, points: int, seed: int, head_optimum: bool) -> Path:
    key = json.dumps([FORMAT, lm.identity, str(lm.dtype), kind, points, seed, head_optimum])
    return cache_folder() / "floors" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _read(file: Path) -> list[CurvePoint] | None:
    try:
        return [CurvePoint(**point) for point in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):  # not there, or another version's
        return None


def _write(file: Path, points: list[CurvePoint]) -> None:
    """A folder that cannot be written to only costs time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps([asdict(point) for point in points]))
    except OSError:
        return
