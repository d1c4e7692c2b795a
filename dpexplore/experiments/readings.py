"""Where the paper can be read in more than one way: what the readings are called, and which of them results have."""

from __future__ import annotations

import dataclasses

from dpexplore.experiments.data import SweepData

FAMILIES = {"vanilla": "vanilla by gradient descent", "vanilla by temperature": "vanilla by temperature"}
"""Groups of vanilla targets (Eq. 1), and what the reading is called in which they are the vanilla ones."""
GRADIENT = FAMILIES["vanilla"]
MASSES = {"paper": "m of one outlier", "own": "own m"}
"""What App. A's m is solved for."""
HARD_TOKENS = r'"(?:method|slots)": "[^"]*(?:hard|hybrid)'
"""In the settings of a run: it tuned tokens of the vocabulary."""
BY_SWEEP = '"epoch": "sweep"'
EPOCHS = {"token": "An epoch of Eq. 4 is one token swapped.", "sweep": "An epoch of Eq. 4 is a sweep over the prompt."}


def by_epoch(data: SweepData) -> dict[str, SweepData]:
    """The results under each meaning of an epoch of Eq. 4 that hard tokens were tuned in, `token` first.

    Prompts without hard tokens are the same under both.
    """
    settings = data.rows["settings"].fillna("")
    hard, swept = settings.str.contains(HARD_TOKENS), settings.str.contains(BY_SWEEP, regex=False)
    kinds = {"token": hard & ~swept, "sweep": hard & swept}
    return {epoch: dataclasses.replace(data, rows=data.rows[own | ~hard]) for epoch, own in kinds.items() if own.any()}


def epoch_reading(epoch: str) -> str:
    """What an epoch of Eq. 4 is, `token` or `sweep`, as part of a reading."""
    return f"an epoch is one {epoch}"


def mass_of_group(data: SweepData, group: str) -> str:
    """`paper` or `own`: which m the outliers of a group of several have."""
    return "paper" if data.group(group)["recipe"].str.contains('mass="paper"', regex=False).any() else "own"
