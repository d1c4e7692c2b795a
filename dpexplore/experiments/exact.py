"""Ours: Fig. 1 with its exact answer, the certified floor below, the direct token above, tuned prompts beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from plotly.subplots import make_subplots

from dpexplore.experiments.claim import MODERATE, OVER_SEEDS, Claim, claimed, where_all_agree
from dpexplore.experiments.curves import counted, curve_table, protocol
from dpexplore.experiments.data import SweepData
from dpexplore.experiments.drawing import LOSS, TARGET_BITS, Drawn, new_figure
from dpexplore.experiments.readings import FAMILIES
from dpexplore.experiments.statistics import Interval, mean_interval
from dpexplore.experiments.tables import Table
from dpexplore.plots import DASHES, colour, tint

REACHED = 0.002
"""Nats: a direct token this near the head's optimum has reached it."""
OPEN = 0.1
"""Share of the loss."""
TUNED, DIRECT = "tuned", "direct"
READ_AS: dict[str, str] = dict(zip(("gradient", "temperature"), FAMILIES.values(), strict=True))
"""The method of `entropy` -> what that family of vanilla targets is called."""


def by_gradient(data: SweepData) -> Drawn | None:
    """The targets of the paper's own family."""
    return _panels(data, "gradient")


def by_temperature(data: SweepData) -> Drawn | None:
    """The same for random logits brought to their entropy by a temperature."""
    return _panels(data, "temperature")


def _panels(data: SweepData, family: str) -> Drawn | None:
    """One panel a model: loss over the entropy of the target; None where there are no targets of this family."""
    targets = data.targets[data.targets["family"] == family]
    models = [model for model in data.models if model in set(targets["model"])]
    if not models:
        return None
    figure: Any = make_subplots(
        1, len(models), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=models, x_title=TARGET_BITS
    )
    look: Any = new_figure("", TARGET_BITS, LOSS).layout
    tables = []
    for number, model in enumerate(models, 1):
        own = targets[targets["model"] == model]
        table = curve_table(own, "group")
        tables.append(table.assign(model=model))
        _panel(figure, table, number)
        figure.update_xaxes({**look.xaxis.to_plotly_json(), "title": None}, col=number)
        figure.update_yaxes({**look.yaxis.to_plotly_json(), "title": None}, col=number)
    figure.update_yaxes(title={"text": LOSS}, col=1)
    keys = ("font", "paper_bgcolor", "plot_bgcolor", "margin", "legend", "hovermode", "meta")
    figure.update_layout(
        **{key: look[key] for key in keys},
        title={"text": f"{data.title} ({READ_AS[family]})", "x": 0, "xref": "paper"},
    )
    figure.update_layout(title={"font": {"size": 14}}, margin={"t": 80})
    figure.update_annotations(font={"size": 13})
    table: Table = pd.concat(tables, ignore_index=True)
    caption = (
        f"Ours. {READ_AS[family].capitalize()}; means over {counted(int(table['targets'].max()))} at each entropy. "
        "Certified floor: no prompt, of any length, comes below it. Direct token: one soft token that puts the "
        "softmax head's best point where the final norm finds it; no search. What a soft prompt can reach lies between "
        f"the two. Tuned: {protocol(data)[0].lower()}{protocol(data)[1:]} Band: one standard error (scipy.stats.sem)."
    )
    return Drawn(figure, table, caption, READ_AS[family])


def _panel(figure: Any, table: Table, number: int) -> None:
    """Floor, tuned prompts and direct token of one model, in that order."""
    shown = {"row": 1, "col": number, "showlegend": number == 1}
    floor = table.dropna(subset=["floor_nats"]).groupby("bits")["floor_nats"].mean()
    if len(floor):
        figure.add_scatter(
            x=list(floor.index),
            y=list(floor),
            name="certified floor: no prompt is below",
            legendgroup="floor",
            mode="lines",
            line={"color": colour("floor"), "width": 3, "dash": DASHES["floor"]},
            fill="tozeroy",
            fillcolor=tint(colour("floor"), 0.12),
            hovertemplate="certified floor<br>%{x:.3g} bits: %{y:.3f}<extra></extra>",
            **shown,
        )
    tuned = table[table["group"] == TUNED].sort_values("bits")
    bits, loss = tuned["bits"].tolist(), tuned["kl_nats"]
    low, high = (loss - tuned["kl_se_nats"]).clip(lower=0).tolist(), (loss + tuned["kl_se_nats"]).tolist()
    figure.add_scatter(
        x=bits + bits[::-1],
        y=high + low[::-1],
        mode="lines",
        fill="toself",
        fillcolor=tint(colour("achieved"), 0.18),
        line={"width": 0},
        hoverinfo="skip",
        legendgroup=TUNED,
        **{**shown, "showlegend": False},
    )
    direct = table[table["group"] == DIRECT].sort_values("bits")
    for name, group, own, style in (
        ("tuned soft prompt, 5 tokens", TUNED, tuned, {"mode": "lines+markers"}),
        ("direct token: one, no search", DIRECT, direct, {"mode": "markers"}),
    ):
        role = "achieved" if group == TUNED else "head"
        figure.add_scatter(
            x=own["bits"].tolist(),
            y=own["kl_nats"].tolist(),
            name=name,
            legendgroup=group,
            line={"color": colour(role), "width": 2},
            marker={
                "color": colour(role),
                "size": 7 if group == TUNED else 11,
                "symbol": "circle" if group == TUNED else "diamond-open",
                "line": {"width": 2},
            },
            cliponaxis=False,
            hovertemplate=f"{name}<br>%{{x:.3g}} bits: %{{y:.3f}}<extra></extra>",
            **style,
            **shown,
        )


def exact_claims(data: SweepData) -> Iterator[Claim]:
    """Whether the direct token reaches the head's optimum, what it leaves open, and what tuning leaves of it."""
    keys = ["model", "family", "seed", "bits"]
    values = ["kl_nats", "floor_nats", "head_optimum_nats"]
    wide = data.targets.pivot_table(index=keys, columns="group", values=values).dropna()
    if wide.empty or not {TUNED, DIRECT} <= set(wide["kl_nats"].columns):
        return
    direct = wide["kl_nats", DIRECT]
    seen = pd.DataFrame(
        {
            "off": direct - wide["head_optimum_nats", DIRECT],
            "open": (direct - wide["floor_nats", DIRECT]) / direct,
            "short": wide["kl_nats", TUNED] - direct,
        }
    ).reset_index()
    for model in data.models:
        families = [(reading, seen[(seen["model"] == model) & (seen["family"] == family)])
                    for family, reading in READ_AS.items()]  # fmt: skip
        made = [list(_claims_in(data, model, reading, own)) for reading, own in families if len(own)]
        for claims in zip(*made, strict=True):
            yield from where_all_agree(claims, list(READ_AS.values()))


def _claims_in(data: SweepData, model: str, reading: str, own: Table) -> Iterator[Claim]:
    """The three claims of one model in one family of targets."""
    middle = own[own["bits"].between(*MODERATE)]

    def by_seed(column: str, rows: Table = own) -> Interval:
        return mean_interval(rows.groupby("seed")[column].mean())

    yield claimed(
        data, f"One soft token reaches the softmax head's optimum ({model}; ours)",
        "direct token minus head optimum [nats]", by_seed("off"), OVER_SEEDS,
        f"It counts as supported where the interval lies below {REACHED:g} nats.", below=REACHED, reading=reading,
    )  # fmt: skip
    yield claimed(
        data, f"Between 4 and 12 bits floor and direct token leave less than a tenth of the loss open ({model}; ours)",
        "share of the direct token's loss above the certified floor", by_seed("open", middle), OVER_SEEDS,
        below=OPEN, reading=reading,
    )  # fmt: skip
    yield claimed(
        data, f"Between 4 and 12 bits tuning stops short of what one token reaches ({model}; ours)",
        "tuned soft prompt minus direct token [nats]", by_seed("short", middle), OVER_SEEDS, reading=reading,
    )  # fmt: skip
