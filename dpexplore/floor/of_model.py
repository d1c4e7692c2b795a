"""The certified softmax floor of a loaded model: how close any prompt could bring it to a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.floor import FloorResult
from dpexplore.floor.prepared import floor_solver
from dpexplore.floor.solver import Report
from dpexplore.models.language_model import LanguageModel
from dpexplore.targets.target import Target


@overload
def softmax_floor(
    lm: LanguageModel,
    target: Target,
    *,
    gap_nats: float = ...,
    max_iterations: int = ...,
    start: FloorResult | Tensor | None = ...,
    ladder: bool = ...,
    report: Report | None = ...,
) -> FloorResult: ...
@overload
def softmax_floor(
    lm: LanguageModel,
    target: Sequence[Target],
    *,
    gap_nats: float = ...,
    max_iterations: int = ...,
    start: FloorResult | Tensor | None = ...,
    ladder: bool = ...,
) -> list[FloorResult]: ...
def softmax_floor(
    lm: LanguageModel,
    target: Target | Sequence[Target],
    *,
    gap_nats: float = 1e-3,
    max_iterations: int = 200,
    start: FloorResult | Tensor | None = None,
    ladder: bool = True,
    report: Report | None = None,
) -> FloorResult | list[FloorResult]:
    """The certified floor of `lm` for one target, or for several at once (the same length of list comes back).

    No prompt, soft or hard, of any length, brings KL(p‖q) below `lower_bound_nats`. gap_nats: stop when the bound is
    known to be this tight. start: the result for a similar target (the slider's last position), or its point
    `(hidden,)`, to start from. ladder: also estimate the classical softmax bottleneck and the head's optimum. report:
    for one target alone, called with each certified bound in nats as it rises, and the point; what it raises ends the
    work. InputError if a target is over another vocabulary; NoHead, which is one too, if the model has no floor.
    """
    solver = floor_solver(lm)
    targets = [target] if isinstance(target, Target) else list(target)
    if not targets:
        return []
    for one in targets:
        if one.vocab_size != solver.vocab_size:
            raise InputError(
                f"The target has {one.vocab_size:,} tokens and the model {solver.vocab_size:,}; "
                "a floor needs a target over the model's own vocabulary."
            )
    point = start.point if isinstance(start, FloorResult) else start
    points = None if point is None else point.expand(len(targets), -1)
    results = solver.solve(
        torch.stack([one.probs for one in targets]),
        gap_nats=gap_nats,
        max_iterations=max_iterations,
        start=points,
        ladder=ladder,
        report=report,
    )
    return results[0] if isinstance(target, Target) else results
