"""A claim of the paper, and what the data of a sweep say of it: effect size, interval, verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from dpexplore.experiments.data import SweepData
from dpexplore.experiments.statistics import Interval, Verdict
from dpexplore.experiments.tables import Table

MODERATE = (4.0, 12.0)
"""Bits: between the easy ends of Fig. 1."""
OVER_SEEDS = "mean of each seed, t interval over seeds"


@dataclass(frozen=True)
class Claim:
    """One claim and what is seen of it here."""

    figure: str
    """The sweep that it was looked for in."""
    claim: str
    reading: str
    """How the paper is read here, where it can be read in more than one way."""
    verdict: Verdict
    effect: str
    """What `value` is."""
    unit: str
    value: float
    low: float
    high: float
    """The ends of the 95 % interval."""
    count: int
    """Values that the interval is over."""
    method: str
    note: str = ""

    @property
    def finding(self) -> str:
        """Effect and interval as one phrase."""
        if not np.isfinite(self.value):
            return f"no data; {self.note}" if self.note else "no data"
        interval = f", 95 % interval {_short(self.low)} to {_short(self.high)}" if np.isfinite(self.low) else ""
        unit = f" {self.unit}" if self.unit else ""
        read = f"{self.reading[:1].upper()}{self.reading[1:]}. " if self.reading else ""
        effect = f"{self.effect[:1].upper()}{self.effect[1:]}" if read else self.effect
        text = f"{read}{effect}: {_short(self.value)}{unit}{interval} (n = {self.count}; {self.method})"
        return f"{text}. {self.note}" if self.note else text

    def to_dict(self) -> dict[str, Any]:
        plain = {key: None if isinstance(value, float) and not np.isfinite(value) else value
                 for key, value in asdict(self).items()}  # fmt: skip
        return {**plain, "finding": self.finding}


def _short(number: float) -> str:
    """Two decimals, and no sign before a zero."""
    return f"{number:z.2f}"


def claimed(
    data: SweepData,
    text: str,
    effect: str,
    found: Interval,
    method: str,
    note: str = "",
    *,
    beyond: float = 0.0,
    below: float | None = None,
    reading: str = "",
) -> Claim:
    """`effect` may end in its unit, in square brackets. Supported: the interval is above `beyond`, or under `below`."""
    effect, _, unit = effect.removesuffix("]").partition(" [")
    flipped = Interval(-found.value, -found.high, -found.low, found.count)
    return Claim(
        data.name,
        text,
        reading,
        found.verdict(beyond) if below is None else flipped.verdict(-below),
        effect,
        unit,
        found.value,
        found.low,
        found.high,
        found.count,
        method,
        note,
    )


def where_all_agree(claims: Sequence[Claim], readings: Sequence[str]) -> list[Claim]:
    """One claim in its readings, decided only where all of them are there and say the same."""
    missing = [reading for reading in readings if reading not in {claim.reading for claim in claims}]
    verdicts = {claim.verdict for claim in claims}
    if len(verdicts) == 1 and not missing:
        return list(claims)
    why = f"there is no data for {', '.join(missing)}" if missing else "the readings do not agree"
    return [
        claim
        if claim.verdict == "undecided"
        else replace(
            claim,
            verdict="undecided",
            note=f"{claim.verdict.capitalize()} in this reading, but {why}. {claim.note}".strip(),
        )
        for claim in claims
    ]


def claims_markdown(claims: list[Claim]) -> str:
    """One row a claim, for a reader."""
    lines = ["| the paper says | read as | here | effect, 95 % interval |", "|---|---|---|---|"]
    for claim in claims:
        unit = f" {claim.unit}" if claim.unit else ""
        value, low, high = map(_short, (claim.value, claim.low, claim.high))
        found = f"{claim.effect}: {value}{unit} ({low} to {high}), n = {claim.count}"
        finding = found if np.isfinite(claim.low) else claim.finding
        lines.append(f"| {claim.claim} | {claim.reading} | **{claim.verdict}** | {finding} |")
    return "\n".join(lines) + "\n"


def claims_table(claims: list[Claim]) -> Table:
    """One row a claim, as it is written to CSV."""
    return pd.DataFrame([claim.to_dict() for claim in claims])
