"""The paper's figures over the entropy of the target: Fig. 1, 5, 6, 11, and the floor drawn underneath."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dpexplore.experiments.data import SweepData
from dpexplore.experiments.drawing import (
    LOSS,
    TARGET_BITS,
    Drawn,
    Series,
    add_band,
    add_curve,
    add_floor,
    add_identity,
    new_figure,
    series_of,
)
from dpexplore.experiments.readings import EPOCHS, by_epoch
from dpexplore.experiments.statistics import band_interval, mean_interval, standard_error
from dpexplore.experiments.tables import Table
from dpexplore.plots import DASHES, colour, tint

BANDS = "bands, from three targets on: 95 % t intervals (scipy.stats.t), cut at 0."


def protocol(data: SweepData) -> str:
    """How the losses came about, in one sentence."""
    rows = data.restarts
    most = int(rows["steps"].max()) if len(rows) else 0
    out = f" {counted(data.left_out)} with fewer restarts left out." if data.left_out else ""
    epoch = "".join(f" {EPOCHS[each]}" for each in by_epoch(data))
    each = f"one restart of at most {most} steps"
    if data.restarts_each != 1:
        each = f"the minimum over {data.restarts_each} restarts of at most {most} steps"
    return f"Loss of a target: {each}.{epoch}{out}"


def counted(targets: int) -> str:
    """A number of targets, in words."""
    return f"{targets} target{'' if targets == 1 else 's'}"


def curve_table(targets: Table, series: str, x: str = "bits") -> Table:
    """Means over targets, with standard errors and 95 % t intervals, for every series and entropy."""
    rows = []
    for (name, at), group in targets.groupby([series, x], sort=True, dropna=False):
        loss, entropy = band_interval(group["kl_nats"]), band_interval(group["achieved_bits"])
        rows.append(
            {
                series: name,
                x: at,
                "targets": len(group),
                "kl_nats": loss.value,
                "kl_se_nats": standard_error(group["kl_nats"]),
                "kl_low_nats": loss.low,
                "kl_high_nats": loss.high,
                "achieved_bits": entropy.value,
                "achieved_low_bits": entropy.low,
                "achieved_high_bits": entropy.high,
                "floor_nats": group["floor_nats"].mean(),
                "head_optimum_nats": group["head_optimum_nats"].mean(),
            }
        )
    return pd.DataFrame(rows)


def _curves(table: Table, series: str, figure: go.Figure, looks: Sequence[Series], *, errors: bool) -> None:
    for look in looks:
        own = table[table[series].astype(str) == look.name]
        low, high = own["kl_low_nats"], own["kl_high_nats"]
        if errors:
            low, high = own["kl_nats"] - own["kl_se_nats"], own["kl_nats"] + own["kl_se_nats"]
        low = low.clip(lower=0)  # no KL is below
        add_band(figure, own["bits"].tolist(), low.tolist(), high.tolist(), look)
        add_curve(figure, own["bits"].tolist(), own["kl_nats"].tolist(), look)


def fig1(data: SweepData) -> Drawn:
    """Loss over entropy, a curve a model, standard-error bands; floor and head optimum where there is one model."""
    table = curve_table(data.targets, "model")
    figure = new_figure(data.title, TARGET_BITS, LOSS)
    if len(data.models) == 1:
        add_floor(figure, data.targets)
    _curves(table, "model", figure, series_of(data.models), errors=True)
    caption = (
        f"Fig. 1. Vanilla targets (Eq. 1), soft prompts. {protocol(data)} Line: mean over "
        f"{counted(table['targets'].max())}; band: one standard error (scipy.stats.sem). Certified floor: no prompt "
        "comes below it; head optimum: an estimate of the best that the final norm and the unembedding allow."
    )
    return Drawn(figure, table, caption)


def floors(data: SweepData) -> Drawn | None:
    """Ours: which share of the loss the certified floor and the head optimum explain."""
    known = data.targets.dropna(subset=["floor_nats"])
    if known.empty:
        return None
    known = known.assign(
        floor_share=(known["floor_nats"] / known["kl_nats"]).clip(0, 1),
        head_share=(known["head_optimum_nats"] / known["kl_nats"]).clip(0, 1),
    )
    rows = []
    figure = new_figure(
        "Share of the loss that the softmax head explains",
        TARGET_BITS, "share of the loss explained (%)",
    )  # fmt: skip
    for model, own in known.groupby("model", sort=False):
        for role, column in (("floor", "floor_share"), ("head", "head_share")):
            found = [(bits, mean_interval(group[column])) for bits, group in own.groupby("bits")]
            rows += [
                {"model": model, "by": column, "bits": bits, "share": s.value, "low": s.low, "high": s.high,
                 "targets": s.count} for bits, s in found
            ]  # fmt: skip
            name = "certified floor" if role == "floor" else "head optimum (estimate)"
            name = name if len(data.models) == 1 else f"{name}, {model}"
            figure.add_scatter(
                x=[bits for bits, _ in found],
                y=[100 * share.value for _, share in found],
                name=name,
                mode="lines+markers",
                line={"color": colour(role), "width": 3 if role == "floor" else 2, "dash": DASHES[role]},
                fill="tozeroy" if role == "floor" and len(data.models) == 1 else None,
                fillcolor=tint(colour(role), 0.12),
            )
    figure.update_yaxes(range=[0, 105])
    caption = (
        f"Ours. Share of the loss of Fig. 1 that the certified floor, and the head optimum, account for. "
        f"{protocol(data)} Mean over {counted(max(row['targets'] for row in rows))}; 95 % t intervals (scipy.stats.t) "
        "stand in the CSV. What is left is what the Transformer or the search does not reach."
    )
    return Drawn(figure, pd.DataFrame(rows), caption)


def fig5(data: SweepData) -> Drawn:
    """Loss and the entropy of q over the target's entropy, with 95 % intervals."""
    table = curve_table(data.targets, "model")
    figure: Any = new_figure(data.title, TARGET_BITS, LOSS)
    loss, entropy = series_of(["loss (left axis)", "entropy of q (right axis)"])
    bits = table["bits"].tolist()
    add_band(figure, bits, table["kl_low_nats"].tolist(), table["kl_high_nats"].tolist(), loss)
    add_curve(figure, bits, table["kl_nats"].tolist(), loss)
    before = len(figure.data)
    add_band(figure, bits, table["achieved_low_bits"].tolist(), table["achieved_high_bits"].tolist(), entropy)
    add_curve(figure, bits, table["achieved_bits"].tolist(), entropy)
    add_identity(figure, 0, max(bits))
    for trace in figure.data[before:]:
        trace.update(yaxis="y2")
    axis = figure.layout.yaxis.to_plotly_json() | {
        "title": {"text": "entropy of q (bits)"}, "overlaying": "y", "side": "right", "showgrid": False, "dtick": 4,
    }  # fmt: skip
    figure.update_layout(yaxis2=axis, margin={"r": 64})
    caption = (
        f"Fig. 5. Vanilla targets, soft prompts. {protocol(data)} Lines: means over {counted(table['targets'].max())} "
        f"of the loss and of the entropy of q at the best restart; {BANDS}"
    )
    return Drawn(figure, table, caption)


def fig6(data: SweepData) -> Drawn:
    """The same architecture with random and with pretrained weights."""
    table = curve_table(data.targets, "model")
    figure = new_figure(data.title, TARGET_BITS, LOSS)
    looks = series_of(data.models)
    for look in looks:
        add_floor(figure, data.targets[data.targets["model"] == look.name], look)
    _curves(table, "model", figure, looks, errors=False)
    caption = (
        f"Fig. 6. Vanilla targets, soft prompts; `random:` is the architecture's own initialisation. {protocol(data)} "
        f"Lines: means over {counted(table['targets'].max())}; {BANDS} Certified floors: no prompt of that model comes "
        "below."
    )
    return Drawn(figure, table, caption)


def fig11(data: SweepData) -> Drawn:
    """Loss over entropy for several prefix lengths."""
    table = curve_table(data.targets, "length")
    lengths = sorted(data.targets["length"].unique())
    figure = new_figure(data.title, TARGET_BITS, LOSS)
    looks = series_of([str(length) for length in lengths])
    _curves(table, "length", figure, looks, errors=False)
    figure.update_layout(legend={"title": {"text": "soft tokens"}})
    caption = (
        f"Fig. 11. Vanilla targets, soft prompts of {', '.join(map(str, lengths))} tokens. {protocol(data)} Lines: "
        f"means over {counted(table['targets'].max())}; {BANDS}"
    )
    return Drawn(figure, table, caption)
