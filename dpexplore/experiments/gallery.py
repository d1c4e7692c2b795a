"""Figures as the page shows them: those that ship with dpexplore, or those of a store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpexplore.experiments.export import RECORD, describe
from dpexplore.experiments.figures import draw_all
from dpexplore.experiments.store import Store
from dpexplore.plots import figure_json
from dpexplore.shipped import ASSETS

SHIPPED_FIGURES = (ASSETS / "exact", ASSETS / "paper", ASSETS / "gallery")
"""Folders of `dpexplore figures`: Fig. 1 with its exact answer, Fig. 1 at the paper's size, and all figures, small."""


@dataclass(frozen=True)
class Shown:
    """A figure with its caption and claims."""

    name: str
    title: str
    headline: str
    coverage: str
    caption: str
    claims: list[dict[str, Any]]
    """`Claim.to_dict` of each."""
    figure: str
    """Plotly's JSON, in one line."""


def shipped_gallery() -> list[Shown]:
    """The figures that ship with dpexplore."""
    return [figure for folder in SHIPPED_FIGURES for figure in figures_in(folder)]


def figures_in(folder: Path) -> list[Shown]:
    """The figures in a folder that `write_figures` wrote with its `json`; empty if there are none."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return [
            Shown(**about, figure=(folder / f"{about['name']}.json").read_text(encoding="utf-8").replace("\n", " "))
            for about in record["figures"]
        ]
    except (OSError, ValueError, KeyError, TypeError):  # not there, or another version's
        return []


def gallery_of(store: Store) -> list[Shown]:
    """The figures of everything that a store has data for, drawn now."""
    if not store.results.is_dir():
        return []
    return [Shown(**describe(figure), figure=figure_json(figure.drawn.figure)) for figure in draw_all(store)]
