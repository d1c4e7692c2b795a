"""Check a "no" of `dpexplore reach` with NumPy alone; nothing here is shared with what found it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np


def margin_bound(record: Mapping[str, Any], head: Mapping[str, Any]) -> float:
    """The margin in nats that no prompt can exceed, by a record of `dpexplore reach --json` that says `can: false`.

    head: what `dpexplore reach --head head.npz` writes, as `numpy.load` reads it: logits = matrix @ u + bias with
    ‖u‖ ≤ radius, and u of zero mean if `zero_mean`. For every such u the smallest lead is at most any average of the
    leads, Σ w·(row·u + bias), and by Cauchy and Schwarz that is at most radius·‖Σ w·row‖ + Σ w·bias. The answer is
    no if this is at most `record["resolution"]`, up to the rounding of the matrix's own entries.
    """
    order, pairs = record["ids"], record["proof"]["pairs"]
    allowed = {*pairwise(order)}
    for above, below in pairs:
        if (above, below) not in allowed and (above != order[-1] or below in order):
            raise ValueError(f"the order does not ask for token {above} above token {below}")
    weights = np.asarray(record["proof"]["weights"], dtype=np.float64)
    if len(weights) != len(pairs) or weights.min() < 0 or abs(weights.sum() - 1) > 1e-9:
        raise ValueError("weights are not negative and sum to 1")
    above, below = np.asarray(pairs).T
    rows = head["matrix"][above].astype(np.float64) - head["matrix"][below]
    if head["zero_mean"]:
        rows -= rows.mean(axis=1, keepdims=True)
    leads = head["bias"][above] - head["bias"][below]
    return float(head["radius"] * np.linalg.norm(weights @ rows) + weights @ leads)
