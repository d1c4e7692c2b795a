"""Numbers into pictures: the colours, the axes and the Plotly figures. Knows neither torch nor gradio.

A colour means one thing throughout: the page's style sheet, its live charts and these figures all
take it from `COLOURS`. Hues are those of Okabe and Ito (2008), which people with the common kinds of
colour blindness tell apart, darkened for white paper and lightened for a dark page so that text in
them reaches a contrast of 4.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import plotly.graph_objects as go

COLOURS: dict[str, tuple[str, str]] = {
    # role: (on light, on dark)
    "target": ("#0067A5", "#5DB7F0"),
    "achieved": ("#BF4A00", "#FF9A57"),
    "floor": ("#7A2E8E", "#D9A0EC"),
    "head": ("#00735A", "#3CCBA6"),
    "adapter": ("#6F6400", "#E5D75C"),
    "restart": ("#8C8A84", "#8A8F98"),
    "follow-1": ("#B0005E", "#FF8FC7"),
    "follow-2": ("#3B3BB3", "#A9A9FF"),
    "follow-3": ("#4E6B00", "#B5D65C"),
}

ON_DARK = dict(COLOURS.values())
"""Colour on paper -> its like on a dark page; figures carry it along as `layout.meta.dark`, and the page uses it."""

DASHES = {
    "target": "dot",
    "achieved": "solid",
    "floor": "solid",
    "head": "dash",
    "adapter": "dashdot",
    "restart": "solid",
    "follow-1": "solid",
    "follow-2": "dash",
    "follow-3": "dashdot",
}
"""Each role's line style, so that a print in grey can be read as well."""

NATS_PER_BIT = math.log(2)

LOWEST_PROBABILITY = 1e-12
"""Where curves of probability are cut: far below what a picture shows."""


def colour(role: str, dark: bool = False) -> str:
    """The colour of a role, as `#rrggbb`."""
    return COLOURS[role][dark]


def log_grid(count: int, points: int = 120) -> np.ndarray:
    """At most `points` ranks from 1 to `count`, every one of the first few, then evenly on a log axis."""
    if count < 1 or points < 1:
        raise ValueError(f"count and points are at least 1, not {count} and {points}")
    if count <= points:
        return np.arange(1, count + 1)
    # Rounding merges neighbours at the small ranks; ask for more points until the grid is full.
    ranks, asked = np.array([1]), points
    while asked < 16 * points:
        finer = np.unique(np.rint(np.geomspace(1, count, asked)).astype(int))
        if finer.size > points:
            break
        ranks, asked = finer, asked + max(1, points // 8)
    return ranks


@dataclass(frozen=True)
class RankCurve:
    """A distribution seen by rank: the tokens in falling order of one distribution, thinned on a log grid."""

    ranks: np.ndarray
    """`(points,)` 1 for the most probable token."""
    ids: np.ndarray
    """`(points,)` the token at each rank."""
    probs: np.ndarray
    """`(points,)` its probability."""


def rank_curve(probs: np.ndarray, points: int = 120) -> RankCurve:
    """Rank against probability of `probs` `(vocab,)`, thinned to at most `points` ranks."""
    order = np.argsort(-probs, kind="stable")
    ranks = log_grid(len(probs), points)
    ids = order[ranks - 1]
    return RankCurve(ranks, ids, probs[ids])


@dataclass(frozen=True)
class TokenShare:
    """One token's part in KL(p‖q) = Σ p·log(p/q)."""

    token_id: int
    target: float
    achieved: float
    kl_nats: float
    """p·log(p/q), negative where q is above p."""


@dataclass(frozen=True)
class KlParts:
    """KL(p‖q) taken apart; its parts in `below`, `above` and `other_kl_nats` sum to it."""

    below: list[TokenShare]
    """Tokens that q gives too little, the costliest first."""
    above: list[TokenShare]
    """Tokens that q gives too much, those with the most extra probability first: where it went."""
    other_tokens: int
    other_kl_nats: float


def kl_parts(target: np.ndarray, log_achieved: np.ndarray, count: int = 10) -> KlParts:
    """The `count` tokens of each sign that KL(p‖q) comes from, and the rest as one.

    Shapes: target `(vocab,)` probabilities; log_achieved `(vocab,)` log-probabilities in nats.
    """
    target, achieved, shares = _shares(target, log_achieved)
    extra = achieved - target

    def rows(order: np.ndarray, kept: np.ndarray) -> list[TokenShare]:
        ids = [int(i) for i in order[:count] if kept[i]]
        return [TokenShare(i, float(target[i]), float(achieved[i]), float(shares[i])) for i in ids]

    below = rows(np.argsort(-shares, kind="stable"), shares > 0)
    above = rows(np.argsort(-extra, kind="stable"), extra > 0)
    listed = sum(row.kl_nats for row in below + above)
    return KlParts(below, above, len(target) - len(below) - len(above), float(shares.sum()) - listed)


@dataclass(frozen=True)
class RankBand:
    """Tokens of neighbouring ranks in the target."""

    first: int
    """Rank of its likeliest token in the target, 1 for the likeliest of all."""
    last: int
    target: float
    """Probability that p gives to them together."""
    achieved: float
    kl_nats: float
    """Σ p log(p/q) over them; over all bands this sums to KL(p‖q)."""


def kl_bands(target: np.ndarray, log_achieved: np.ndarray) -> list[RankBand]:
    """KL(p‖q) by powers of ten of the rank in the target: 1, 2 to 10, 11 to 100, and so on.

    Shapes: target `(vocab,)` probabilities; log_achieved `(vocab,)` log-probabilities in nats.
    """
    target, achieved, shares = _shares(target, log_achieved)
    order = np.argsort(-target, kind="stable")
    edges = [0, *(10**power for power in range(len(str(len(target)))) if 10**power < len(target)), len(target)]
    return [
        RankBand(first + 1, last, *(float(values[order[first:last]].sum()) for values in (target, achieved, shares)))
        for first, last in pairwise(edges)
    ]


def token_shares(target: np.ndarray, log_achieved: np.ndarray, count: int = 12) -> list[TokenShare]:
    """The tokens that a reader wants to see: the `count` most probable of p and of q, and the costliest ones.

    Shapes: target `(vocab,)` probabilities; log_achieved `(vocab,)` log-probabilities in nats. The
    rows come by their larger probability, falling; their `kl_nats` over all tokens sum to KL(p‖q).
    """
    target, achieved, shares = _shares(target, log_achieved)
    picked = set[int]()
    for scores in (target, achieved, shares):
        picked.update(int(i) for i in np.argsort(-scores, kind="stable")[:count] if scores[i] > 0)
    rows = [TokenShare(i, float(target[i]), float(achieved[i]), float(shares[i])) for i in picked]
    return sorted(rows, key=lambda row: (-max(row.target, row.achieved), row.token_id))


def _shares(target: np.ndarray, log_achieved: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p, q and each token's p·log(p/q), float64 `(vocab,)`."""
    target = np.asarray(target, dtype=np.float64)
    log_achieved = np.asarray(log_achieved, dtype=np.float64)
    shares = np.zeros_like(target)
    seen = target > 0
    shares[seen] = target[seen] * (np.log(target[seen]) - log_achieved[seen])
    return target, np.exp(log_achieved), shares


def base_layout(
    title: str, x_title: str, y_title: str, dark: bool = False, measures: Sequence[tuple[str, str, str]] = ()
) -> go.Layout:
    """The look shared by all figures; backgrounds stay clear so that a page's own shows through.

    `measures` are (axis, `kl` or `h`, unit), as in `("y", "kl", "nats")`, for axes of a divergence or an entropy: the
    page shows them in the unit that its user has chosen for that quantity.
    """
    ink, grid = ("#E8E8E6", "#3A3D44") if dark else ("#1C1C1A", "#E3E2DD")
    axis = {"gridcolor": grid, "zerolinecolor": grid, "linecolor": grid, "ticks": "outside", "tickcolor": grid}
    return go.Layout(
        title={"text": title, "x": 0, "xref": "paper", "font": {"size": 14}},
        font={"color": ink, "family": "IBM Plex Sans, system-ui, sans-serif", "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 56, "r": 16, "t": 40, "b": 44},
        xaxis={**axis, "title": {"text": x_title}},
        yaxis={**axis, "title": {"text": y_title}, "rangemode": "tozero"},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0, "xanchor": "left"},
        hovermode="closest",
        meta={"dark": ON_DARK, "measures": list(measures)},
    )


def figure_json(figure: go.Figure) -> str:
    """A figure as one line of JSON, without Plotly's large default template."""
    figure = go.Figure(figure).update_layout(template=None)
    return str(figure.to_json()).replace("\n", " ")


@dataclass(frozen=True)
class FloorPoint:
    """The floor of one target, as the floor curve draws it."""

    entropy_bits: float
    floor_nats: float
    """The certified lower bound."""
    head_optimum_nats: float | None = None
    """The best point found on the final norm's sphere, an estimate."""


def floor_curve(
    families: Mapping[str, Sequence[FloorPoint]], here: FloorPoint | None = None, dark: bool = False
) -> go.Figure:
    """Certified floor over entropy, a line for each kind of target; the first one leads, with its head optimum."""
    figure = go.Figure(
        layout=base_layout(
            "Certified floor over entropy",
            "entropy of the target (bits)",
            "floor of KL(p‖q) (nats)",
            dark,
            [("x", "h", "bits"), ("y", "kl", "nats")],
        )
    )
    markers = ("circle", "square", "diamond", "triangle-up", "x", "star", "pentagon")
    for number, (name, points) in enumerate(families.items()):
        points = sorted(points, key=lambda point: point.entropy_bits)
        bits = [point.entropy_bits for point in points]
        figure.add_scatter(
            x=bits,
            y=[point.floor_nats for point in points],
            name=name,
            mode="lines" if number == 0 else "markers",
            line={"color": colour("floor", dark), "width": 3},
            marker={"symbol": markers[number % len(markers)], "size": 7, "color": colour("floor", dark)},
            opacity=1 if number == 0 else 0.7,
            fill="tozeroy" if number == 0 else None,
            fillcolor=tint(colour("floor", dark), 0.10),
        )
        optima = [
            (b, p.head_optimum_nats) for b, p in zip(bits, points, strict=True) if p.head_optimum_nats is not None
        ]
        if number == 0 and optima:
            figure.add_scatter(
                x=[b for b, _ in optima],
                y=[y for _, y in optima],
                name="head optimum (estimate)",
                mode="lines",
                line={"color": colour("head", dark), "width": 2, "dash": DASHES["head"]},
            )
    if here is not None:
        figure.add_scatter(
            x=[here.entropy_bits],
            y=[here.floor_nats],
            name="your target",
            mode="markers",
            marker={"color": colour("target", dark), "size": 13, "line": {"width": 2, "color": "white"}},
        )
    return figure.update_layout(legend={"y": -0.3})


class DialPoint(Protocol):
    """A point of a dial curve; `dpexplore.floor.dials.Dial` is one."""

    @property
    def tokens(self) -> int: ...
    @property
    def lower_bound_nats(self) -> float: ...
    @property
    def alike_nats(self) -> float: ...


def dials_figure(
    curves: Mapping[str, tuple[int, Sequence[DialPoint]]], here: DialPoint | None = None, dark: bool = False
) -> go.Figure:
    """Certified floor over the number of tokens: a line for each model, with an upright where its dials run out.

    curves: name -> (dials, points), one at least. here: the point of the last one that is looked at.
    """
    figure = go.Figure(
        layout=base_layout(
            "Floor of random distributions",
            "tokens that they are over",
            "floor of KL(p‖q) (nats)",
            dark,
            [("y", "kl", "nats")],
        )
    )
    latest = [*curves.values()][-1][1]
    figure.add_scatter(
        x=[point.tokens for point in latest],
        y=[point.alike_nats for point in latest],
        name="saying all of them alike",
        mode="lines",
        line={"color": colour("restart", dark), "width": 1.5, "dash": DASHES["target"]},
    )
    for number, (name, (dials, points)) in enumerate(curves.items()):
        line = {"color": colour(("floor", "head", "target")[number % 3], dark), "width": 3}
        line["dash"] = ("solid", "dash", "dot")[number % 3]
        figure.add_scatter(
            x=[point.tokens for point in points],
            y=[point.lower_bound_nats for point in points],
            name=f"{name}: {dials:,} dials",
            mode="lines",
            line=line,
        )
        figure.add_vline(x=dials, line={"color": line["color"], "width": 1, "dash": line["dash"]})
    if here is not None:
        figure.add_scatter(
            x=[here.tokens],
            y=[here.lower_bound_nats],
            name="the tokens chosen",
            mode="markers",
            marker={"color": colour("achieved", dark), "size": 13, "line": {"width": 2, "color": "white"}},
        )
    return figure.update_layout(xaxis={"type": "log", "dtick": 1}, legend={"y": -0.3})


class BudgetPoint(Protocol):
    """A point of a frontier; `dpexplore.experiments.frontier.FrontierPoint` is one."""

    @property
    def kind(self) -> str: ...
    @property
    def length(self) -> int: ...
    @property
    def budget(self) -> float | None: ...
    @property
    def kl_nats(self) -> float: ...


def frontier_figure(
    points: Sequence[BudgetPoint], floor_nats: float, head_optimum_nats: float | None, dark: bool = False
) -> go.Figure:
    """Best KL over the norm budget, a line for each length, between the hard prompt's point and the direct token."""
    figure = go.Figure(
        layout=base_layout(
            "KL within a norm budget",
            "norm budget (x; right end: no bound)",
            "KL(p‖q) (nats)",
            dark,
            [("y", "kl", "nats")],
        )
    )
    budgets = [point.budget for point in points if point.budget is not None]
    free = 4 * max(budgets, default=1.0)  # where the direct token stands, which no budget bounds
    for number, length in enumerate(sorted({point.length for point in points if point.kind == "soft"})):
        line = sorted((p.budget, p.kl_nats) for p in points if p.length == length and p.kind == "soft" and p.budget)
        line += [(free, p.kl_nats) for p in points if p.length == length and p.kind == "direct"]
        figure.add_scatter(
            x=[budget for budget, _ in line],
            y=[kl for _, kl in line],
            name=f"{length} soft token{'s' * (length > 1)}",
            mode="lines+markers",
            line={"color": colour("achieved", dark), "width": 2, "dash": ("solid", "dash", "dot")[number % 3]},
            marker={"symbol": ("circle", "square", "diamond")[number % 3], "size": 8},
        )
    hard = [point for point in points if point.kind == "hard"]
    figure.add_scatter(
        x=[point.budget for point in hard],
        y=[point.kl_nats for point in hard],
        name=f"hard prompt, {hard[0].length} tokens" if hard else "hard prompt",
        mode="markers",
        marker={"color": colour("target", dark), "size": 12, "symbol": "star"},
    )
    for name, role, value in (("head optimum", "head", head_optimum_nats), ("certified floor", "floor", floor_nats)):
        if value is not None:
            figure.add_scatter(
                x=[min(budgets, default=1.0), free],
                y=[value, value],
                name=name,
                mode="lines",
                line={"color": colour(role, dark), "width": 2, "dash": DASHES[role]},
            )
    return figure.update_layout(xaxis={"type": "log", "dtick": 1}, legend={"y": -0.3})


def tint(hex_colour: str, alpha: float) -> str:
    """A `#rrggbb` colour, see-through."""
    red, green, blue = (int(hex_colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
