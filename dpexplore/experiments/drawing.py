"""What the paper's figures are drawn with: series that look the same everywhere, bands, floors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import plotly.graph_objects as go

from dpexplore.experiments.tables import Table
from dpexplore.plots import COLOURS, DASHES, base_layout, colour, tint
from dpexplore.plots import ON_DARK as ROLES_ON_DARK

# Series of one figure: the achieved colour first, then hues that no role has taken. For each its like on a dark page.
SERIES = {
    COLOURS["achieved"][0]: COLOURS["achieved"][1],
    "#2B3A8C": "#9FB0FF",
    "#8A6100": "#E5C04D",
    "#00707C": "#4FD0DC",
    "#B0307A": "#F08CC4",
    "#55534E": "#B4B2AC",
    "#6B4FA0": "#C3A8FF",
}
ON_DARK = ROLES_ON_DARK | SERIES
"""As `dpexplore.plots.ON_DARK`, with the series' colours."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
LINES = ("solid", "dash", "dot", "dashdot", "longdash", "solid")
LOSS = "KL(p‖q) (nats)"
TARGET_BITS = "entropy of the target (bits)"


@dataclass(frozen=True)
class Drawn:
    """A figure with everything that belongs to it."""

    figure: go.Figure = field(repr=False)
    table: Table = field(repr=False)
    """The numbers beneath it."""
    caption: str
    """What is drawn, how it was computed, which statistics."""
    reading: str = ""
    """The reading of the paper that it shows; empty: all that the sweep holds."""


@dataclass(frozen=True)
class Series:
    """Colour, marker and dash of one series."""

    name: str
    number: int

    @property
    def colour(self) -> str:
        return list(SERIES)[self.number % len(SERIES)]

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.number % len(SYMBOLS)]

    @property
    def dash(self) -> str:
        return LINES[self.number % len(LINES)]


def series_of(names: Sequence[str]) -> list[Series]:
    """A look for each name."""
    return [Series(str(name), number) for number, name in enumerate(names)]


def new_figure(title: str, x: str, y: str) -> go.Figure:
    """An empty figure with the layout that all figures of the paper share."""
    figure = go.Figure(layout=base_layout(title, x, y))
    return figure.update_layout(
        meta={"dark": ON_DARK}, margin={"t": 56, "b": 90, "l": 64, "r": 20}, legend={"y": -0.22}
    )


def add_band(figure: go.Figure, x: Sequence[float], low: Sequence[float], high: Sequence[float], look: Series) -> None:
    """A shaded region between two curves; nothing where there is no spread to show."""
    ends = np.asarray([x, low, high], dtype=float)
    xs, below, above = ends[:, np.isfinite(ends).all(0)]
    if not len(xs):
        return
    figure.add_scatter(
        x=[*xs, *xs[::-1]],
        y=[*above, *below[::-1]],
        mode="lines",
        fill="toself",
        fillcolor=tint(look.colour, 0.18),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def add_curve(figure: go.Figure, x: Sequence[float], y: Sequence[float], look: Series) -> None:
    """Draw a series as a line with a marker at each point."""
    figure.add_scatter(
        x=list(x),
        y=list(y),
        name=look.name,
        mode="lines+markers",
        line={"color": look.colour, "width": 2, "dash": look.dash},
        marker={"symbol": look.symbol, "size": 7},
        cliponaxis=False,
        hovertemplate=f"{look.name}<br>%{{x:.3g}}: %{{y:.3f}}<extra></extra>",
    )


def add_ranges(figure: go.Figure, x: Sequence[float], y: Table, low: Table, high: Table, look: Series, of: int) -> None:
    """A curve with the range around each point, for so few points that bands between them would hide one another.

    Each of the `of` series stands a little beside the next one.
    """
    apart = 0.02 * (max(x) - min(x)) * (look.number - (of - 1) / 2)
    add_curve(figure, [at + apart for at in x], list(y), look)
    figure.data[-1].error_y = {
        "array": list(high - y), "arrayminus": list(y - low), "symmetric": False, "thickness": 1.5, "width": 4,
    }  # fmt: skip


def add_points(figure: go.Figure, x: Sequence[float], y: Sequence[float], look: Series) -> None:
    """Draw a series as open markers without a line."""
    figure.add_scatter(
        x=list(x),
        y=list(y),
        name=look.name,
        mode="markers",
        # Open, so that points which lie on one another are seen.
        marker={"symbol": f"{look.symbol}-open", "size": 9, "color": look.colour, "line": {"width": 2}},
        cliponaxis=False,
        hovertemplate=f"{look.name}<br>%{{x:.3g}}: %{{y:.3f}}<extra></extra>",
    )


def add_floor(figure: go.Figure, targets: Table, one_of: Series | None = None) -> None:
    """Certified floor and head optimum over the entropy, means over targets; nothing where none is known.

    one_of: the series whose floor it is where there are several; then the floor alone is drawn, in the series' dash.
    """
    known = targets.dropna(subset=["floor_nats"])
    if known.empty:
        return
    means = known.groupby("bits")[["floor_nats", "head_optimum_nats"]].mean()
    name = "certified floor" if one_of is None else f"certified floor, {one_of.name}"
    figure.add_scatter(
        x=list(means.index),
        y=means["floor_nats"],
        name=name,
        mode="lines",
        line={"color": colour("floor"), "width": 3, "dash": one_of.dash if one_of else DASHES["floor"]},
        fill=None if one_of else "tozeroy",
        fillcolor=tint(colour("floor"), 0.10),
        hovertemplate=f"{name}<br>%{{x:.3g}}: %{{y:.3f}}<extra></extra>",
    )
    if one_of is None and means["head_optimum_nats"].notna().any():
        figure.add_scatter(
            x=list(means.index),
            y=means["head_optimum_nats"],
            name="head optimum (estimate)",
            mode="lines",
            line={"color": colour("head"), "width": 2, "dash": DASHES["head"]},
        )


def add_identity(figure: go.Figure, low: float, high: float) -> None:
    """Where the answer's entropy would equal the target's."""
    figure.add_scatter(
        x=[low, high],
        y=[low, high],
        name="entropy of the target",
        mode="lines",
        line={"color": colour("target"), "width": 1.5, "dash": DASHES["target"]},
        hoverinfo="skip",
    )
