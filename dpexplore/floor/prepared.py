"""The solvers of a loaded model's head: extracted and verified once, kept as long as the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from weakref import WeakKeyDictionary

from dpexplore.floor.rankings import RankingSolver
from dpexplore.floor.solver import FloorSolver
from dpexplore.models.head import NoHead, extract_head
from dpexplore.models.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class _Solvers:
    floor: FloorSolver

    @cached_property
    def ranking(self) -> RankingSolver:
        return RankingSolver(self.floor)


_prepared: WeakKeyDictionary[LanguageModel, _Solvers | NoHead] = WeakKeyDictionary()
_preparing = Lock()


def floor_solver(lm: LanguageModel) -> FloorSolver:
    """The model's head, ready for floors.

    NoHead (an InputError), with the reason in one sentence, if the model has no head that a floor could be
    computed for.
    """
    return _solvers(lm).floor


def ranking_solver(lm: LanguageModel) -> RankingSolver:
    """The model's head, ready for questions about rankings. NoHead as from `floor_solver`."""
    return _solvers(lm).ranking


def _solvers(lm: LanguageModel) -> _Solvers:
    with _preparing:
        if lm not in _prepared:
            try:
                head = extract_head(lm)
            except NoHead as refusal:
                _prepared[lm] = refusal
            else:
                # Apple's GPUs have no float64; there the head is worked on by the processor.
                matrix = head.matrix.cpu() if head.matrix.device.type == "mps" else head.matrix
                _prepared[lm] = _Solvers(
                    FloorSolver(matrix, head.bias, head.radius, zero_mean=head.zero_mean, rounding=head.rounding)
                )
        prepared = _prepared[lm]
    if isinstance(prepared, NoHead):
        raise NoHead(str(prepared))
    return prepared
