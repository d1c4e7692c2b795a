"""Where the paper can be read in more than one way: what the readings are called, and which of them results have."""

from __future__ import annotations

from dpexplore.experiments.data import SweepData

FAMILIES = {"vanilla": "vanilla by gradient descent", "vanilla by temperature": "vanilla by temperature"}
"""Groups of vanilla targets (Eq. 1), and what the reading is called in which they are the vanilla ones."""
GRADIENT = FAMILIES["vanilla"]
MASSES = {"paper": "m of one outlier", "own": "own m"}
"""What App. A's m is solved for."""
EPOCHS = {"token": "An epoch of Eq. 4 is one token swapped.", "sweep": "An epoch of Eq. 4 is a sweep over the prompt."}


def epoch_of(data: SweepData) -> str:
    """What an epoch of Eq. 4 is in a sweep: `token` or `sweep`."""
    return "sweep" if data.restarts["settings"].str.contains('"epoch": "sweep"', regex=False).any() else "token"


def epoch_reading(data: SweepData) -> str:
    """The same as part of a reading."""
    return f"an epoch is one {epoch_of(data)}"


def mass_of_group(data: SweepData, group: str) -> str:
    """`paper` or `own`: which m the outliers of a group of several have."""
    return "paper" if data.group(group)["recipe"].str.contains('mass="paper"', regex=False).any() else "own"
