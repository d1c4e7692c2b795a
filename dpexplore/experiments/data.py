"""From the store to what figures draw: one table of targets for each sweep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from dpexplore.experiments.store import Listing, Store
from dpexplore.experiments.tables import Table

BITS_PER_NAT = 1 / np.log(2)
_FLOOR_COLUMNS = ["floor_nats", "head_optimum_nats"]


@dataclass(frozen=True)
class SweepData:
    """The results there are for one sweep."""

    name: str
    figure: str
    title: str
    size: str
    asked: int
    """Problems of the sweep."""
    rows: Table = field(repr=False)
    """One row a problem that is done: the store's columns, `group`, and a column for each label."""
    labels: tuple[str, ...] = ()

    @property
    def done(self) -> int:
        return int(self.rows["id"].nunique())

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(self.rows["model"]))

    @property
    def coverage(self) -> str:
        """How much of the sweep there is."""
        share = "all" if self.done == self.asked else f"{self.done:,} of"
        return f"{share} {self.asked:,} problem{'' if self.asked == 1 else 's'}; {', '.join(self.models)}"

    @cached_property
    def restarts(self) -> Table:
        """One row a restart that stayed finite."""
        rows = self.rows[(self.rows["kind"] == "tune") & self.rows["kl_nats"].notna()].copy()
        rows["target_bits"] = rows["target_entropy_nats"] * BITS_PER_NAT
        rows["achieved_bits"] = rows["entropy_nats"] * BITS_PER_NAT
        return rows

    @cached_property
    def targets(self) -> Table:
        """One row a target: the lowest KL of its restarts, the entropy of q there, its floor where it is known.

        A minimum over more restarts is lower, so every target has the same number of them: the most that every group
        has. A target with fewer is left out, and the further ones of a target with more.
        """
        keys = self._keys
        rows = self.even_restarts.sort_values(["kl_nats", "id"], kind="stable")
        best = rows.groupby(keys, sort=False, dropna=False).agg(
            kl_nats=("kl_nats", "first"),
            kl_mean_nats=("kl_nats", "mean"),
            kl_max_nats=("kl_nats", "max"),
            restarts=("kl_nats", "size"),
            target_bits=("target_bits", "first"),
            achieved_bits=("achieved_bits", "first"),
            **{column: (column, "first") for column in _FLOOR_COLUMNS},
        )
        return best.reset_index().sort_values(["model", "group", *self.labels]).reset_index(drop=True)

    @cached_property
    def _tried(self) -> Table:
        return self.rows[self.rows["kind"] == "tune"]

    @cached_property
    def restarts_each(self) -> int:
        """Restarts that a target's minimum is over; those that did not stay finite count as tried."""
        if not len(self._tried):
            return 0
        counts = self._tried.groupby(["model", "group"])["restart"].max()
        return int(counts.min()) + 1

    @cached_property
    def even_restarts(self) -> Table:
        """One row a restart that stayed finite, of the targets that all of `restarts_each` were tried for."""
        tried = self._tried[self._tried["restart"] < self.restarts_each]
        whole = tried.groupby(self._keys, dropna=False)["restart"].transform("nunique") == self.restarts_each
        return self.restarts[self.restarts["id"].isin(tried.loc[whole, "id"])]

    @property
    def left_out(self) -> int:
        """Targets that have results but fewer restarts than the others."""
        return int(self._tried.groupby(self._keys, dropna=False).ngroups) - len(self.targets)

    @property
    def _keys(self) -> list[str]:
        """What tells targets apart."""
        return ["model", "group", *self.labels, "recipe"]

    def group(self, *names: str) -> Table:
        """The targets of some groups."""
        return self.targets[self.targets["group"].isin(names)]


def read_sweeps(store: Store) -> Iterator[SweepData]:
    """Every sweep of the store that has at least one result, in the order of the paper's figures."""
    table = store.read().to_pandas()
    target = ["identity", "recipe"]
    floors = table[table["kind"] == "floor"].drop_duplicates(target)[[*target, *_FLOOR_COLUMNS]]
    table = table.drop(columns=_FLOOR_COLUMNS).merge(floors, on=target, how="left")
    by_sweep: dict[str, list[Listing]] = {}
    for listing in store.listings():
        by_sweep.setdefault(listing.sweep, []).append(listing)
    for listings in sorted(by_sweep.values(), key=lambda each: _order(each[0])):
        asked: Table = pd.concat(map(_asked, listings), ignore_index=True)
        rows = asked.merge(table, on="id", how="inner", suffixes=("_listed", ""))
        if len(rows):
            first = listings[0]
            names = tuple(dict.fromkeys(label for each in listings for labels in each.labels for label in labels))
            yield SweepData(first.sweep, first.figure, first.title, first.size, int(asked["id"].nunique()), rows, names)


def _asked(listing: Listing) -> Table:
    labels = pd.DataFrame(listing.labels, index=range(len(listing.ids)))
    return pd.DataFrame({"id": listing.ids, "group": listing.groups}).join(labels).drop_duplicates("id")


def _order(listing: Listing) -> tuple[int, str]:
    digits = "".join(filter(str.isdigit, listing.figure))
    return (int(digits) if digits else 10_000, listing.sweep)
