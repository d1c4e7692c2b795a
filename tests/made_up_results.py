"""A store with made-up results for shipped specs, whose losses follow a formula: for figures, claims and the page."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np

from dpexplore.experiments import ModelFacts, Problem, Store, load_spec
from dpexplore.experiments.store import Listing, result_row
from dpexplore.targets.target import NATS_PER_BIT

VOCAB = 49_152
EASIER = {"generated": 0.3, "shuffled": 0.6, "migrated": 0.8, "1 outlier": 0.3, "5 outliers": 0.5, "20 outliers": 0.7,
          "5 outliers, own m": 0.4, "20 outliers, own m": 0.6}  # fmt: skip
HEAD = 0.7
"""The head optimum, as a share of the loss without noise; a direct token is at it."""
TAG_LOSS = {"ADJ": 2.0, "NOUN": 2.6, "PROPN": 3.0, "VERB": 2.8}


def made_up_loss(bits: float, group: str, labels: dict[str, object], noise: float) -> float:
    """A loss in nats that shows every claim of the paper; noise is a share of it."""
    hump = 6 * math.sin(math.pi * min(bits, 16.0) / 16) ** 4 + 0.05
    soft = str(labels.get("slots", "soft*5"))
    hard = sum(int(part.split("*")[1]) for part in soft.split() if part.startswith("hard"))
    length = float(str(labels.get("length", 5)))
    loss = hump * EASIER.get(group, 1.0) * (1 + 0.1 * hard) * (1.2 - 0.02 * length)
    return TAG_LOSS.get(str(labels.get("tag")), loss) * (1 + noise)


def fill_store(folder: Path, *specs: str) -> Store:
    """A store in which the given shipped specs have been run to the end."""
    store = Store(folder)
    with store.locked():
        for name in specs:
            spec = load_spec(name)
            for model in spec.models:
                _fill(store, spec.name, ModelFacts(model, f"sha256:{model}", "float32", VOCAB))
    return store


def _fill(store: Store, name: str, facts: ModelFacts) -> None:
    spec = load_spec(name)
    asked = list(spec.problems(facts))
    done = store.done()
    rows = {p.id: _row(p, group, labels) for p, group, labels in asked if p.id not in done}
    if rows:
        store.commit(list(rows.values()))
    about = (spec.name, spec.figure, spec.title, spec.size, facts.name, facts.identity)
    parts = ([p.id for p, _, _ in asked], [group for _, group, _ in asked], [labels for _, _, labels in asked])
    store.write_listing(Listing(*about, *parts))


def _row(problem: Problem, group: str, labels: dict) -> dict:
    rng = np.random.default_rng(zlib.crc32(f"{problem.recipe}{problem.restart}{problem.settings}".encode()))
    bits = float(labels.get("bits", 2 + (int(labels.get("seed", 3)) * 2.7) % 10))
    if problem.kind == "shape":
        ranks = [1, 10, 100, 1000, 10_000]
        values = [0.3, 0.02, 1e-3, 1e-5, 1e-7]
        return result_row(problem, target_entropy_nats=5.0, names=[str(r) for r in ranks], values=values)
    if problem.kind == "pos_counts":
        return result_row(problem, names=["NOUN", "PROPN", "VERB", "ADJ"], values=[14_000.0, 6_500.0, 6_200.0, 3_000.0])
    clean = made_up_loss(bits, group, labels, 0.0)
    entropy = bits * NATS_PER_BIT
    if problem.kind == "floor":
        return result_row(
            problem, target_entropy_nats=entropy, reason="converged", floor_nats=0.6 * clean,
            head_optimum_nats=HEAD * clean, unconstrained_nats=0.5 * clean,
        )  # fmt: skip
    spread = (
        0.02 if str(labels.get("slots", "soft")).startswith("hard") else 0.08
    )  # initialisations matter to soft ones
    noise = float(rng.uniform(0, spread))
    loss = HEAD * clean + noise / 1e3 if group == "direct" else made_up_loss(bits, group, labels, noise)
    return result_row(
        problem, target_entropy_nats=entropy, kl_nats=loss, entropy_nats=entropy + 0.3 * loss, first_kl_nats=2 * loss,
        reason="max_steps", steps=80, evaluations=80, seconds=1.0,
    )  # fmt: skip
