"""A run: everything started by one press of Tune. It collects steps while it runs and its result at the end."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.engine.capacity import Capacity
from dpexplore.tuning.engine.parked import ParkedRow
from dpexplore.tuning.init.layout import NO_TOKEN, Layout, Start, initial_prompt
from dpexplore.tuning.norm_budget import NormBudget
from dpexplore.tuning.objectives.sequences import objective_for
from dpexplore.tuning.record.bounds import Bounds
from dpexplore.tuning.record.build import build_result
from dpexplore.tuning.record.outcome import BestPrompt, RowOutcome
from dpexplore.tuning.record.steps import Status, TuneResult, TuneStep

PREPARATION_SECONDS = 0.5
"""What a run does before its first step is told this often, behind a server thread."""


class Preparation(Protocol):
    """What is done before a run's restarts can begin, a part at a time."""

    @property
    def text(self) -> str:
        """What is being done, and how far it is."""
        ...

    def advance(self, capacity: Capacity) -> bool:
        """Make a part; whether the run is ready. InputError if it never will be."""
        ...


class RowReport(NamedTuple):
    """What a restart's row tells of one step."""

    kl_nats: float | None
    entropy_nats: float | None
    evaluations: int
    """Prompts scored for it so far."""


class Run:
    """A target, a config and its restarts. Made by `Engine.submit`; iterate over it for its steps.

    Reading is safe from any thread. Without a server thread, iterating drives the engine.
    """

    def __init__(
        self,
        lm: LanguageModel,
        target: Target,
        config: TuneConfig,
        drive: Callable[[], object] | None,
        starts: Sequence[Start] | None = None,
        resumed_from: dict[str, Any] | None = None,
        owner: str = "",
    ) -> None:
        """InputError if the target is over another vocabulary, the prompt too long or no token allowed."""
        self.lm = lm
        self.target = target
        self.config = config
        self.layout = Layout.of(lm, config)
        self.objective = objective_for(lm, target, config.objective)
        if starts is not None and any(len(ids) != len(self.layout) for ids, _ in starts):
            raise InputError(f"The prompts to go on from do not have the {len(self.layout)} tokens of the slots.")
        self.starts = starts
        self.resumed_from = resumed_from
        self.owner = owner
        """Whose run it is: owners have fair shares of the rows."""
        self.barred = torch.ones(lm.embedding_table.shape[0], dtype=torch.bool, device=lm.device)
        """`(vocab,)`: the tokens that hard slots may not hold."""
        self.barred[self.layout.allowed.to(lm.device)] = False
        self.last_tokens: Tensor | None = None
        """`(n,)`: the tokens to begin with at the prompt's end, the best first; None where they are drawn."""
        self.preparation: Preparation | None = None
        """What is to be done before the restarts can begin; None once it is."""
        self.part_of: Run | None = None
        """The run that this one prepares."""
        if starts is None and config.restarts and (config.round_trip or config.init == "text"):
            self.beginning(0)  # raises at once what no restart could avoid
        self.cancel_requested = False
        self.queue_position = 0
        """Place of this run's first row in the queue, 1 for the next one; 0 until it is queued and once a row runs."""
        self.norm_budget = math.inf
        """The longest that a soft token may be; infinite where there is no bound."""
        if config.norm_budget is not None:
            self.norm_budget = NormBudget.parse(config.norm_budget).length(lm.median_token_norm)
        self.bounds = Bounds()
        """What is known of the target; nothing unless the run solves its head."""
        self.begun = 0
        """Restarts whose rows have joined the engine."""
        self.parked: list[ParkedRow] = []
        """Rows that have begun and made room for other owners."""
        self.error: InputError | None = None
        self.outcomes: dict[int, RowOutcome] = {}
        self.started = time.monotonic()
        self.seconds = 0.0
        self._drive = drive
        self.best: Best | None = None
        self._steps: list[TuneStep] = []
        self._changed = threading.Condition(threading.RLock())
        self._finished = False
        self._evaluations = [0] * config.restarts

    # What the user of a run calls.

    def __iter__(self) -> Iterator[TuneStep]:
        """Every step from the first, as they come; ends with the run."""
        seen = 0
        while True:
            for step in self.steps_since(seen):
                seen += 1
                yield step
            if self._finished and seen == len(self._steps):
                return
            self._advance(seen)

    def preparing(self) -> Iterator[str]:
        """What is done before the first step, told as it goes on; ends once the restarts begin."""
        told = ""
        while (preparation := self.preparation) is not None and not self._finished:
            if preparation.text != told:
                told = preparation.text
                yield told
            if self._drive is not None:
                self._drive()
            else:
                self.wait(PREPARATION_SECONDS)

    def steps_since(self, seen: int) -> list[TuneStep]:
        """The steps after the first `seen`, without waiting."""
        return self._steps[seen:]

    def wait(self, timeout: float | None = None, seen: int | None = None) -> bool:
        """Sleep until there are more than `seen` steps (default: those there are now) or the run ends.

        Returns whether that came to pass within `timeout` seconds. Only for a run behind a server thread.
        """
        with self._changed:
            seen = len(self._steps) if seen is None else seen
            return self._changed.wait_for(lambda: self._finished or len(self._steps) > seen, timeout)

    def cancel(self) -> None:
        """Stop within a step and keep the best so far."""
        self.cancel_requested = True

    @property
    def finished(self) -> bool:
        return self._finished

    @property
    def status(self) -> Status | None:
        """How the run ended; None while it runs."""
        if not self._finished:
            return None
        reasons = {outcome.reason for outcome in self.outcomes.values()}
        if self.cancel_requested and ("cancelled" in reasons or self.begun < self.config.restarts):
            return "cancelled"
        if reasons <= {"nonfinite"}:
            return "nonfinite"
        return "max_steps" if "max_steps" in reasons else "converged"

    @cached_property
    def result(self) -> TuneResult:
        """The best prompt, re-scored; waits for the end. InputError if the run failed or never made a step."""
        while not self._finished:
            self._advance(len(self._steps))
        if self.error is not None:
            raise self.error
        return build_result(self)

    def best_log_probs(self) -> Tensor | None:
        """log q of the best prompt so far, `(vocab,)` float32 on the CPU; None before the first step."""
        best = self.best
        return None if best is None else best.log_q.cpu()

    def best_prompt_ids(self) -> list[int] | None:
        """Ids of the best prompt so far; None before the first step or with soft tokens."""
        best = self.best
        if best is None or (best.ids == NO_TOKEN).any():
            return None
        return best.ids.tolist()

    def best_prompt(self) -> BestPrompt | None:
        """The best prompt so far; None before the first step."""
        best = self.best
        if best is None:
            return None
        return BestPrompt(best.loss, best.kl_nats, best.restart, best.ids.cpu(), best.embeds.cpu())

    @property
    def steps(self) -> list[TuneStep]:
        """All steps so far."""
        return list(self._steps)

    # What the engine calls.

    @property
    def waiting_rows(self) -> int:
        """Restarts that have not begun, or wait to go on."""
        return 0 if self.ending else self.config.restarts - self.begun + len(self.parked)

    @property
    def active_rows(self) -> int:
        """Restarts that are in the engine's batches."""
        return self.begun - len(self.outcomes) - len(self.parked)

    @property
    def out_of_time(self) -> bool:
        """Whether it has lasted as long as its config allows, waiting included."""
        most = self.config.seconds
        return most is not None and (self.seconds or time.monotonic() - self.started) >= most

    @property
    def ending(self) -> bool:
        """Its rows leave at the next step, whatever they would still do."""
        ending = self.error is not None or self.cancel_requested
        return ending or (self.part_of is not None and self.part_of.ending)

    @property
    def reached(self) -> bool:
        """Whether its best prompt is at the head's optimum, so that no restart has anything left to find."""
        return self.best is not None and self.bounds.reached(self.best.kl_nats)

    @property
    def best_loss(self) -> float:
        """Lowest value of the objective so far."""
        return torch.inf if self.best is None else self.best.loss

    def beginning(self, restart: int) -> Start:
        """Where a restart begins."""
        if self.starts is None:
            return initial_prompt(self.lm, self.layout, self.config, restart, last=self.last_tokens)
        ids, embeds = self.starts[restart]
        return ids.to(self.lm.device), embeds.to(self.lm.device, torch.float32)

    def begin_at(self, starts: Sequence[Start], evaluations: Sequence[int]) -> None:
        """Let the restarts begin here; `evaluations` prompts were scored to find each beginning."""
        self.starts = starts
        self._evaluations = list(evaluations)

    def evaluations_of(self, restart: int) -> int:
        """Prompts scored for a restart so far."""
        return self._evaluations[restart]

    def note_best(self, loss: float, kl_nats: float, restart: int, log_q: Tensor, ids: Tensor, embeds: Tensor) -> None:
        """A restart has reached a new lowest loss; log_q `(vocab,)`, ids `(pos,)`, embeds `(pos hidden)`."""
        self.best = Best(loss, kl_nats, restart, log_q.clone(), ids.clone(), embeds.detach().clone())

    def note_step(self, reports: dict[int, RowReport]) -> None:
        """The restarts that were evaluated in this step, with their numbers."""
        for restart, report in reports.items():
            self._evaluations[restart] = report.evaluations
        silent = RowReport(None, None, 0)
        told = [reports.get(i, silent) for i in range(self.config.restarts)]
        step = TuneStep(
            step=len(self._steps) + 1,
            kl_nats=[report.kl_nats for report in told],
            entropy_nats=[report.entropy_nats for report in told],
            best_kl_nats=torch.inf if self.best is None else self.best.kl_nats,
            best_restart=0 if self.best is None else self.best.restart,
            evaluations=list(self._evaluations),
        )
        with self._changed:
            self._steps.append(step)
            self._changed.notify_all()

    def finish(self, error: InputError | None = None) -> None:
        """No row of this run is left, or it failed with a sentence for its user."""
        with self._changed:
            if self._finished:
                return
            self.error = error
            self.seconds = time.monotonic() - self.started
            self._finished = True
            self._changed.notify_all()

    # What carries a run from one engine to another.

    @property
    def told(self) -> Told:
        """What the run has to tell so far."""
        elapsed = time.monotonic() - self.started
        return Told(
            self.begun,
            dict(self.outcomes),
            list(self._steps),
            list(self._evaluations),
            elapsed,
            self.cancel_requested,
            self.error,
            self.bounds,
        )

    @told.setter
    def told(self, told: Told) -> None:
        self.begun, self.outcomes, self._evaluations = told.begun, told.outcomes, told.evaluations
        self.cancel_requested, self.error, self.bounds = told.cancelled, told.error, told.bounds
        self.started = time.monotonic() - told.seconds
        self.follow(told.steps[len(self._steps) :], self.best)

    def follow(self, steps: Sequence[TuneStep], best: Best | None) -> None:
        """Steps that were made elsewhere, and the best prompt after them; those known already are passed over."""
        with self._changed:
            self.best = best
            self._steps += [step for step in steps if step.step > len(self._steps)]
            self._changed.notify_all()

    def _advance(self, seen: int) -> None:
        if self._drive is not None:
            self._drive()
        else:
            self.wait(seen=seen)


class Told(NamedTuple):
    """What a run has told between two steps."""

    begun: int
    outcomes: dict[int, RowOutcome]
    steps: list[TuneStep]
    evaluations: list[int]
    seconds: float
    cancelled: bool
    error: InputError | None
    bounds: Bounds


class Best(NamedTuple):
    """The best prompt of a run so far."""

    loss: float
    kl_nats: float
    restart: int
    log_q: Tensor
    ids: Tensor
    embeds: Tensor
