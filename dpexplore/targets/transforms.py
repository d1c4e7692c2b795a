"""Recipes on top of a recipe: shuffle, matched, temperature, top-k, mix."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpexplore.checks import check_number, check_seed, check_whole
from dpexplore.errors import InputError
from dpexplore.targets.descent import STEP_SIZE
from dpexplore.targets.recipe import BuildContext, Provenance, Recipe, call_text, check_parts, literal
from dpexplore.targets.target import NATS_PER_BIT, entropy_nats
from dpexplore.targets.vanilla import Method, check_family, family_text, vanilla_target


@dataclass(frozen=True)
class Transform(Recipe):
    """A recipe that changes what another one makes."""

    base: Recipe

    def __post_init__(self) -> None:
        if not isinstance(self.base, Recipe):
            raise InputError("A transform stands on a recipe, as in `entropy(bits=7).shuffle(seed=1)`.")
        self.check()
        check_parts(self)

    @abstractmethod
    def check(self) -> None:
        """Validate and normalise the arguments."""

    @property
    @abstractmethod
    def call(self) -> str:
        """The transform as recipe text, without its base and dot."""

    @abstractmethod
    def apply(self, probs: Tensor, context: BuildContext) -> tuple[Tensor, Provenance]:
        """The changed probabilities `(vocab,)`, and what else there is to tell."""

    def __str__(self) -> str:
        return f"{self.base}.{self.call}"

    @property
    def inner(self) -> tuple[Recipe, ...]:
        return (self.base,)

    def probabilities(self, context: BuildContext) -> tuple[Tensor, Provenance]:
        probs, provenance = self.base.probabilities(context)
        changed, facts = self.apply(probs, context)
        step = {"transform": self.call, **{key: value for key, value in facts.items() if key != "warnings"}}
        transforms = [*provenance.get("transforms", []), step]
        warnings = [*provenance.get("warnings", []), *facts.get("warnings", [])]
        return changed, {**provenance, "transforms": transforms} | ({"warnings": warnings} if warnings else {})


def likeliest(probs: Tensor, k: int) -> Tensor:
    """Ids of the `k ≥ 1` likeliest tokens of `(vocab,)`, likeliest first; of equals the lower id comes first."""
    values = probs.numpy()
    least = np.partition(values, -k)[-k] if k < len(values) else 0.0
    candidates = np.flatnonzero(values >= least)
    # Stable, and by NumPy: PyTorch's sort takes its threads, which other work may hold.
    return torch.from_numpy(candidates[np.argsort(-values[candidates], kind="stable")[:k]])


@dataclass(frozen=True)
class Shuffle(Transform):
    """The same probabilities on other tokens (§5.4)."""

    seed: int = 0
    within: int | None = None
    """Number of likeliest tokens that change places among themselves; None is the whole vocabulary."""

    def check(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.within is not None:
            object.__setattr__(self, "within", check_whole("top_k", self.within, 1))

    @property
    def call(self) -> str:
        return (
            f"shuffle(seed={self.seed})" if self.within is None else f"shuffle(seed={self.seed}, top_k={self.within})"
        )

    def apply(self, probs: Tensor, context: BuildContext) -> tuple[Tensor, Provenance]:
        places = torch.arange(len(probs)) if self.within is None else likeliest(probs, self.within)
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(self.seed))
        shuffled = probs.clone()
        shuffled[places] = probs[places[order]]
        return shuffled, {}


@dataclass(frozen=True)
class Matched(Transform):
    """A vanilla target (Eq. 1) of the entropy of its base (§5.3)."""

    seed: int = 0
    method: Method = "gradient"
    step: float = STEP_SIZE
    """As in `Entropy`."""

    def check(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        object.__setattr__(self, "step", check_family(self.method, self.step))

    @property
    def call(self) -> str:
        return call_text("matched", (), seed=self.seed, **family_text(self.method, self.step))

    def apply(self, probs: Tensor, context: BuildContext) -> tuple[Tensor, Provenance]:
        bits = float(entropy_nats(probs)) / NATS_PER_BIT
        found = vanilla_target(len(probs), max(bits, 0.0), self.seed, self.method, self.step)
        return found, {"bits": bits}


@dataclass(frozen=True)
class Temperature(Transform):
    """p^(1/t), renormalised."""

    t: float = 1.0

    def check(self) -> None:
        accepted = "a temperature above 0, from 0.001 to 1000"
        object.__setattr__(self, "t", check_number("t", self.t, accepted, lambda t: 1e-3 <= t <= 1e3))

    @property
    def call(self) -> str:
        return f"temperature({literal(self.t)})"

    def apply(self, probs: Tensor, context: BuildContext) -> tuple[Tensor, Provenance]:
        if self.t == 1:
            return probs, {}
        return (probs.log() / self.t).softmax(0), {}  # tokens without mass stay without: log 0 = −∞


@dataclass(frozen=True)
class TopK(Transform):
    """The k likeliest tokens, renormalised."""

    k: int = 1

    def check(self) -> None:
        object.__setattr__(self, "k", check_whole("k", self.k, 1))

    @property
    def call(self) -> str:
        return f"top_k({self.k})"

    def apply(self, probs: Tensor, context: BuildContext) -> tuple[Tensor, Provenance]:
        if self.k >= len(probs):
            return probs, {}
        kept = likeliest(probs, self.k)
        cut = torch.zeros_like(probs)
        cut[kept] = probs[kept] / probs[kept].sum()
        return cut, {}


@dataclass(frozen=True)
class Mix(Transform):
    """(1 − weight)·base + weight·other."""

    other: Recipe
    weight: float

    def check(self) -> None:
        if not isinstance(self.other, Recipe):
            raise InputError(
                "`other` is not a recipe; `.mix(other, weight)` takes one, as in `.mix(entropy(bits=7), 0.5)`."
            )
        weight = check_number("weight", self.weight, "a share from 0 to 1", lambda w: 0 <= w <= 1)
        object.__setattr__(self, "weight", weight)

    @property
    def call(self) -> str:
        return f"mix({self.other}, {literal(self.weight)})"

    @property
    def inner(self) -> tuple[Recipe, ...]:
        return (self.base, self.other)

    def apply(self, probs: Tensor, context: BuildContext) -> tuple[Tensor, Provenance]:
        other, provenance = self.other.probabilities(context)
        facts: Provenance = {"other": provenance}
        if provenance.get("warnings"):
            facts["warnings"] = provenance["warnings"]
        return probs + self.weight * (other - probs), facts
