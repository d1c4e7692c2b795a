"""Several runs side by side: their numbers as tables, their curves as figures. Knows no component of the page."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from dpexplore.errors import InputError
from dpexplore.files import replacing, write_file
from dpexplore.plots import NATS_PER_BIT, base_layout, colour
from dpexplore.serving.journal import Record
from dpexplore.serving.live_run import LiveRun
from dpexplore.serving.workspace import clean_name, rule_name, rule_of

PALETTE = ("#2E86C9", "#CE5A24", "#1B9270", "#A468BF", "#A97A0A", "#D0568A", "#7C7E86", "#2696A8")
"""Told apart by people with the common kinds of colour blindness; each reaches a contrast of 3 on light and on dark."""
METHOD_DASHES = {"soft": "solid", "hard": "dash", "hybrid": "dashdot"}
MOST_POINTS = 1000
"""Points of a curve in a figure: more are not seen. The tables hold them all."""
Axis = Literal["step", "evaluations"]
TOLD_APART = {"target": "recipe", "model": "model", "slots": "slots", "restarts": "restarts"}
"""What is asked of a run, by the name that a person gives it; the slots say the method."""


@dataclass(frozen=True)
class KeptRun:
    """What is compared of a run."""

    run_id: str
    name: str
    model: str
    method: str
    rule: str
    """Its method, or `direct` where its tokens were solved for."""
    slots: str
    recipe: str
    status: str
    kl_nats: float
    kl_nats_per_restart: list[float | None]
    kl_reencoded_nats: float | None
    entropy_nats: float
    target_entropy_nats: float
    floor_nats: float | None
    """The certified floor of its target, where it was known when the run ended."""
    steps: int
    evaluations: int
    seconds: float
    kl_by_step: list[list[float | None]]
    """For each step the KL of every restart, nats; None where it was not running."""
    entropy_by_step: list[list[float | None]]
    stride: int = 1
    """Steps from one of these to the next: of a run that moves there are some, of its best restart."""

    @classmethod
    def of(cls, run_id: str, capsule: dict[str, Any], floor_nats: float | None = None) -> KeptRun:
        """From a capsule. InputError if it is damaged."""
        try:
            result, history = capsule["result"], capsule["history"]
            kept = cls(
                run_id=run_id,
                name=clean_name(
                    capsule.get("name") or f"{capsule['config']['method']} · {capsule['target']['recipe']}"
                ),
                model=str(capsule["model"]["name"]).rstrip("/").rsplit("/", 1)[-1],
                method=str(capsule["config"]["method"]),
                rule=rule_name(str(capsule["config"]["method"]), capsule["config"].get("soft_rule")),
                slots=str(result["slots"]),
                recipe=str(capsule["target"]["recipe"]),
                status=str(result["status"]),
                kl_nats=float(result["kl_nats"]),
                kl_nats_per_restart=[_number(kl) for kl in result["kl_nats_per_restart"]],
                kl_reencoded_nats=_number(result["kl_reencoded_nats"]),
                entropy_nats=float(result["entropy_nats"]),
                target_entropy_nats=float(capsule["target"]["entropy_nats"]),
                floor_nats=floor_nats,
                steps=int(result["steps"]),
                evaluations=int(result["evaluations"]),
                seconds=float(result["seconds"]),
                kl_by_step=[[_number(kl) for kl in row] for row in history["kl_nats"]],
                entropy_by_step=[[_number(nats) for nats in row] for row in history["entropy_nats"]],
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise InputError("The capsule is damaged; use a file saved by `Download capsule`.") from error
        return kept

    @classmethod
    def of_record(cls, record: Record) -> KeptRun | None:
        """From a journal; None for a run that did not end with a result."""
        if record.capsule is None:
            return None
        return cls.of(record.run_id, record.as_capsule() or {}, record.floor_nats)

    @classmethod
    def of_moving(cls, live: LiveRun) -> KeptRun:
        """A run as far as it has come; its numbers are those of its best restart so far."""
        run, steps = live.run, live.run.steps
        best, stride = steps[-1] if steps else None, len(steps) // MOST_POINTS + 1
        drawn = steps[stride - 1 :: stride]
        return cls(
            run_id=live.id,
            name=live.name,
            model=run.lm.name.rstrip("/").rsplit("/", 1)[-1],
            method=run.config.method,
            rule=rule_of(run.config),
            slots=str(run.config.parsed_slots()),
            recipe=run.target.recipe,
            status="moving",
            kl_nats=best.best_kl_nats if best else math.inf,
            kl_nats_per_restart=list(best.kl_nats) if best else [None] * run.config.restarts,
            kl_reencoded_nats=None,
            entropy_nats=math.nan,
            target_entropy_nats=run.target.entropy_nats,
            floor_nats=None,
            steps=len(steps),
            evaluations=sum(best.evaluations) if best else 0,
            seconds=time.monotonic() - run.started,
            kl_by_step=[[step.best_kl_nats] for step in drawn],
            entropy_by_step=[step.entropy_nats[step.best_restart : step.best_restart + 1] for step in drawn],
            stride=stride,
        )

    @property
    def above_floor_nats(self) -> float | None:
        return None if self.floor_nats is None else self.kl_nats - max(self.floor_nats, 0.0)

    @property
    def restarts(self) -> int:
        return len(self.kl_nats_per_restart)

    @property
    def finite_restarts(self) -> list[float]:
        return [kl for kl in self.kl_nats_per_restart if kl is not None]

    def axis(self, axis: Axis) -> list[float]:
        """Where each recorded step stands on an axis; prompts scored are spread evenly over the steps."""
        each = self.evaluations / max(self.steps, 1) if axis == "evaluations" else 1.0
        return [each * self.stride * step for step in range(1, len(self.kl_by_step) + 1)]

    def best_so_far(self) -> tuple[list[float | None], list[float | None]]:
        """The lowest KL up to each step over all restarts, nats, and the entropy of that prompt's q."""
        best, entropy = math.inf, None
        kls: list[float | None] = []
        entropies: list[float | None] = []
        for row, nats in zip(self.kl_by_step, self.entropy_by_step, strict=False):
            for kl, h in zip(row, nats, strict=False):
                if kl is not None and kl < best:
                    best, entropy = kl, h
            kls.append(best if best < math.inf else None)
            entropies.append(entropy)
        return kls, entropies


def letter(place: int) -> str:
    """A, B, … Z, AA, …: what a run is called in table and figures."""
    return chr(65 + place) if place < 26 else letter(place // 26 - 1) + letter(place % 26)


def differences(runs: Sequence[KeptRun]) -> list[str]:
    """In what runs differ of what was asked for: names out of `TOLD_APART`, in its order."""
    return [name for name, field in TOLD_APART.items() if len({getattr(run, field) for run in runs}) > 1]


def grouped(runs: Sequence[KeptRun]) -> list[tuple[str, list[int]]]:
    """Runs that share something of which there are several kinds: what they share, and their places.

    By the first of `TOLD_APART` whose groups have two runs each, on average; else one group without a name.
    """
    for name in differences(runs):
        found: dict[object, list[int]] = {}
        for place, run in enumerate(runs):
            found.setdefault(getattr(run, TOLD_APART[name]), []).append(place)
        if 2 * len(found) <= len(runs):
            return [(f"{name} {value}", places) for value, places in found.items()]
    return [("", list(range(len(runs))))]


def label(run: KeptRun, runs: Sequence[KeptRun]) -> str:
    """What sets a run apart from the others beside it; its slots where nothing that was asked for does."""
    names = differences(runs)
    values = {name: str(getattr(run, TOLD_APART[name])) for name in names} or {"slots": run.slots}
    if "restarts" in values:
        values["restarts"] += " restart" if run.restarts == 1 else " restarts"
    return " · ".join(_short(text, 34 if len(values) == 1 else 24) for text in values.values())


def colour_of(place: int) -> str:
    return PALETTE[place % len(PALETTE)]


# Tables.


def summary_table(runs: Sequence[KeptRun]) -> pd.DataFrame:
    """One row a run; units in the names."""
    return pd.DataFrame(
        {
            "run": [letter(place) for place in range(len(runs))],
            "run_id": [run.run_id for run in runs],
            "name": [run.name for run in runs],
            "model": [run.model for run in runs],
            "method": [run.method for run in runs],
            "slots": [run.slots for run in runs],
            "target": [run.recipe for run in runs],
            "target_entropy_bits": [run.target_entropy_nats / NATS_PER_BIT for run in runs],
            "status": [run.status for run in runs],
            "kl_nats": [run.kl_nats for run in runs],
            "kl_mean_nats": [sum(run.finite_restarts) / max(len(run.finite_restarts), 1) for run in runs],
            "kl_worst_nats": [max(run.finite_restarts, default=math.nan) for run in runs],
            "restarts": [len(run.kl_nats_per_restart) for run in runs],
            "kl_reencoded_nats": [run.kl_reencoded_nats for run in runs],
            "floor_nats": [run.floor_nats for run in runs],
            "above_floor_nats": [run.above_floor_nats for run in runs],
            "entropy_bits": [run.entropy_nats / NATS_PER_BIT for run in runs],
            "steps": [run.steps for run in runs],
            "evaluations": [run.evaluations for run in runs],
            "seconds": [run.seconds for run in runs],
        }
    ).astype(dict.fromkeys(("kl_reencoded_nats", "floor_nats", "above_floor_nats"), "float64"))


def curve_table(runs: Sequence[KeptRun]) -> pd.DataFrame:
    """One row for every run, restart and step."""
    rows = [
        (letter(place), run.run_id, restart, step, kl, None if h is None else h / NATS_PER_BIT)
        for place, run in enumerate(runs)
        for step, (kls, entropies) in enumerate(zip(run.kl_by_step, run.entropy_by_step, strict=False), start=1)
        for restart, (kl, h) in enumerate(zip(kls, entropies, strict=False), start=1)
        if kl is not None
    ]
    names = ["run", "run_id", "restart", "step", "kl_nats", "entropy_bits"]
    types = {"restart": "int64", "step": "int64", "kl_nats": "float64", "entropy_bits": "float64"}
    return pd.DataFrame(rows, columns=names).astype(types)


def write_tables(runs: Sequence[KeptRun], folder: Path) -> dict[str, Path]:
    """Both tables as CSV and as Parquet; which file is which."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files: dict[str, Path] = {}
    for name, table in (("runs", summary_table(runs)), ("curves", curve_table(runs))):
        files[f"{name} csv"], files[f"{name} parquet"] = (
            folder / f"dpexplore-{name}.{kind}" for kind in ("csv", "parquet")
        )
        write_file(files[f"{name} csv"], table.to_csv(index=False))
        with replacing(files[f"{name} parquet"]) as beside:
            table.to_parquet(beside, index=False)
    return files


# Figures.


def kl_figure(
    runs: Sequence[KeptRun], shown: Sequence[int], axis: Axis = "step", places: Sequence[int] | None = None
) -> go.Figure:
    """The best KL so far of the `shown` runs in nats; the floor where they share one.

    places: of each run, where others stand among these in their list; its letter and colour follow.
    """
    at = range(len(runs)) if places is None else places
    figure = _new_figure(axis, "best KL (nats)", "kl")
    beside = [runs[place] for place in shown]
    for place in shown:
        _add_line(figure, runs[place], at[place], runs[place].best_so_far()[0], axis, label(runs[place], beside))
    floors = {runs[place].floor_nats for place in shown if len({runs[n].recipe for n in shown}) == 1}
    if len(floors) == 1 and (floor := next(iter(floors))) is not None and floor > 0:
        figure.add_hline(
            floor, line={"color": colour("floor"), "width": 2}, annotation_text=f"certified floor {floor:.6f} nats"
        )
        figure.update_annotations(font={"color": colour("floor"), "size": 12}, bgcolor="rgba(0,0,0,0)")
    return figure


def entropy_figure(runs: Sequence[KeptRun], shown: Sequence[int], axis: Axis = "step") -> go.Figure:
    """The entropy of q at the best prompt so far of the `shown` runs in nats, and their targets'."""
    figure = _new_figure(axis, "entropy of q (nats)", "h")
    beside = [runs[place] for place in shown]
    for place in shown:
        _add_line(figure, runs[place], place, runs[place].best_so_far()[1], axis, label(runs[place], beside))
    level = {"color": colour("target"), "width": 1.5, "dash": "dot"}
    targets = sorted({round(runs[place].target_entropy_nats, 4) for place in shown})
    for number, nats in enumerate(targets):  # the lowest is named below its line, the highest above
        position = "bottom right" if number == 0 else "top right" if number == len(targets) - 1 else "bottom left"
        figure.add_hline(nats, line=level, annotation_text=f"target {nats:.6f} nats", annotation_position=position)
    return figure.update_annotations(font={"color": colour("target"), "size": 12})


def _new_figure(axis: Axis, y_title: str, kind: str) -> go.Figure:
    x_title = "step" if axis == "step" else "prompts scored, in all restarts"
    figure = go.Figure(layout=base_layout("", x_title, y_title, measures=[("y", kind, "nats")]))
    return figure.update_layout(legend={"y": 1.02, "yanchor": "bottom"}, margin={"t": 8})


def _add_line(figure: go.Figure, run: KeptRun, place: int, values: list[float | None], axis: Axis, told: str) -> None:
    name = f"{letter(place)}  {told}"
    x, values = _thinned(run.axis(axis), values)
    figure.add_scatter(
        x=x,
        y=values,
        name=name,
        mode="lines" if len(values) > 1 else "markers",
        line={"color": colour_of(place), "width": 2.5, "dash": METHOD_DASHES.get(run.method, "solid")},
        hovertemplate=f"{letter(place)}: %{{y:.3f}} nats at %{{x:.0f}}<extra></extra>",
        showlegend=True,
    )


def _thinned(x: list[float], y: list[float | None]) -> tuple[list[float], list[float | None]]:
    """At most `MOST_POINTS` of a curve's points, evenly spread, its first and last among them."""
    if len(x) <= MOST_POINTS:
        return x, y
    places = [round(i * (len(x) - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)]
    return [x[place] for place in places], [y[place] for place in places]


def _short(text: str, most: int) -> str:
    plain = text.replace("<", "‹").replace(">", "›")  # Plotly reads some HTML in names
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
