"""A run among the model's last states, as JSON-ready numbers; `dpexplore.floor.disc` says what the picture shows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpexplore.floor import FloorResult, FloorSolver
from dpexplore.floor.disc import Place, degrees, last_states, places, plane_kl, state_kl
from dpexplore.floor.prepared import floor_solver
from dpexplore.models import LanguageModel
from dpexplore.serving.frames import Frames
from dpexplore.targets import Target

GRID = 41
"""Points of the map along the diameter."""
DIRECT_MULTIPLES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 1e5)
"""Lengths of the direct token, in multiples of the vocabulary's median length."""
DEEP_INSIDE = 1e-3
"""‖u‖/R this far below 1: the ball's optimum is not on the rim."""
WALKS_BYTES = 64 * 2**20
"""Of finished runs' walks, of everybody."""


@dataclass(frozen=True)
class Walk:
    """What a session's latest run said on its way."""

    model: str
    recipe: str
    frames: Frames


class Walks:
    """The latest finished run of each session; the oldest are dropped to stay within `WALKS_BYTES`."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Walk] = OrderedDict()
        self._gate = Lock()

    def keep(self, session: str, walk: Walk) -> None:
        with self._gate:
            self._kept.pop(session, None)
            self._kept[session] = walk
            while len(self._kept) > 1 and sum(one.frames.nbytes for one in self._kept.values()) > WALKS_BYTES:
                self._kept.popitem(last=False)

    def get(self, session: str, model: str, recipe: str) -> Frames | None:
        """The session's latest finished run, if it was one of this model towards this target."""
        with self._gate:
            walk = self._kept.get(session)
        return walk.frames if walk is not None and (walk.model, walk.recipe) == (model, recipe) else None

    def forget(self, session: str) -> None:
        with self._gate:
            self._kept.pop(session, None)


@torch.no_grad()
def disc(
    lm: LanguageModel, target: Target, floor: FloorResult, steps: Sequence[int], log_q: np.ndarray | None
) -> dict[str, Any]:
    """The picture of a target, with a run that said `log_q` `(len(steps) vocab)` on its way; KL in nats.

    NoHead, an InputError, for a model without a softmax head.
    """
    assert floor.head_point is not None, "a floor with its ladder"
    solver = floor_solver(lm)
    probs = target.probs.to(solver.device, torch.float64)
    best = floor.head_point
    walked = (
        last_states(solver, torch.from_numpy(np.asarray(log_q, np.float32))) if steps else best.new_zeros(0, len(best))
    )
    direct = _direct_states(lm, solver, best)
    ball = places(solver, best, floor.point[None])[0]
    side, plane = _side(walked, floor, ball, direct)
    x, y = torch.linspace(-1, 1, GRID, dtype=torch.float64), torch.linspace(0, 1, GRID // 2 + 1, dtype=torch.float64)
    kl = None if side is None else plane_kl(solver, probs, best, side, x.to(best), y.to(best))
    return {
        "floor": max(floor.lower_bound_nats, 0.0),
        "best": floor.head_optimum_nats,
        "plane": plane if kl is not None else None,
        "map": None if kl is None else {"x": _short(x), "y": _short(y), "kl": [_short(row) for row in kl]},
        "ball": {**_told(ball), "k": round(floor.kl_nats, 4)},
        "walk": _points(solver, probs, best, walked, [{"s": int(step)} for step in steps]),
        "direct": _points(solver, probs, best, direct, [{"m": multiple} for multiple in DIRECT_MULTIPLES]),
    }


def _direct_states(lm: LanguageModel, solver: FloorSolver, best: Tensor) -> Tensor:
    """Last states after one soft token along `best`, ever longer; none where tokens are projected first."""
    if lm.hidden_size != len(best):
        return best.new_zeros(0, len(best))
    length = lm.embedding_table.float().norm(dim=1).median()
    scales = torch.tensor(DIRECT_MULTIPLES, device=lm.device) * length
    tokens = scales[:, None] * (best / best.norm()).to(lm.device, torch.float32)
    return last_states(solver, lm.log_probs(tokens[:, None]))


def _side(walked: Tensor, floor: FloorResult, ball: Place, direct: Tensor) -> tuple[Tensor | None, str]:
    """A state that spans the map's plane together with the best one, and what it is."""
    if len(walked):
        return walked[-1], "run"
    if ball.radius < 1 - DEEP_INSIDE:
        return floor.point, "ball"
    return (direct[0], "token") if len(direct) else (None, "")


def _points(
    solver: FloorSolver, probs: Tensor, best: Tensor, states: Tensor, named: Sequence[dict[str, float]]
) -> list[dict[str, float]]:
    if not len(states):
        return []
    finite = states.isfinite().all(1).tolist()
    found = zip(named, places(solver, best, states), state_kl(solver, probs, states).tolist(), finite, strict=True)
    return [{**name, **_told(place), "k": round(kl, 4)} for name, place, kl, real in found if real]


def _told(place: Place) -> dict[str, float]:
    return {"r": round(place.radius, 5), "a": round(degrees(place), 3)}


def _short(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]
