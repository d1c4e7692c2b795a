"""A run seen from the page: what to show while it moves, what when it has ended. It outlives the page that began it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from dpexplore.errors import InputError
from dpexplore.serving.frames import Frames
from dpexplore.serving.journal import RunFile
from dpexplore.serving.model_pool import INTERNAL_ERROR
from dpexplore.serving.run_view import Moving, RunView
from dpexplore.serving.streams import LiveStream, RankStream
from dpexplore.tuning import Run, TuneStep
from dpexplore.tuning.record.capsule import describe_best

logger = logging.getLogger(__name__)

UPDATE_SECONDS = 0.15
"""Seconds between two updates of the page at least; faster updates cost the server and show nothing more."""
LOOK_SECONDS = 0.5
"""A run is looked at this often even if it has not moved: is it wanted still, is there a floor to draw?"""
SIGN_OF_LIFE_SECONDS = 2.5
"""Seconds after which the page gets an update even if nothing is new: only a failing one shows that it was closed."""
FRAME_SECONDS = 0.5
"""The achieved distribution is sent at most this often,"""
FRAMES_BEFORE_SLOWING = 40
"""and half as often after each this many frames, because the page keeps them all."""
JOURNAL_SECONDS = 0.8
"""The journal follows the run this closely."""
FIRST_LOOK_SECONDS = 15.0
"""Seconds that a run goes on before anyone has looked at it."""

Marks = Callable[[], dict[str, float | None] | None]


class LiveRun:
    """A run on the server. A thread of its own follows it, journals it, and stops it when nobody looks for long."""

    def __init__(
        self,
        run_id: str,
        model: str,
        run: Run,
        file: RunFile | None,
        marks: Marks = lambda: None,
        grace: float = 0.0,
        name: str = "",
    ) -> None:
        """Follow `run`, which has begun.

        `marks` is asked for the lines across the KL chart (`floor`, `head`, in nats) until it has them; `grace` is how
        many seconds the run goes on when nobody looks at it.
        """
        self.id, self.model, self.run = run_id, model, run
        self.name = name
        """What people call it; journal and capsule follow."""
        self._named = name
        self.keep_running = False
        """Whether it goes on however long nobody looks."""
        self._file, self._marks, self._grace = file, marks, grace
        self._live = LiveStream(run_id, run.config.restarts, run.config.most_steps, run.target.entropy_nats)
        self._ranks = RankStream(run_id, run.target.probs.numpy(), run.lm.token_text)
        self._frames = Frames(run.lm.vocab_size)
        self._seen, self._latest, self._marked = 0, None, False
        self._shown_best, self._last_frame = float("inf"), -FRAME_SECONDS
        self._journaled, self._noted_best = 0.0, float("inf")
        self._moments: list[TuneStep | dict[str, float | None]] = []
        """Steps and marks that the journal has not got yet."""
        self._ranks_written = 0
        self._viewers, self._looked, self._alone_since = 0, False, time.monotonic()
        self._last: RunView | None = None
        self._first_step: tuple[float, int] | None = None
        """When the first steps were seen, and how many."""
        self.seconds_left: float | None = None
        """Estimated most seconds to its last step, at the pace so far; None before there is one."""
        self._changes, self._changed = 0, threading.Condition()

    def start(self, ended: Callable[[LiveRun], None] = lambda _live: None) -> None:
        """Begin to follow the run; `ended` is called once its result, if it has one, can be seen and is journaled."""
        threading.Thread(target=self._follow, args=(ended,), name=f"run {self.id[:6]}", daemon=True).start()

    @property
    def _recipe(self) -> str:
        return self.run.target.recipe

    @property
    def frames(self) -> Frames:
        """What it has said so far; grows while it moves."""
        return self._frames

    @property
    def ended(self) -> bool:
        """Whether its result, if it has one, can be seen."""
        return self._last is not None

    @property
    def last_view(self) -> RunView | None:
        """What is to be shown of it now that it has ended; None while it moves."""
        return self._last

    def glance(self) -> None:
        """Somebody has looked at it for a moment: its time of grace begins again."""
        with self._changed:
            self._looked, self._alone_since = True, time.monotonic()

    def views(self) -> Generator[RunView]:
        """What to show, as it changes, until the run has ended. Closing the iterator unsubscribes."""
        sent, sent_at, seen = None, 0.0, -1
        with self._looking():
            while self._last is None:
                with self._changed:
                    self._changed.wait_for(lambda seen=seen: self._changes != seen, LOOK_SECONDS)
                    seen = self._changes
                view = self._view()
                if self._last is None and (view != sent or time.monotonic() - sent_at > SIGN_OF_LIFE_SECONDS):
                    yield view
                    sent, sent_at = view, time.monotonic()
                    time.sleep(UPDATE_SECONDS / 2)
            yield self._last

    async def rows(self) -> AsyncGenerator[RunView]:
        """A view for every look at the run, at most one for each step, and the last one; it takes no thread.

        Gradio cannot end a generator in a thread before its next value, and lets everybody else wait until then.
        """
        shown = 0
        with self._looking():
            while self._last is None:
                view = self._view()
                if view.step is not None and view.step.step > shown:
                    shown = view.step.step
                    yield view
                await asyncio.sleep(UPDATE_SECONDS)
            yield self._last

    def cancel(self) -> None:
        """Stop within a step and keep the best so far."""
        self.run.cancel()

    def _view(self) -> RunView:
        return RunView(self._live.text, self._ranks.text, self._recipe, self._moving(), self._latest)

    def _moving(self) -> Moving:
        return replace(Moving.of(self.run), seconds_left=self.seconds_left)

    @contextmanager
    def _looking(self) -> Generator[None]:
        with self._changed:
            self._viewers, self._looked = self._viewers + 1, True
        try:
            yield
        finally:
            with self._changed:
                self._viewers -= 1
                self._alone_since = time.monotonic()

    # The run's own thread.

    def _follow(self, ended: Callable[[LiveRun], None]) -> None:
        try:
            while not self.run.finished:
                self.run.wait(LOOK_SECONDS, self._seen)
                self._catch_up()
                self._mind_grace()
                time.sleep(UPDATE_SECONDS / 2)
            self._catch_up()
            last = self._last_view()
        except Exception:
            logger.exception("following a run failed")
            self.run.cancel()
            last = RunView(self._live.text, self._ranks.text, self._recipe, error=INTERNAL_ERROR)
            self._end_journal(None, INTERNAL_ERROR)
        self._last = last
        self._tell()
        ended(self)

    def _catch_up(self) -> None:
        """Bring streams, frames and journal to where the run stands."""
        ended, steps = self.run.finished, self.run.steps_since(self._seen)
        for step in steps:
            self._live.add_step(step.step, step.kl_nats, step.entropy_nats, step.best_restart)
        self._moments += steps
        self._seen += len(steps)
        if steps:
            self._latest = steps[-1]
            self._pace()
            self._add_frame(steps[-1], ended)
        lines = None if self._marked else self._marks()
        if lines is not None:
            self._marked = True
            self._live.mark(**lines)
            self._moments.append(lines)
        if ended or time.monotonic() - self._journaled >= JOURNAL_SECONDS:
            self._write_journal()
        if steps or lines is not None:
            self._tell()

    def _pace(self) -> None:
        now, run = time.monotonic(), self.run
        if self._first_step is None:
            self._first_step = now, self._seen
        began, first = self._first_step
        if self._seen > first:
            self.seconds_left = (now - began) / (self._seen - first) * max(run.config.most_steps - self._seen, 0)
            if run.config.seconds is not None:
                self.seconds_left = max(min(self.seconds_left, run.started + run.config.seconds - now), 0.0)

    def _tell(self) -> None:
        """Wake those who look."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def _add_frame(self, step: TuneStep, ended: bool) -> None:
        pause = FRAME_SECONDS * 2 ** (self._ranks.frames // FRAMES_BEFORE_SLOWING)
        due = ended or time.monotonic() - self._last_frame >= pause
        best = self.run.best_log_probs() if due and step.best_kl_nats < self._shown_best else None
        if best is not None:
            self._shown_best, self._last_frame = step.best_kl_nats, time.monotonic()
            self._ranks.add_frame(step.step, best.numpy(), step.best_kl_nats)
            self._frames.add(step.step, best.numpy())

    def _write_journal(self) -> None:
        self._journaled = time.monotonic()
        moments, self._moments = self._moments, []
        if self._file is None:
            return
        best = describe_best(self.run)
        if best is not None and best["loss"] < self._noted_best:
            self._noted_best = best["loss"]
        else:
            best = None
        if self.name != self._named:
            self._named = self.name
            self._file.rename(self._named)
        self._file.update(moments, self._ranks.text[self._ranks_written :], best)
        self._ranks_written = len(self._ranks.text)

    def _end_journal(self, capsule: dict[str, Any] | None, error: str | None) -> None:
        if self._file is not None:
            self._write_journal()
            self._file.end(capsule, error)

    def _mind_grace(self) -> None:
        """Stop a run that nobody has looked at for longer than its time of grace."""
        grace = self._grace if self._looked else max(self._grace, FIRST_LOOK_SECONDS)
        with self._changed:
            alone = not self._viewers and time.monotonic() - self._alone_since > grace
        if alone and not self.keep_running:
            self.run.cancel()

    def _last_view(self) -> RunView:
        try:
            result = self.run.result
        except InputError as error:
            self._end_journal(None, str(error))
            return RunView(self._live.text, self._ranks.text, self._recipe, error=str(error))
        self._live.mark(end=result.status)
        self._ranks.add_frame(result.steps, result.log_probs.numpy(), result.kl_nats)
        self._frames.add(result.steps, result.log_probs.numpy(), last=True)
        result.capsule["name"] = self.name
        self._end_journal(result.capsule, None)
        return RunView(self._live.text, self._ranks.text, self._recipe, None, self._latest, result, self._frames)
