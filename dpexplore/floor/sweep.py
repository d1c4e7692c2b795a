"""Floors along a sweep: many similar targets in order, such as one seed's targets from low to high entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from dpexplore.floor.solver import FloorResult, FloorSolver

STRIDE = 8
"""Every eighth target is solved from nothing; those between start from the line between their neighbours."""


def sweep(solver: FloorSolver, probs: Tensor, *, gap_nats: float = 1e-3, ladder: bool = False) -> list[FloorResult]:
    """Floors of `probs` `(rows vocab)`, whose neighbours are similar; the same bounds as `solve`, sooner."""
    count = len(probs)
    anchors = sorted({*range(0, count, STRIDE), count - 1}) if count else []
    results: dict[int, FloorResult] = (
        dict(zip(anchors, solver.solve(probs[anchors], gap_nats=gap_nats, ladder=ladder), strict=True))
        if anchors
        else {}
    )
    between = [row for row in range(count) if row not in results]
    if between:
        starts = []
        for row in between:
            left = row - row % STRIDE
            right = min(left + STRIDE, count - 1)
            share = (row - left) / (right - left)
            starts.append(torch.lerp(results[left].point, results[right].point, share))
        solved = solver.solve(probs[between], gap_nats=gap_nats, start=torch.stack(starts), ladder=ladder)
        results.update(zip(between, solved, strict=True))
    return [results[row] for row in range(count)]
