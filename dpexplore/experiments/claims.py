"""What the data of a sweep say of each claim that the paper makes about its figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from dpexplore.experiments.claim import MODERATE, OVER_SEEDS, Claim, claimed, where_all_agree
from dpexplore.experiments.comparisons import soft_tokens
from dpexplore.experiments.data import SweepData
from dpexplore.experiments.exact import exact_claims
from dpexplore.experiments.readings import (
    EPOCHS,
    FAMILIES,
    GRADIENT,
    MASSES,
    by_epoch,
    epoch_reading,
    mass_of_group,
)
from dpexplore.experiments.statistics import (
    LEVEL,
    Interval,
    curve_correlation,
    difference_of_means,
    mean_interval,
    over_seeds,
    paired,
    r_squared,
    rise_and_fall,
)

LIKE = 0.8
"""Two curves have one shape where the interval of their correlation lies above this."""
ALIKE = f"It counts as supported where the interval lies above {LIKE:g}."
LOW_BITS = 1.0
NEAR_ZERO = 0.1
"""Nats: a loss below this counts as near zero; the peak of Fig. 1 is about 50 times as high."""
LOW_R2 = 0.25
"""A line that explains less than this of the variance is a weak correlation."""
PAIRED = "paired by seed, t interval over seeds"


def claims_of(data: SweepData) -> list[Claim]:
    """What a sweep says of the claims that its figure is about; empty for figures without one."""
    return list(_CLAIMS[data.figure](data)) if data.figure in _CLAIMS and len(data.targets) else []


def _fig1(data: SweepData) -> Iterator[Claim]:
    for model in data.models:
        yield from _unimodal(data, model, "The loss rises with the target's entropy up to a point and then falls")
    known = data.targets.dropna(subset=["floor_nats"])
    known = known[known["bits"].between(*MODERATE)]
    if len(known):
        shares = (known["floor_nats"] / known["kl_nats"]).groupby(known["seed"]).mean()
        head = (known["head_optimum_nats"] / known["kl_nats"]).clip(upper=1).mean()
        yield claimed(
            data,
            "The softmax head accounts for much of the difficulty between 4 and 12 bits (ours; open in the paper, §6)",
            "share of the loss below the certified floor",
            mean_interval(shares),
            OVER_SEEDS,
            f"The head optimum, an estimate, accounts for {head:.0%}.",
            reading=GRADIENT,
        )


def _unimodal(data: SweepData, model: str, text: str) -> Iterator[Claim]:
    own = data.targets[data.targets["model"] == model]
    found = rise_and_fall(own, "bits", "kl_nats", "seed")
    if found is not None:
        yield claimed(
            data,
            f"{text} ({model})",
            "rise or fall, whichever is smaller [nats]",
            found.smaller,
            "peak chosen on the other seeds; t interval over seeds",
            f"The peak is at {found.peak:g} bits; a rising-then-falling curve explains {found.fit_r2:.0%} of the "
            "variance of the means.",
            reading=GRADIENT,
        )


def _in_every_epoch(claims: Callable[[SweepData, str], Iterator[Claim]], data: SweepData) -> Iterator[Claim]:
    """What `claims` finds under each meaning of an epoch of Eq. 4, decided only where both are there and agree."""
    epochs = by_epoch(data)
    found: dict[str, list[Claim]] = {}
    for epoch, own in epochs.items():
        for claim in claims(own, epoch_reading(epoch)):
            found.setdefault(claim.claim, []).append(claim)
    missing = [f"an epoch of one {epoch}" for epoch in EPOCHS if epoch not in epochs]
    for same in found.values():
        yield from where_all_agree(same, [*(claim.reading for claim in same), *missing])


def _fig4(data: SweepData) -> Iterator[Claim]:
    return _in_every_epoch(_soft_against_hard, data)


def _soft_against_hard(data: SweepData, epoch: str) -> Iterator[Claim]:
    reading = f"{GRADIENT}; {epoch}"
    targets = data.targets.assign(soft=data.targets["slots"].map(soft_tokens).astype(float))
    curves = targets.pivot_table(index=["seed", "bits"], columns="soft", values="kl_nats").dropna()
    curves = curves.groupby(level="seed").mean()
    if len(curves) > 1 and curves.shape[1] > 2:
        slopes = [np.polyfit(curves.columns, row, 1)[0] for row in curves.to_numpy()]
        trend = stats.page_trend_test(curves.to_numpy(), predicted_ranks=np.arange(curves.shape[1], 0, -1))
        whole = mean_interval(curves.iloc[:, 0] - curves.iloc[:, -1])
        yield claimed(
            data,
            "Soft prompts come closer than hybrid ones, and those closer than hard ones",
            "loss saved by each soft token [nats]",
            mean_interval([-slope for slope in slopes]),
            "slope of each seed's means, t interval over seeds",
            f"Soft in place of hard saves {whole.value:.2f} nats ({whole.low:.2f} to {whole.high:.2f}); Page's trend "
            f"test over {', '.join(f'{soft:.0f}' for soft in curves.columns)} soft tokens: p = {trend.pvalue:.1g}.",
            reading=reading,
        )
    if data.restarts_each > 1:
        yield _spread(data, reading)


def _spread(data: SweepData, reading: str) -> Claim:
    rows = data.even_restarts.assign(soft=data.even_restarts["slots"].map(soft_tokens))
    ranges = rows.groupby(["seed", "bits", "soft"])["kl_nats"].agg(np.ptp).unstack("soft")
    softer = [soft for soft in ranges.columns if soft > 0]
    wider = (ranges[softer].mean(axis=1) - ranges[0]).dropna() if 0 in ranges else ranges.iloc[:0, 0]
    return claimed(
        data,
        "The spread over initialisations is largest for soft and hybrid prompts (§5.1)",
        f"range of {data.restarts_each} restarts, soft and hybrid minus hard [nats]",
        over_seeds(wider),
        OVER_SEEDS,
        reading=reading,
    )


def _fig5(data: SweepData) -> Iterator[Claim]:
    middle = data.targets[data.targets["bits"].between(*MODERATE)]
    excess = (middle["achieved_bits"] - middle["target_bits"]).groupby(middle["seed"]).mean()
    yield claimed(
        data,
        "Between 4 and 12 bits the answer's entropy is above the target's",
        "entropy of q minus the target's [bits]",
        mean_interval(excess),
        OVER_SEEDS,
        reading=GRADIENT,
    )
    low = data.targets[data.targets["bits"] <= LOW_BITS]
    yield claimed(
        data,
        "At low entropy the loss is near zero (§5.1)",
        f"loss of targets up to {LOW_BITS:g} bit [nats]",
        mean_interval(low.groupby("seed")["kl_nats"].mean()),
        OVER_SEEDS,
        f"It counts as supported where the interval lies below {NEAR_ZERO:g} nats.",
        below=NEAR_ZERO,
        reading=GRADIENT,
    )


def _curves(data: SweepData, column: str, value: object) -> Any:
    """Losses of the targets of one model, or length: one row a seed, one column an entropy."""
    own = data.targets[data.targets[column] == value]
    return own.pivot_table(index="seed", columns="bits", values="kl_nats").dropna()


def _fig6(data: SweepData) -> Iterator[Claim]:
    for model in data.models:
        if not model.startswith("random:"):
            continue
        yield from _unimodal(data, model, "Random weights give a unimodal curve as well")
        trained = model.removeprefix("random:")
        if trained in data.models:
            yield claimed(
                data,
                f"Its shape is that of the pretrained model ({trained})",
                "correlation of the two curves",
                curve_correlation(_curves(data, "model", model), _curves(data, "model", trained)),
                "Pearson's r of the mean curves, jackknife over seeds",
                ALIKE,
                beyond=LIKE,
                reading=GRADIENT,
            )


def _fig7(data: SweepData) -> Iterator[Claim]:
    groups = [name for name in dict.fromkeys(data.targets["group"]) if name[0].isdigit()]
    counts = sorted({int(name.split()[0]) for name in groups})
    by_count = {
        k: {mass_of_group(data, name) if k > 1 else "": name for name in groups if int(name.split()[0]) == k}
        for k in counts
    }
    for k, masses in by_count.items():
        some = "1 outlier" if k == 1 else f"{k} outliers"
        text = f"Targets with {some} are easier than vanilla ones of the same entropy"
        yield from _outliers_against_vanilla(
            data, masses, text, "kl_nats", "loss of vanilla minus that with outliers [nats]"
        )
    if len(counts) > 1:
        yield from _strongest(data, by_count[counts[0]], by_count[counts[-1]])
    if counts:
        off = (data.targets["achieved_bits"] - data.targets["target_bits"]).abs()
        yield from _outliers_against_vanilla(
            data, by_count[counts[0]], "With an outlier the entropy of q is nearer the target's (§5.2)", off,
            "error in entropy, vanilla minus outliers [bits]",
        )  # fmt: skip


def _outliers_against_vanilla(
    data: SweepData, masses: dict[str, str], text: str, values: Any, effect: str
) -> list[Claim]:
    """`values` by entropy and seed, in both vanilla families and for every m there is."""
    table = data.targets.assign(value=data.targets[values] if isinstance(values, str) else values)
    found, readings = [], []
    for mass in masses if "" in masses else MASSES:
        for vanilla, family in FAMILIES.items():
            readings.append(f"{family}; {MASSES[mass]}" if mass else family)
            difference = paired(table, "value", "group", vanilla, masses.get(mass, ""), ["bits", "seed"])
            if len(difference):
                found.append(claimed(data, text, effect, over_seeds(difference), PAIRED, reading=readings[-1]))
    return where_all_agree(found, readings)


def _strongest(data: SweepData, fewest: dict[str, str], most: dict[str, str]) -> list[Claim]:
    (one,) = list(fewest.values())[:1]
    found = []
    for mass, many in most.items():
        saved = paired(data.targets, "kl_nats", "group", many, one, ["bits", "seed"])
        if len(saved):
            text = f"The effect is strongest for a single token ({one} against {many.split(',')[0]})"
            effect = "loss with more outliers minus that with fewer [nats]"
            found.append(claimed(data, text, effect, over_seeds(saved), PAIRED, reading=MASSES.get(mass, "")))
    return where_all_agree(found, list(MASSES.values()))


def _against_vanilla(data: SweepData, group: str, text: str, note: str = "", also: str = "") -> list[Claim]:
    """Losses of targets of one kind against matched vanilla ones, in both families; `also` is what else is read."""
    found = []
    for vanilla, family in FAMILIES.items():
        difference = paired(data.targets, "kl_nats", "group", vanilla, group, ["seed"])
        if not len(difference):
            continue
        remark = note
        if len(difference) > 5 and np.ptp(difference) > 0:
            test: Any = stats.wilcoxon(difference, alternative="greater")
            easier = f"Easier in {int((difference > 0).sum())} of {len(difference)} pairs"
            remark = f"{easier}; Wilcoxon p = {test.pvalue:.1g}. {note}".strip()
        effect, reading = "loss of matched vanilla minus theirs [nats]", f"{family}{also}"
        found.append(claimed(data, text, effect, over_seeds(difference), PAIRED, remark, reading=reading))
    return where_all_agree(found, [f"{family}{also}" for family in FAMILIES.values()])


def _fig8(data: SweepData) -> Iterator[Claim]:
    return _in_every_epoch(_generated_by_hard_prompts, data)


def _generated_by_hard_prompts(data: SweepData, epoch: str) -> Iterator[Claim]:
    also = f"; {epoch}"
    easier = "LM-generated targets are easier than vanilla ones of the same entropy, by hard prompts"
    yield from _against_vanilla(data, "generated", easier, also=also)
    off = data.targets.assign(off=(data.targets["achieved_bits"] - data.targets["target_bits"]).abs())
    nearer = []
    for vanilla, family in FAMILIES.items():
        difference = paired(off, "off", "group", vanilla, "generated", ["seed"])
        if len(difference):
            nearer.append(claimed(
                data, "The entropy that hard prompts reach is nearer the target's for LM-generated targets",
                "error in entropy, vanilla minus LM-generated [bits]", over_seeds(difference), PAIRED,
                reading=f"{family}{also}",
            ))  # fmt: skip
    yield from where_all_agree(nearer, [f"{family}{also}" for family in FAMILIES.values()])
    own = data.group("generated")
    if len(own):
        yield claimed(
            data, "For LM-generated targets entropy and loss are weakly correlated (a low R², §5.3)",
            "R² of the line", r_squared(own["target_bits"].to_numpy(), own["kl_nats"].to_numpy()),
            "independent targets, Fisher interval",
            f"It counts as supported where the interval lies below {LOW_R2:g}.", below=LOW_R2,
            reading=epoch,
        )  # fmt: skip


def _fig9(data: SweepData) -> Iterator[Claim]:
    easier = "LM-generated targets are easier than vanilla ones of the same entropy, by soft prompts"
    yield from _against_vanilla(data, "generated", easier)
    yield from _against_vanilla(data, "shuffled", "Shuffled LM-generated targets are easier than vanilla ones")
    found = []
    for vanilla, family in FAMILIES.items():
        saved = paired(data.targets, "kl_nats", "group", vanilla, "shuffled", ["seed"])
        if not len(saved):
            continue
        inside = data.group(vanilla).groupby("seed")["target_bits"].mean().loc[saved.index].between(*MODERATE)
        found.append(claimed(
            data, "Shuffled targets save most at moderate entropy, 4 to 12 bits (§5.4)",
            "loss saved there minus that elsewhere [nats]", difference_of_means(saved[inside], saved[~inside]),
            "Welch's t interval, a target each seed", f"{int(inside.sum())} of {len(saved)} targets are moderate.",
            reading=family,
        ))  # fmt: skip
    yield from where_all_agree(found, list(FAMILIES.values()))


def _fig10(data: SweepData) -> Iterator[Claim]:
    for (model, source), rows in data.rows.groupby(["model", "source"], sort=False):
        untrained = str(source).startswith("random:")
        note = "This source is untrained; the paper's sources are pretrained." if untrained else ""
        found = _against_vanilla(
            replace(data, rows=rows), "migrated",
            f"Targets migrated from {source} to {model} are easier than vanilla ones", note,
        )  # fmt: skip
        # What is found of untrained sources is about something else than the claim.
        yield from (replace(claim, verdict="undecided") for claim in found) if untrained else found


def _fig11(data: SweepData) -> Iterator[Claim]:
    lengths = sorted(set(data.targets["length"]))
    if len(lengths) < 2:
        return
    middle = 5 if 5 in lengths else lengths[0]
    pairs = {length: curve_correlation(_curves(data, "length", middle), _curves(data, "length", length))
             for length in lengths if length != middle}  # fmt: skip
    length = min(pairs, key=lambda each: pairs[each].value)
    yield claimed(
        data,
        "The length of the prefix does not change the trend over entropy",
        f"correlation of the curves of {middle} and {length} tokens (the least alike)",
        pairs[length],
        "Pearson's r of the mean curves, jackknife over seeds",
        ALIKE,
        beyond=LIKE,
        reading=GRADIENT,
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
    return claimed(
        data,
        f"Adjectives are the easiest part of speech ({model})",
        f"loss of {list(others)[nearest]}, the easiest other one, minus that of ADJ [nats]",
        interval,
        "Dunnett's intervals against ADJ",
        reading="words tagged alone",
    )


def _instruct(data: SweepData) -> Iterator[Claim]:
    pairs = [(model, f"{model}-instruct") for model in data.models if f"{model}-instruct" in data.models]
    for base, tuned in pairs:
        both = data.targets[data.targets["model"].isin((base, tuned))]
        difference = paired(both, "kl_nats", "model", tuned, base, ["tag", "seed"])
        yield claimed(
            data, f"The base model comes closer than its instruction-tuned variant ({base})",
            "loss of the variant minus that of the base [nats]", over_seeds(difference),
            "paired by part of speech and draw, t interval over draws", reading="words tagged alone",
        )  # fmt: skip
    if not pairs:
        nothing = Interval(np.nan, np.nan, np.nan, 0)
        yield claimed(
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
    "exact": exact_claims,
}
