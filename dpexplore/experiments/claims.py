"""The paper's claims, each with what the data of a store say: effect size, interval, verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from dpexplore.experiments.comparisons import soft_tokens
from dpexplore.experiments.data import SweepData
from dpexplore.experiments.statistics import (
    LEVEL,
    Interval,
    Verdict,
    correlation,
    mean_interval,
    paired,
    rise_and_fall,
)
from dpexplore.experiments.tables import Table

LIKE = 0.8
"""Two curves have one shape where the interval of their correlation lies above this."""
ALIKE = f"It counts as supported where the interval lies above {LIKE:g}."
MODERATE = (4.0, 12.0)
"""Bits: between the easy ends of Fig. 1."""


@dataclass(frozen=True)
class Claim:
    """One claim and what is seen of it here."""

    figure: str
    """The sweep that it was looked for in."""
    claim: str
    verdict: Verdict
    effect: str
    """What `value` is."""
    unit: str
    value: float
    low: float
    high: float
    """The ends of the 95 % interval."""
    count: int
    """Values that the interval is over."""
    method: str
    note: str = ""

    @property
    def finding(self) -> str:
        """Effect and interval as one phrase."""
        if not np.isfinite(self.value):
            return f"no data; {self.note}" if self.note else "no data"
        interval = f", 95 % interval {self.low:.2f} to {self.high:.2f}" if np.isfinite(self.low) else ""
        unit = f" {self.unit}" if self.unit else ""
        told = f"{self.effect}: {self.value:.2f}{unit}{interval} (n = {self.count}; {self.method})"
        return f"{told}. {self.note}" if self.note else told

    def to_dict(self) -> dict[str, Any]:
        plain = {key: None if isinstance(value, float) and not np.isfinite(value) else value
                 for key, value in asdict(self).items()}  # fmt: skip
        return {**plain, "finding": self.finding}


def claims_of(data: SweepData) -> list[Claim]:
    """What a sweep says of the claims that its figure is about; empty for figures without one."""
    return list(_CLAIMS[data.figure](data)) if data.figure in _CLAIMS and len(data.targets) else []


def _claim(
    data: SweepData, text: str, effect: str, found: Interval, method: str, note: str = "", beyond: float = 0.0
) -> Claim:
    """`effect` may end in its unit, in square brackets."""
    effect, _, unit = effect.removesuffix("]").partition(" [")
    return Claim(
        data.name,
        text,
        found.verdict(beyond),
        effect,
        unit,
        found.value,
        found.low,
        found.high,
        found.count,
        method,
        note,
    )


def _fig1(data: SweepData) -> Iterator[Claim]:
    for model in data.models:
        yield from _unimodal(data, model, "The loss rises with the target's entropy up to a point and then falls")
    known = data.targets.dropna(subset=["floor_nats"])
    known = known[known["bits"].between(*MODERATE)]
    if len(known):
        shares = (known["floor_nats"] / known["kl_nats"]).groupby(known["seed"]).mean()
        head = (known["head_optimum_nats"] / known["kl_nats"]).clip(upper=1).mean()
        yield _claim(
            data,
            "The softmax head accounts for much of the difficulty between 4 and 12 bits (ours; open in the paper, §6)",
            "share of the loss below the certified floor",
            mean_interval(shares),
            "mean over seeds, t interval",
            f"The head optimum, an estimate, accounts for {head:.0%}.",
        )


def _unimodal(data: SweepData, model: str, text: str) -> Iterator[Claim]:
    own = data.targets[data.targets["model"] == model]
    found = rise_and_fall(own, "bits", "kl_nats", "seed")
    if found is not None:
        yield _claim(
            data,
            f"{text} ({model})",
            "rise or fall, whichever is smaller [nats]",
            found.smaller,
            "peak chosen on the other seeds; t interval",
            f"The peak is at {found.peak:g} bits; a rising-then-falling curve explains {found.fit_r2:.0%} of the "
            "variance of the means.",
        )


def _fig4(data: SweepData) -> Iterator[Claim]:
    targets = data.targets.assign(soft=data.targets["slots"].map(soft_tokens).astype(float))
    curves = targets.pivot_table(index=["seed", "bits"], columns="soft", values="kl_nats").dropna()
    if len(curves) < 2 or curves.shape[1] < 3:
        return
    slopes = [np.polyfit(curves.columns, row, 1)[0] for row in curves.to_numpy()]
    trend = stats.page_trend_test(curves.to_numpy(), predicted_ranks=np.arange(curves.shape[1], 0, -1))
    whole = mean_interval(curves.iloc[:, 0] - curves.iloc[:, -1])
    yield _claim(
        data,
        "Soft prompts come closer than hybrid ones, and those closer than hard ones",
        "loss saved by each soft token [nats]",
        mean_interval([-slope for slope in slopes]),
        "slope within each target, t interval",
        f"Soft in place of hard saves {whole.value:.2f} nats ({whole.low:.2f} to {whole.high:.2f}); Page's trend test "
        f"over {', '.join(f'{soft:.0f}' for soft in curves.columns)} soft tokens: p = {trend.pvalue:.1g}.",
    )


def _fig5(data: SweepData) -> Iterator[Claim]:
    middle = data.targets[data.targets["bits"].between(*MODERATE)]
    excess = (middle["achieved_bits"] - middle["target_bits"]).groupby(middle["seed"]).mean()
    yield _claim(
        data,
        "Between 4 and 12 bits the answer's entropy is above the target's",
        "entropy of q minus the target's [bits]",
        mean_interval(excess),
        "mean over seeds, t interval",
    )


def _fig6(data: SweepData) -> Iterator[Claim]:
    for model in data.models:
        if not model.startswith("random:"):
            continue
        yield from _unimodal(data, model, "Random weights give a unimodal curve as well")
        trained = model.removeprefix("random:")
        if trained in data.models:
            both = data.targets.pivot_table(index="bits", columns="model", values="kl_nats").dropna()
            found = correlation(both[model].to_numpy(), both[trained].to_numpy())
            yield _claim(
                data, f"Its shape is that of the pretrained model ({trained})", "correlation of the two curves", found,
                "Pearson's r over entropies, Fisher interval", ALIKE, LIKE,
            )  # fmt: skip


def _fig7(data: SweepData) -> Iterator[Claim]:
    ks = sorted(
        (name for name in set(data.targets["group"]) if name[0].isdigit()), key=lambda name: int(name.split()[0])
    )
    saved = {k: paired(data.targets, "kl_nats", "group", "vanilla", k, ["bits", "seed"]) for k in ks}
    for k, difference in saved.items():
        yield _claim(
            data, f"Targets with {k} are easier than vanilla ones of the same entropy",
            "loss of vanilla minus that with outliers [nats]", mean_interval(difference),
            "paired by entropy and seed, t interval",
        )  # fmt: skip
    if len(ks) > 1:
        yield _claim(
            data, f"The effect is strongest for a single token ({ks[0]} against {ks[-1]})", "loss saved [nats]",
            mean_interval((saved[ks[0]] - saved[ks[-1]]).dropna()), "paired by entropy and seed, t interval",
        )  # fmt: skip


def _against_vanilla(data: SweepData, group: str, text: str, on: list[str], note: str = "") -> Claim:
    difference = paired(data.targets, "kl_nats", "group", "vanilla", group, on)
    told = note
    if len(difference) > 5 and np.ptp(difference) > 0:
        test: Any = stats.wilcoxon(difference, alternative="greater")
        easier = f"Easier in {int((difference > 0).sum())} of {len(difference)} pairs"
        told = f"{easier}; Wilcoxon p = {test.pvalue:.1g}. {note}".strip()
    return _claim(
        data,
        text,
        "loss of matched vanilla minus theirs [nats]",
        mean_interval(difference),
        "paired, t interval",
        told,
    )


def _fig8(data: SweepData) -> Iterator[Claim]:
    yield _against_vanilla(
        data,
        "generated",
        "LM-generated targets are easier than vanilla ones of the same entropy, by hard prompts",
        ["seed"],
    )
    off = (data.targets["achieved_bits"] - data.targets["target_bits"]).abs()
    difference = paired(data.targets.assign(off=off), "off", "group", "vanilla", "generated", ["seed"])
    yield _claim(
        data, "The entropy that hard prompts reach is nearer the target's for LM-generated targets",
        "error in entropy, vanilla minus LM-generated [bits]", mean_interval(difference), "paired, t interval",
    )  # fmt: skip


def _fig9(data: SweepData) -> Iterator[Claim]:
    easier = "LM-generated targets are easier than vanilla ones of the same entropy, by soft prompts"
    yield _against_vanilla(data, "generated", easier, ["seed"])
    yield _against_vanilla(data, "shuffled", "Shuffled LM-generated targets are easier than vanilla ones", ["seed"])


def _fig10(data: SweepData) -> Iterator[Claim]:
    for source in dict.fromkeys(data.targets["source"]):
        own = SweepData(
            data.name, data.figure, data.title, data.size, data.asked, data.rows[data.rows["source"] == source],
            data.labels,
        )  # fmt: skip
        untrained = str(source).startswith("random:")
        note = "This source is untrained; the paper's sources are pretrained." if untrained else ""
        found = _against_vanilla(
            own, "migrated", f"Targets migrated from {source} are easier than vanilla ones", ["seed"], note
        )
        yield _undecided(found) if untrained else found


def _undecided(claim: Claim) -> Claim:
    """The numbers stand, but they are about something else than the claim."""
    return Claim(**{**asdict(claim), "verdict": "undecided"})


def _fig11(data: SweepData) -> Iterator[Claim]:
    curves = data.targets.pivot_table(index=["seed", "bits"], columns="length", values="kl_nats").dropna()
    if curves.shape[1] < 2:
        return
    middle = 5 if 5 in curves.columns else curves.columns[0]
    pairs = {length: correlation(curves[middle].to_numpy(), curves[length].to_numpy())
             for length in curves.columns if length != middle}  # fmt: skip
    length = min(pairs, key=lambda each: pairs[each].value)
    yield _claim(
        data,
        "The length of the prefix does not change the trend over entropy",
        f"correlation of the curves of {middle} and {length} tokens (the least alike)",
        pairs[length],
        "Pearson's r over targets, Fisher interval",
        ALIKE,
        LIKE,
    )


def _fig13(data: SweepData) -> Iterator[Claim]:
    for model in data.models:
        own = data.targets[data.targets["model"] == model]
        groups = {tag: group["kl_nats"].to_numpy() for tag, group in own.groupby("tag") if len(group) > 1}
        if "ADJ" in groups and len(groups) > 1:
            yield _adjectives(data, model, groups)
    yield from _instruct(data)


def _adjectives(data: SweepData, model: str, groups: dict[str, np.ndarray]) -> Claim:
    others = {tag: values for tag, values in groups.items() if tag != "ADJ"}
    found = stats.dunnett(*others.values(), control=groups["ADJ"], rng=np.random.default_rng(0))
    ends = found.confidence_interval(LEVEL)
    differences = [float(values.mean() - groups["ADJ"].mean()) for values in others.values()]
    nearest = int(np.argmin(differences))
    interval = Interval(differences[nearest], float(ends.low[nearest]), float(ends.high[nearest]),
                        len(groups["ADJ"]) + len(list(others.values())[nearest]))  # fmt: skip
    return _claim(
        data,
        f"Adjectives are the easiest part of speech ({model})",
        f"loss of {list(others)[nearest]}, the easiest other one, minus that of ADJ [nats]",
        interval,
        "Dunnett's intervals against ADJ",
    )


def _instruct(data: SweepData) -> Iterator[Claim]:
    pairs = [(model, f"{model}-instruct") for model in data.models if f"{model}-instruct" in data.models]
    for base, tuned in pairs:
        both = data.targets[data.targets["model"].isin((base, tuned))]
        difference = paired(both, "kl_nats", "model", tuned, base, ["tag", "seed"])
        yield _claim(
            data, f"The base model comes closer than its instruction-tuned variant ({base})",
            "loss of the variant minus that of the base [nats]", mean_interval(difference),
            "paired by part of speech and draw, t interval",
        )  # fmt: skip
    if not pairs:
        nothing = Interval(np.nan, np.nan, np.nan, 0)
        yield _claim(
            data, "Base models come closer than their instruction-tuned variants", "", nothing, "",
            "this needs a base model and its variant; the data here hold no such pair",
        )  # fmt: skip


_CLAIMS: dict[str, Callable[[SweepData], Iterator[Claim]]] = {
    "fig1": _fig1,
    "fig4": _fig4,
    "fig5": _fig5,
    "fig6": _fig6,
    "fig7": _fig7,
    "fig8": _fig8,
    "fig9": _fig9,
    "fig10": _fig10,
    "fig11": _fig11,
    "fig13": _fig13,
}


def claims_markdown(claims: list[Claim]) -> str:
    """The same for a reader: one row a claim."""
    lines = ["| the paper says | here | effect, 95 % interval |", "|---|---|---|"]
    for claim in claims:
        unit = f" {claim.unit}" if claim.unit else ""
        found = f"{claim.effect}: {claim.value:.2f}{unit} ({claim.low:.2f} to {claim.high:.2f}), n = {claim.count}"
        lines.append(f"| {claim.claim} | **{claim.verdict}** | {found if np.isfinite(claim.low) else claim.finding} |")
    return "\n".join(lines) + "\n"


def claims_table(claims: list[Claim]) -> Table:
    """One row a claim, as it is written to CSV."""
    return pd.DataFrame([claim.to_dict() for claim in claims])
