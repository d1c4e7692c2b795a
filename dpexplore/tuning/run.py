"""A run: everything started by one press of Tune. It collects steps while it runs and its result at the end."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.engine.capacity import Capacity, is_out_of_memory
from dpexplore.tuning.engine.fairness import NOBODY, Owner
from dpexplore.tuning.engine.log import BEST_KL, BEST_LOSS, ENTROPY, EVALUATIONS, KL, WIDTH, Bests, LogView
from dpexplore.tuning.engine.parked import ParkedRow
from dpexplore.tuning.init.layout import NO_TOKEN, Layout, Start, initial_prompt
from dpexplore.tuning.norm_budget import NormBudget
from dpexplore.tuning.objectives.sequences import objective_for
from dpexplore.tuning.record.bounds import Bounds
from dpexplore.tuning.record.build import build_result
from dpexplore.tuning.record.outcome import BestPrompt, RowOutcome
from dpexplore.tuning.record.steps import Status, TuneResult, TuneStep
from dpexplore.tuning.rules.state import PromptState

PREPARATION_SECONDS = 0.5
"""Seconds between two reports of what a run does before its first step, behind a server thread."""


class Preparation(Protocol):
    """What is done before a run's restarts can begin, a part at a time."""

    @property
    def text(self) -> str:
        """What is being done, and how far it is."""
        ...

    def advance(self, capacity: Capacity) -> bool:
        """Make a part; whether the run is ready. InputError if it never will be."""
        ...


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
        owner: Owner = NOBODY,
        layout: Layout | None = None,
        changed: threading.Condition | None = None,
    ) -> None:
        """InputError if the target is over another vocabulary, the prompt too long or no token allowed.

        `layout` is the config's, if it is known; `changed` is notified by what drives the run.
        """
        self.lm = lm
        self.target = target
        self.config = config
        self.layout = layout or Layout.of(lm, config)
        self.objective = objective_for(lm, target, config.objective)
        if starts is not None and any(len(ids) != len(self.layout) for ids, _ in starts):
            raise InputError(f"The prompts to continue from do not have the {len(self.layout)} tokens of the slots.")
        self.starts = starts
        self.resumed_from = resumed_from
        self.owner = owner
        """Whose run it is: owners have fair shares of the rows."""
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
        self.watched = False
        """Whether somebody has asked for log q: then it is kept as it is computed, and need not be computed again."""
        self.on_change: Callable[[Run], object] = lambda _run: None
        """Called, from any thread, when the run was cancelled, has failed, or is watched from now on."""
        self._drive = drive
        self._changed = changed or threading.Condition(threading.RLock())
        self._reading = threading.RLock()
        self._view: tuple[LogView, list[int]] | None = None
        self._unread: list[tuple[np.ndarray, list[int]]] = []
        self._steps: list[TuneStep] = []
        self._latest = np.full((config.restarts, WIDTH), np.nan)
        self._latest[:, [BEST_LOSS, BEST_KL, EVALUATIONS]] = np.inf, np.inf, 0
        self._elsewhere: BestPrompt | None = None
        self._log_q: tuple[BestPrompt, Tensor] | None = None
        self._finished = False

    # What the user of a run calls.

    def __iter__(self) -> Iterator[TuneStep]:
        """Every step from the first, as they come; ends with the run."""
        seen = 0
        while True:
            for step in self.steps_since(seen):
                seen += 1
                yield step
            if self._finished and seen == self.step_count:
                return
            self._advance(seen)

    def preparing(self) -> Iterator[str]:
        """Progress of what is done before the first step; ends once the restarts begin."""
        reported = ""
        while (preparation := self.preparation) is not None and not self._finished:
            if preparation.text != reported:
                reported = preparation.text
                yield reported
            if self._drive is not None:
                self._drive()
            else:
                self.wait(PREPARATION_SECONDS)

    def steps_since(self, seen: int) -> list[TuneStep]:
        """The steps after the first `seen`, without waiting."""
        with self._reading:
            self._read()
            return self._steps[seen:]

    def wait(self, timeout: float | None = None, seen: int | None = None) -> bool:
        """Sleep until there are more than `seen` steps (default: those there are now) or the run ends.

        Returns whether that came to pass within `timeout` seconds. Only for a run behind a server thread.
        """
        with self._changed:
            seen = self.step_count if seen is None else seen
            return self._changed.wait_for(lambda: self._finished or self.step_count > seen, timeout)

    def cancel(self) -> None:
        """Stop within a step and keep the best so far."""
        self.cancel_requested = True
        self.on_change(self)

    @property
    def finished(self) -> bool:
        """Whether the run has ended, for whatever reason."""
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
            self._advance(self.step_count)
        if self.error is not None:
            raise self.error
        return build_result(self)

    def best_log_probs(self) -> Tensor | None:
        """log q of the best prompt so far, `(vocab,)` float32 on the CPU; None before the first step.

        None too where the memory is too full for a pass.
        The first call, and the first after each restart's last step, makes a pass of its own.
        """
        best = self.best_prompt()
        if best is None:
            return None
        if not self.watched:
            self.watched = True
            self.on_change(self)
        if best.log_q is not None:
            return best.log_q
        known = self._log_q
        if known is None or known[0].loss != best.loss or known[0].restart != best.restart:
            try:
                with torch.no_grad():
                    scores = self.objective.score(self.lm, best.embeds[None].to(self.lm.device), [self.objective])
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                return None
            known = self._log_q = best, scores.log_q[0].cpu()
        return known[1]

    def best_prompt_ids(self) -> list[int] | None:
        """Ids of the best prompt so far; None before the first step or with soft tokens."""
        best = self.best_prompt()
        if best is None or (best.ids == NO_TOKEN).any():
            return None
        return best.ids.tolist()

    def best_prompt(self) -> BestPrompt | None:
        """The best prompt so far; None before the first step."""
        with self._reading:
            found = [
                BestPrompt(outcome.loss, outcome.kl_nats, restart, outcome.ids, outcome.embeds)
                for restart, outcome in self.outcomes.items()
            ]
            found += [_best_of(one.prompts, 0, one.restart) for one in self.parked]
            found += self._best_in_log()
        if self._elsewhere is not None:
            found.append(self._elsewhere)
        best = min(found, key=lambda one: (one.loss, one.restart), default=None)
        return best if best is not None and best.loss < torch.inf else None

    @property
    def steps(self) -> list[TuneStep]:
        """All steps so far."""
        return self.steps_since(0)

    @property
    def step_count(self) -> int:
        """How many steps there are so far."""
        with self._reading:
            self._pull()
            return len(self._steps) + sum(len(numbers) for numbers, _ in self._unread)

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
    def wanted_rows(self) -> int:
        """Rows that it has or waits for."""
        return self.waiting_rows + self.active_rows

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
        """Whether a restart has ended at the head's optimum, so that the others have nothing left to find."""
        return any(self.bounds.reached(outcome.kl_nats) for outcome in list(self.outcomes.values()))

    def beginning(self, restart: int) -> Start:
        """Where a restart begins."""
        if self.starts is None:
            return initial_prompt(self.lm, self.layout, self.config, restart, last=self.last_tokens)
        ids, embeds = self.starts[restart]
        return ids.to(self.lm.device), embeds.to(self.lm.device, torch.float32)

    def begin_at(self, starts: Sequence[Start], evaluations: Sequence[int]) -> None:
        """Let the restarts begin here; `evaluations` prompts were scored to find each beginning."""
        self.starts = starts
        self._latest[:, EVALUATIONS] = evaluations

    def evaluations_of(self, restart: int) -> int:
        """Prompts scored for a restart so far."""
        return int(self._latest[restart, EVALUATIONS])

    def read_from(self, view: LogView | None, restarts: list[int]) -> None:
        """The numbers of these restarts, and of no others, are in the log from now on; None where there are none."""
        with self._reading:
            self._pull()
            self._view = None if view is None else (view, restarts)

    def fail(self, error: InputError) -> None:
        """Let the engine end the run with a sentence for its user, before its next step."""
        self.error = error
        self.on_change(self)

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
    def snapshot(self) -> RunSnapshot:
        """What the run has reported so far."""
        elapsed = time.monotonic() - self.started
        return RunSnapshot(
            self.begun,
            dict(self.outcomes),
            self.steps,
            self._latest,
            elapsed,
            self.cancel_requested,
            self.error,
            self.bounds,
        )

    @snapshot.setter
    def snapshot(self, snapshot: RunSnapshot) -> None:
        self.begun, self.outcomes, self._latest = snapshot.begun, snapshot.outcomes, snapshot.latest
        self.cancel_requested, self.error, self.bounds = snapshot.cancelled, snapshot.error, snapshot.bounds
        self.started = time.monotonic() - snapshot.seconds
        self.follow(snapshot.steps[len(self._steps) :], self._elsewhere)

    def follow(self, steps: Sequence[TuneStep], best: BestPrompt | None) -> None:
        """Steps that were made elsewhere, and the best prompt after them; those known already are passed over."""
        with self._changed, self._reading:
            self._elsewhere = best
            self._steps += [step for step in steps if step.step > len(self._steps)]
            self._changed.notify_all()

    def _pull(self) -> None:
        """Copy what is new out of the log."""
        if self._view is not None:
            view, restarts = self._view
            numbers = view.take()
            if len(numbers):
                self._unread.append((numbers, restarts))

    def _read(self) -> None:
        """Make steps of the numbers."""
        self._pull()
        for numbers, restarts in self._unread:
            whole = np.repeat(self._latest[None], len(numbers), 0)
            whole[..., [KL, ENTROPY]] = np.nan
            whole[:, restarts] = np.where(np.isnan(numbers[..., EVALUATIONS:]), whole[:, restarts], numbers)
            best = whole[..., BEST_LOSS].argmin(1)
            best_kl = whole[np.arange(len(whole)), best, BEST_KL]
            kl, entropy = (
                [[None if value != value else value for value in row] for row in whole[..., column].tolist()]
                for column in (KL, ENTROPY)
            )
            evaluations = whole[..., EVALUATIONS].astype(int).tolist()
            columns = zip(kl, entropy, best_kl.tolist(), best.tolist(), evaluations, strict=True)
            self._steps += [TuneStep(len(self._steps) + i, *numbers) for i, numbers in enumerate(columns, 1)]
            self._latest = whole[-1]
        self._unread.clear()

    def _best_in_log(self) -> list[BestPrompt]:
        """The best prompt of the restarts that are in the batch."""
        if self._view is None or (bests := self._view[0].log.bests) is None:
            return []
        view, restarts = self._view
        order = {slot: place for place, slot in enumerate(bests.slots.tolist())}
        places = [order.get(slot) for slot in view.slots.tolist()]
        present = [(place, restart) for place, restart in zip(places, restarts, strict=True) if place is not None]
        if not present:
            return []
        losses = bests.best_loss[torch.tensor([place for place, _ in present], device=bests.best_loss.device)].cpu()
        place, restart = present[int(losses.argmin())]
        best = _best_of(bests, place, restart)
        watched = np.flatnonzero(bests.watched == bests.slots[place])
        if bests.log_q is None or not len(watched):
            return [best]
        log_q = bests.log_q[int(watched[0])].cpu()
        return [best if log_q.isnan().any() else best._replace(log_q=log_q)]

    def _advance(self, seen: int) -> None:
        if self._drive is not None:
            self._drive()
        else:
            self.wait(seen=seen)


class RunSnapshot(NamedTuple):
    """What a run has reported between two steps."""

    begun: int
    outcomes: dict[int, RowOutcome]
    steps: list[TuneStep]
    latest: np.ndarray
    """`(restarts WIDTH)`: the newest numbers of each restart, as in the log."""
    seconds: float
    cancelled: bool
    error: InputError | None
    bounds: Bounds


def _best_of(prompts: Bests | PromptState, place: int, restart: int) -> BestPrompt:
    """One row's best prompt, copied to the CPU."""
    loss, kl = float(prompts.best_loss[place]), float(prompts.best_kl[place])
    return BestPrompt(loss, kl, restart, prompts.best_ids[place].cpu(), prompts.best_embeds[place].cpu())
