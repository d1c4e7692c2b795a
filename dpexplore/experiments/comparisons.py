"""The paper's figures that set kinds of targets or of prompts against each other: Fig. 3, 4, 7 to 10, 12, 13."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dpexplore.experiments.curves import counted, protocol
from dpexplore.experiments.data import BITS_PER_NAT, SweepData
from dpexplore.experiments.drawing import (
    LOSS,
    ON_DARK,
    TARGET_BITS,
    Drawn,
    add_band,
    add_curve,
    add_identity,
    add_points,
    add_ranges,
    new_figure,
    series_of,
)
from dpexplore.experiments.readings import FAMILIES, MASSES, by_epoch, epoch_reading, mass_of_group
from dpexplore.experiments.statistics import bootstrap_interval, line, mean_interval
from dpexplore.plots import base_layout, colour
from dpexplore.targets.by_pos import TAGS

FEW_ENTROPIES = 4
"""Points up to which Fig. 4 draws ranges as bars; bands between few points hide one another."""
GROUP_NAMES = {
    "generated": "LM-generated",
    **FAMILIES,
    "shuffled": "shuffled LM-generated",
    "migrated": "migrated",
}


def named(group: str) -> str:
    """A group as the paper calls it."""
    return GROUP_NAMES.get(group, group)


def fig3(data: SweepData) -> Drawn | None:
    """Two distributions of one entropy by rank."""
    shapes = data.rows[data.rows["kind"] == "shape"]
    if shapes.empty:
        return None
    bits = shapes["target_entropy_nats"].mean() * BITS_PER_NAT
    figure = new_figure(f"Two shapes of one entropy, {bits:.2f} bits", "rank of the token", "probability")
    rows = []
    for look, (_, shape) in zip(series_of(list(shapes["group"])), shapes.iterrows(), strict=False):
        ranks = [int(rank) for rank in shape["names"]]
        loss = data.group(look.name)["kl_nats"]
        legend = f"{named(look.name)}: loss {loss.iloc[0]:.2f} nats" if len(loss) else named(look.name)
        figure.add_scatter(
            x=ranks, y=list(shape["values"]), name=legend, mode="lines",
            line={"color": look.colour, "width": 2.5, "dash": look.dash},
        )  # fmt: skip
        rows += [
            {"group": look.name, "rank": rank, "probability": p} for rank, p in zip(ranks, shape["values"], strict=True)
        ]
    figure.update_xaxes(type="log", dtick=1).update_yaxes(
        type="log", exponentformat="power", range=[-9, 0], tickfont={"size": 10}, title={"standoff": 10}
    ).update_layout(margin={"l": 72})
    caption = (
        "Fig. 3. What the model says after “I love”, and vanilla targets (Eq. 1) of its entropy, of both families. "
        f"{protocol(data)} Entropy alone does not say how hard a target is."
    )
    return Drawn(figure, pd.DataFrame(rows), caption)


def in_epoch(draw: Callable[[SweepData], Drawn], epoch: str) -> Callable[[SweepData], Drawn | None]:
    """A figure of the results under one meaning of an epoch of Eq. 4, `token` or `sweep`; None where there are none."""

    def drawn(data: SweepData) -> Drawn | None:
        own = by_epoch(data).get(epoch)
        return own and dataclasses.replace(draw(own), reading=epoch_reading(epoch))

    return drawn


def fig4(data: SweepData) -> Drawn:
    """Loss over entropy for 0 to 5 soft tokens among the prompt's, with the range of all restarts."""
    restarts = data.restarts.assign(soft=data.restarts["slots"].map(soft_tokens))
    targets = data.targets.assign(soft=data.targets["slots"].map(soft_tokens))
    counts = sorted(targets["soft"].unique())
    names = [_kind_name(soft, max(counts)) for soft in counts]
    figure = new_figure(data.title, TARGET_BITS, LOSS)
    few = targets["bits"].nunique() <= FEW_ENTROPIES
    most = counted(int(targets.groupby(["soft", "bits"]).size().max()))
    rows = []
    for look, soft in zip(series_of(names), counts, strict=True):
        own, every = targets[targets["soft"] == soft], restarts[restarts["soft"] == soft]
        means = own.groupby("bits")["kl_nats"].mean()
        spread = every.groupby("bits")["kl_nats"]
        if few:
            add_ranges(figure, list(means.index), means, spread.min(), spread.max(), look, of=len(counts))
        else:
            add_band(figure, list(means.index), spread.min().tolist(), spread.max().tolist(), look)
            add_curve(figure, list(means.index), means.tolist(), look)
        rows += [
            {"soft_tokens": soft, "bits": bits, "kl_nats": mean, "lowest_restart_nats": spread.min()[bits],
             "mean_restart_nats": spread.mean()[bits], "highest_restart_nats": spread.max()[bits],
             "targets": int((own["bits"] == bits).sum())} for bits, mean in means.items()
        ]  # fmt: skip
    caption = (
        f"Fig. 4. Vanilla targets; hard prompts by Eq. 4, soft ones by AdamW, hybrids by both. {protocol(data)} "
        f"Lines: mean over {most} of the best restart; {'bars, drawn side by side' if few else 'bands'}: from the "
        "lowest to the highest restart of all."
    )
    return Drawn(figure, pd.DataFrame(rows), caption)


def soft_tokens(slots: str) -> int:
    """How many there are in `soft*2 hard*3`."""
    return sum(int(part.split("*")[1]) for part in slots.split() if part.startswith("soft"))


def _kind_name(soft: int, most: int) -> str:
    if soft == 0:
        return "hard"
    return "soft" if soft == most else f"hybrid, {soft} soft token{'s' if soft > 1 else ''}"


def fig7(data: SweepData) -> Drawn:
    """Loss (above) and entropy of q (below) over the target's entropy, by number of outlier tokens."""
    groups = list(dict.fromkeys(data.targets["group"]))
    groups = sorted(groups, key=lambda name: (name != "vanilla", int(name.split()[0]) if name[0].isdigit() else 0))
    figure = _two_panels(data.title, LOSS, "entropy of q (bits)")
    rows = []
    for look, group in zip(series_of([_outliers_named(data, group) for group in groups]), groups, strict=True):
        own = data.group(group)
        for panel, column in ((1, "kl_nats"), (2, "achieved_bits")):
            part: Any = go.Figure()
            found = [(bits, bootstrap_interval(values)) for bits, values in own.groupby("bits")[column]]
            xs = [bits for bits, _ in found]
            add_band(part, xs, [f.low for _, f in found], [f.high for _, f in found], look)
            add_curve(part, xs, [f.value for _, f in found], look)
            for trace in part.data:
                figure.add_trace(trace.update(showlegend=panel == 1 and trace.name is not None), row=panel, col=1)
            rows += [
                {"group": group, "bits": bits, "quantity": column, "mean": f.value, "low": f.low, "high": f.high,
                 "targets": f.count} for bits, f in found
            ]  # fmt: skip
    _diagonal(figure, data)
    caption = (
        "Fig. 7. Targets with k outlier tokens (Eq. 3) and vanilla ones, soft prompts; the outliers' mass m is that of "
        "one outlier, as in App. A, or their own, the most that k tokens can hold. "
        f"{protocol(data)} Means over "
        f"{counted(max(row['targets'] for row in rows))}; bands, from three targets on: 95 % BCa bootstrap intervals "
        "(scipy.stats.bootstrap)."
    )
    return Drawn(figure, pd.DataFrame(rows), caption)


def _outliers_named(data: SweepData, group: str) -> str:
    """A group of Fig. 7 with the m that it has."""
    several = group[0].isdigit() and not group.startswith("1 ")
    return f"{group.split(',')[0]}, {MASSES[mass_of_group(data, group)]}" if several else named(group)


def fig8(data: SweepData) -> Drawn:
    """LM-generated against vanilla targets of the same entropy: loss with regression lines, and entropies."""
    groups = [name for name in (*FAMILIES, "generated") if name in set(data.targets["group"])]
    figure = _two_panels(data.title, LOSS, "entropy of q (bits)")
    for look, group in zip(series_of([named(group) for group in groups]), groups, strict=True):
        own = data.group(group)
        slope, intercept, r2 = line(own["target_bits"], own["kl_nats"])
        for panel, column in ((1, "kl_nats"), (2, "achieved_bits")):
            part: Any = go.Figure()
            add_points(part, own["target_bits"].tolist(), own[column].tolist(), look)
            figure.add_trace(part.data[0].update(showlegend=panel == 1), row=panel, col=1)
        if pd.notna(slope):
            ends = [own["target_bits"].min(), own["target_bits"].max()]
            figure.add_scatter(
                x=ends, y=[intercept + slope * x for x in ends], mode="lines", row=1, col=1,
                name=f"{look.name}: R² {r2:.2f}", line={"color": look.colour, "width": 2, "dash": "dash"},
            )  # fmt: skip
    _diagonal(figure, data)
    caption = (
        "Fig. 8. What the model says after five random tokens, and vanilla targets of the same entropies, hard prompts "
        f"by Eq. 4. {protocol(data)} A point is a target; above its loss, below the entropy of q at its best restart. "
        "Dashed: least-squares lines with their R² (scipy.stats.linregress)."
    )
    columns = ["model", "group", "seed", "target_bits", "kl_nats", "achieved_bits", "restarts"]
    return Drawn(figure, data.targets[columns], caption)


def fig9(data: SweepData) -> Drawn:
    """LM-generated, shuffled and vanilla targets of one entropy each."""
    figure = new_figure(data.title, TARGET_BITS, LOSS)
    return _scatter_of_groups(data, figure, (*FAMILIES, "generated", "shuffled"), "Fig. 9")


def fig10(data: SweepData) -> Drawn:
    """Migrated targets from several source models against vanilla ones of the same entropies."""
    figure = new_figure(data.title, TARGET_BITS, LOSS)
    targets = data.targets.assign(
        series=[
            f"migrated from {row.source}" if row.group == "migrated" else f"{named(str(row.group))}, matched"
            for row in data.targets.itertuples()
        ]
    )
    names = sorted(targets["series"].unique(), key=lambda name: (not name.startswith("vanilla"), name))
    for look in series_of(names):
        own = targets[targets["series"] == look.name]
        add_points(figure, own["target_bits"].tolist(), own["kl_nats"].tolist(), look)
    caption = (
        "Fig. 10. What other models say after five random tokens, moved to this model's vocabulary, and vanilla "
        f"targets of the same entropies; soft prompts. {protocol(data)} A point is a target. "
        + ("Sources whose name begins with random: are untrained. " if _untrained(data) else "")
    )
    columns = ["model", "series", "source", "seed", "target_bits", "kl_nats", "achieved_bits", "floor_nats"]
    return Drawn(figure, targets[columns], caption.strip())


def _untrained(data: SweepData) -> bool:
    return any(str(source).startswith("random:") for source in data.targets["source"])


def _scatter_of_groups(data: SweepData, figure: go.Figure, order: tuple[str, ...], number: str) -> Drawn:
    groups = [name for name in order if name in set(data.targets["group"])]
    for look, group in zip(series_of([named(group) for group in groups]), groups, strict=True):
        own = data.group(group)
        mean = mean_interval(own["kl_nats"])
        interval = f" ({mean.low:.2f} to {mean.high:.2f})" if mean.count > 1 else ""
        legend = f"{look.name}: mean {mean.value:.2f}{interval} nats"
        add_points(figure, own["target_bits"].tolist(), own["kl_nats"].tolist(), dataclasses.replace(look, name=legend))
    caption = (
        f"{number}. What the model says after five random tokens, the same probabilities on shuffled tokens, and "
        f"vanilla targets of the same entropies; soft prompts. {protocol(data)} A point is a target; "
        "the legend has their means with 95 % t intervals (scipy.stats.t)."
    )
    columns = ["model", "group", "seed", "target_bits", "kl_nats", "achieved_bits", "floor_nats", "restarts"]
    return Drawn(figure, data.targets[columns], caption)


def fig12(data: SweepData) -> Drawn | None:
    """The eight most common parts of speech among a vocabulary's English tokens."""
    counts = data.rows[data.rows["kind"] == "pos_counts"]
    if counts.empty:
        return None
    figure = new_figure(data.title, "part of speech", "tokens")
    rows, out = [], []
    for look, (_, row) in zip(series_of(list(counts["model"])), counts.iterrows(), strict=True):
        tagged = {name: count for name, count in zip(row["names"], row["values"], strict=True) if name in TAGS}
        pairs = list(tagged.items())[:8]
        out += [
            f"{count:,.0f} with {name} ({row['model']})"
            for name, count in zip(row["names"], row["values"], strict=True)
            if name not in TAGS
        ]
        figure.add_bar(
            x=[tag for tag, _ in pairs], y=[count for _, count in pairs], name=look.name,
            marker={"color": look.colour}, text=[f"{count:,.0f}" for _, count in pairs], textposition="outside",
        )  # fmt: skip
        rows += [{"model": row["model"], "tag": tag, "tokens": int(count)} for tag, count in pairs]
    figure.update_layout(showlegend=len(counts) > 1).update_xaxes(showgrid=False)
    caption = (
        "Fig. 12. Tokens of the vocabulary that are English words, by the part of speech that each gets when tagged "
        "alone (the paper's way), by spaCy with scispaCy's tokenizer; the eight most common."
        + (f" Tokens of letters that are left out: {', '.join(out)}." if out else "")
    )
    return Drawn(figure, pd.DataFrame(rows), caption)


def fig13(data: SweepData) -> Drawn:
    """Box plot of the loss of uniform targets over each part of speech, a box a model."""
    figure = new_figure(data.title, "part of speech", LOSS)
    tags = list(dict.fromkeys(["ADJ", "NOUN", "PROPN", "VERB", *data.targets["tag"]]))
    tags = [tag for tag in tags if tag in set(data.targets["tag"])]
    for look in series_of(data.models):
        own = data.targets[data.targets["model"] == look.name].copy()
        own["tag"] = pd.Categorical(own["tag"], categories=tags, ordered=True)
        own = own.sort_values("tag")
        figure.add_box(
            x=own["tag"].astype(str).tolist(), y=own["kl_nats"].tolist(), name=look.name, boxpoints="all",
            jitter=0.3, pointpos=0, marker={"color": look.colour, "size": 5}, line={"width": 1.5},
        )  # fmt: skip
    floor = data.targets.dropna(subset=["floor_nats"]).groupby("tag")["floor_nats"].mean()
    if len(floor) and len(data.models) == 1:
        figure.add_scatter(
            x=[tag for tag in tags if tag in floor], y=[floor[tag] for tag in tags if tag in floor],
            name="certified floor (mean)", mode="markers",
            marker={"symbol": "line-ew-open", "size": 36, "line": {"width": 3}, "color": colour("floor")},
        )  # fmt: skip
    figure.update_layout(boxmode="group" if len(data.models) > 1 else "overlay").update_xaxes(showgrid=False)
    caption = (
        "Fig. 13. Uniform targets over 100 tokens drawn from one part of speech, soft prompts. "
        f"{protocol(data)} A point is a draw of 100 tokens; boxes: quartiles over "
        f"{data.targets.groupby(['model', 'tag']).size().max()} draws."
    )
    columns = ["model", "tag", "seed", "target_bits", "kl_nats", "achieved_bits", "floor_nats", "restarts"]
    return Drawn(figure, data.targets[columns], caption)


def _two_panels(title: str, above: str, below: str) -> Any:
    figure: Any = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    look: Any = base_layout(title, "", above)
    figure.update_layout(
        title=look.title, font=look.font, paper_bgcolor=look.paper_bgcolor, plot_bgcolor=look.plot_bgcolor,
        hovermode="closest", legend=look.legend, margin={"l": 64, "r": 20, "t": 56, "b": 90},
    )  # fmt: skip
    lines = {key: look.xaxis[key] for key in ("gridcolor", "zerolinecolor", "linecolor", "ticks", "tickcolor")}
    figure.update_xaxes(**lines).update_yaxes(**lines, rangemode="tozero")
    figure.update_xaxes(title={"text": TARGET_BITS}, row=2, col=1)
    figure.update_yaxes(title={"text": above}, row=1, col=1)
    figure.update_yaxes(title={"text": below}, row=2, col=1)
    return figure.update_layout(legend={"y": -0.16}, meta={"dark": ON_DARK})


def _diagonal(figure: Any, data: SweepData) -> None:
    part: Any = go.Figure()
    add_identity(part, data.targets["target_bits"].min(), data.targets["target_bits"].max())
    figure.add_trace(part.data[0], row=2, col=1)
