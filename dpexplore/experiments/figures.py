"""Which figures there are, and what the paper says with each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dpexplore.experiments import comparisons, curves, exact
from dpexplore.experiments.claim import Claim
from dpexplore.experiments.claims import claims_of
from dpexplore.experiments.data import SweepData, read_sweeps
from dpexplore.experiments.drawing import Drawn
from dpexplore.experiments.store import Store

Draw = Callable[..., Drawn | None]
EPOCHS_DRAWN = {"": "token", "-sweep": "sweep"}

DRAWERS: dict[str, dict[str, Draw]] = {
    # figure of the paper, or ours: file name's ending -> function
    "fig1": {"": curves.fig1, "-floor": curves.floors},
    "fig3": {"": comparisons.fig3},
    "fig4": {ending: comparisons.in_epoch(comparisons.fig4, epoch) for ending, epoch in EPOCHS_DRAWN.items()},
    "fig5": {"": curves.fig5},
    "fig6": {"": curves.fig6},
    "fig7": {"": comparisons.fig7},
    "fig8": {ending: comparisons.in_epoch(comparisons.fig8, epoch) for ending, epoch in EPOCHS_DRAWN.items()},
    "fig9": {"": comparisons.fig9},
    "fig10": {"": comparisons.fig10},
    "fig11": {"": curves.fig11},
    "fig12": {"": comparisons.fig12},
    "fig13": {"": comparisons.fig13},
    "exact": {"": exact.by_gradient, "-temperature": exact.by_temperature},
}


@dataclass(frozen=True)
class DrawnFigure:
    """A figure of one sweep."""

    name: str
    """File name without its ending: the sweep's, and what kind of figure of it."""
    title: str
    coverage: str
    drawn: Drawn
    claims: list[Claim]
    """What the data say of the claims that go with it: of its reading, or all on the sweep's first figure."""


def draw_all(store: Store) -> Iterator[DrawnFigure]:
    """Every figure that the store has data for."""
    for data in read_sweeps(store):
        yield from draw_sweep(data)


def draw_sweep(data: SweepData) -> Iterator[DrawnFigure]:
    """The figures of one sweep; sweeps for no figure of ours are drawn as Fig. 1 where they vary `bits`."""
    known = DRAWERS.get(data.figure, DRAWERS["fig1"] if "bits" in data.labels else {})
    claims = claims_of(data)
    for ending, draw in known.items():
        if not len(data.targets) and data.figure not in ("fig3", "fig12"):
            continue
        drawn = draw(data)
        if drawn is not None:
            own = [claim for claim in claims if claim.reading.endswith(drawn.reading)]
            yield DrawnFigure(f"{data.name}{ending}", data.title, data.coverage, drawn, own)
            claims = [claim for claim in claims if claim not in own]
