"""What a run leaves to its record: the outcome of each restart, and everything that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.init.layout import Layout
from dpexplore.tuning.objectives.next_token import Objective
from dpexplore.tuning.record.bounds import Bounds
from dpexplore.tuning.record.steps import Status, TuneStep

StopReason = Literal["converged", "max_steps", "nonfinite", "cancelled"]


@dataclass(frozen=True, eq=False)
class RowOutcome:
    """What a row leaves behind."""

    reason: StopReason
    steps: int
    evaluations: int
    loss: float
    """Lowest value of the objective; infinite if none was finite."""
    kl_nats: float
    """KL(p‖q) there,"""
    entropy_nats: float
    """and the entropy of q."""
    ids: Tensor
    """`(pos,)` there, `NO_TOKEN` at soft positions."""
    embeds: Tensor
    """`(pos hidden)` float32 on the CPU, there."""


class BestPrompt(NamedTuple):
    """The best prompt of a run that is still moving."""

    loss: float
    kl_nats: float
    restart: int
    ids: Tensor
    """`(pos,)`, `NO_TOKEN` at soft positions."""
    embeds: Tensor
    """`(pos hidden)` float32 on the CPU."""
    log_q: Tensor | None = None
    """`(vocab,)` float32 on the CPU, if it is known without another pass."""


class RecordedRun(Protocol):
    """What a record takes from a run; `tuning.run.Run` is one."""

    lm: LanguageModel
    target: Target
    config: TuneConfig
    layout: Layout
    objective: Objective
    resumed_from: dict[str, Any] | None
    bounds: Bounds
    outcomes: dict[int, RowOutcome]
    started: float
    seconds: float

    @property
    def status(self) -> Status | None: ...

    @property
    def steps(self) -> list[TuneStep]: ...

    def best_prompt(self) -> BestPrompt | None: ...
