"""The report on a way to a target over strings, as numbers that travel as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from statistics import fmean
from typing import Any

from torch import Tensor

from dpexplore.diffuse.metrics import OutcomeFit, SampleFacts, outcome_fit, sample_facts
from dpexplore.diffuse.sampling import sample_answers
from dpexplore.models import LanguageModel
from dpexplore.shipped import ASSETS
from dpexplore.targets import StringTarget
from dpexplore.tuning.record.schema import finite

HELD_OUT = ASSETS / "diffuse" / "held_out.txt"


@dataclass(frozen=True, eq=False)
class Answers:
    """How one request is answered: exactly over its outcomes, and in samples."""

    name: str
    fit: OutcomeFit
    facts: SampleFacts | None
    """None where no samples were asked for."""
    samples: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; None where a number is not finite."""
        fit = {name: finite(value) for name, value in asdict(self.fit).items() if name != "probabilities"}
        facts = asdict(self.facts) if self.facts else None
        return {
            "name": self.name,
            **fit,
            "kl_nats": finite(self.fit.kl_nats),
            "samples": facts,
            "shown": self.samples[:10],
        }


def answers(
    lm: LanguageModel,
    name: str,
    target: StringTarget,
    *,
    samples: int = 0,
    seed: int = 0,
    prompt: Tensor | None = None,
) -> Answers:
    """What a model makes of a target's request, or of a prompt `(pos hidden)` in its place."""
    fit = outcome_fit(lm, target, prompt)
    drawn = sample_answers(lm, target, samples, seed, prompt) if samples else []
    return Answers(name, fit, sample_facts(target, drawn) if samples else None, drawn)


def means(results: Sequence[Answers]) -> dict[str, float]:
    """The exact figures, in nats and shares, averaged over requests."""
    return {
        "cross_entropy_nats": fmean(one.fit.cross_entropy_nats for one in results),
        "floor_nats": fmean(one.fit.floor_nats for one in results),
        "kl_nats": fmean(one.fit.kl_nats for one in results),
        "valid_mass": fmean(one.fit.valid_mass for one in results),
    }


@cache
def held_out_text() -> str:
    """About a thousand words that nobody trains on here: Lewis Carroll, 1865, in the public domain."""
    return HELD_OUT.read_text(encoding="utf-8")
