"""What one family teaches another: leave-one-out and leave-one-in (Forcing Diffuse Distributions, §4.2)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch

from dpexplore.diffuse.config import AdapterConfig
from dpexplore.diffuse.families import SIX, Size, family
from dpexplore.diffuse.report import Answers, answers
from dpexplore.diffuse.training import AdapterRun
from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import StringTarget

Mode = Literal["untuned", "leave-one-out", "leave-one-in"]
Place = tuple[str, tuple[str, ...], str]
"""Where a cell stands in the matrix: mode, families trained on, family tested on."""
RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Cell:
    """One family's requests, answered by a model that was trained on some families."""

    mode: Mode
    trained: tuple[str, ...]
    tested: str
    results: list[Answers]
    """Each request, in the order of seeds."""

    @property
    def place(self) -> Place:
        return self.mode, self.trained, self.tested

    @property
    def kl_nats(self) -> tuple[float, float, float]:
        """Sequence-level KL over the outcomes: mean, and the ends of its interval."""
        return interval([one.fit.kl_nats for one in self.results])

    @property
    def valid_mass(self) -> tuple[float, float, float]:
        """Probability of a valid outcome: mean, and the ends of its interval."""
        return interval([one.fit.valid_mass for one in self.results])


def generalise(
    lm: LanguageModel,
    *,
    size: Size = "small",
    families: Sequence[str] = SIX,
    modes: Sequence[Mode] = ("untuned", "leave-one-out", "leave-one-in"),
    config: AdapterConfig | None = None,
    seeds: Sequence[int] = (0,),
    known: Collection[Place] = (),
    progress: Callable[[str], None] = lambda _text: None,
) -> Iterator[Cell]:
    """Train on some families, test on others, cell by cell as they come; those of `known` are left out.

    leave-one-out trains on all families but one and tests on that one; leave-one-in trains on one family and tests on
    every one, its own included. InputError for fewer than two families or an unknown one.
    """
    if len(set(families)) < 2:
        raise InputError("Generalisation takes at least two families.")
    config = config or AdapterConfig.preset("fast", early_stop=True)
    built = {name: [(task.name, task.strings.build(lm)) for task in family(name, size)] for name in families}
    for mode in modes:
        for trained, planned in _plan(mode, families):
            tested = [name for name in planned if (mode, trained, name) not in known]
            if not tested:
                continue
            results: dict[str, list[Answers]] = {name: [] for name in tested}
            for seed in seeds if trained else seeds[:1]:
                progress(f"{mode}: " + (f"training on {', '.join(trained)}, seed {seed}" if trained else "measuring"))
                model = _train(lm, [target for name in trained for _, target in built[name]], config, seed)
                for name in tested:
                    results[name] += [answers(model, task, target, seed=seed) for task, target in built[name]]
            for name in tested:
                yield Cell(mode, trained, name, results[name])


def _plan(mode: Mode, families: Sequence[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Pairs of families to train on and families to test on."""
    if mode == "untuned":
        return [((), tuple(families))]
    if mode == "leave-one-in":
        return [((name,), tuple(families)) for name in families]
    return [(tuple(other for other in families if other != name), (name,)) for name in families]


def _train(lm: LanguageModel, targets: list[StringTarget], config: AdapterConfig, seed: int) -> LanguageModel:
    if not targets:
        return lm
    changed = AdapterConfig(**{**config.to_dict(), "seed": seed})
    return AdapterRun(lm, targets, changed).finish().adapter.lm


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean of some values and the ends of its 95 % bootstrap interval (percentiles over 2,000 resamples)."""
    data = torch.tensor(values, dtype=torch.float64)
    rng = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(data), (RESAMPLES, len(data)), generator=rng)
    ends = data[picks].mean(1).quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64))
    return fmean(values), float(ends[0]), float(ends[1])
