"""A run: everything started by one press of Tune. It collects steps while it runs and its result at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.objective import NextTokenKL
from dpexplore.tuning.prompt import NO_TOKEN, Layout
from dpexplore.tuning.records import Status, TuneResult, TuneStep
from dpexplore.tuning.results import build_result
from dpexplore.tuning.rows import RowOutcome


class Run:
    """A target, a config and its restarts. Made by `Engine.submit`; iterate over it for its steps.

    Reading is safe from any thread. Without a server thread, iterating drives the engine.
    """

    def __init__(
        self, lm: LanguageModel, target: Target, config: TuneConfig, drive: Callable[[], object] | None
    ) -> None:
        """InputError if the target is over another vocabulary or the prompt too long for the model."""
        self.lm = lm
        self.target = target
        self.config = config
        self.layout = Layout.of(lm, config)
        self.objective = NextTokenKL(lm, target)
        self.cancel_requested = False
        self.queue_position = 0
        """Rows ahead of this run's first row; 0 once one of its rows runs."""
        self.begun = 0
        """Restarts whose rows have joined the engine."""
        self.error: InputError | None = None
        self.outcomes: dict[int, RowOutcome] = {}
        self.started = time.monotonic()
        self.seconds = 0.0
        self._drive = drive
        self._steps: list[TuneStep] = []
        self._changed = threading.Condition(threading.RLock())
        self._finished = False
        self._best: tuple[float, int, Tensor, Tensor] | None = None

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
        if all(outcome.kl_nats == torch.inf for outcome in self.outcomes.values()):
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
        best = self._best
        return None if best is None else best[2].cpu()

    def best_prompt_ids(self) -> list[int] | None:
        """Ids of the best prompt so far; None before the first step or with soft tokens."""
        best = self._best
        if best is None or (best[3] == NO_TOKEN).any():
            return None
        return best[3].tolist()

    @property
    def steps(self) -> list[TuneStep]:
        """All steps so far."""
        return list(self._steps)

    # What the engine calls.

    @property
    def waiting_rows(self) -> int:
        """Restarts that have not begun."""
        return 0 if self.error or self.cancel_requested else self.config.restarts - self.begun

    @property
    def best_kl_nats(self) -> float:
        return torch.inf if self._best is None else self._best[0]

    def note_best(self, kl_nats: float, restart: int, log_q: Tensor, ids: Tensor) -> None:
        """A restart has reached a new lowest KL; log_q `(vocab,)`, ids `(pos,)`."""
        self._best = (kl_nats, restart, log_q.clone(), ids.clone())

    def note_step(self, kl_nats: dict[int, float], entropy_nats: dict[int, float]) -> None:
        """The restarts that were evaluated in this step, with their numbers."""
        restarts = range(self.config.restarts)
        step = TuneStep(
            step=len(self._steps) + 1,
            kl_nats=[kl_nats.get(i) for i in restarts],
            entropy_nats=[entropy_nats.get(i) for i in restarts],
            best_kl_nats=self.best_kl_nats,
            best_restart=0 if self._best is None else self._best[1],
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

    def _advance(self, seen: int) -> None:
        if self._drive is not None:
            self._drive()
        else:
            self.wait(seen=seen)
