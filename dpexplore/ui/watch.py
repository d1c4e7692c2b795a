"""A run seen from the page: what to show while it moves, what when it has ended. It outlives the page that began it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.serving.frames import Frames
from dpexplore.serving.journal import Record, RunFile
from dpexplore.serving.model_pool import INTERNAL_ERROR
from dpexplore.serving.streams import LiveStream, RankStream, mark_line
from dpexplore.targets import Target
from dpexplore.tuning import Run, TuneResult, TuneStep, restore
from dpexplore.tuning.record.capsule import describe_best
from dpexplore.ui.components.markup import message, quantity

logger = logging.getLogger(__name__)

UPDATE_SECONDS = 0.15
"""The page is told at most this often; faster updates cost the server and show nothing more."""
LOOK_SECONDS = 0.5
"""A run is looked at this often even if it has not moved: is it wanted still, is there a floor to draw?"""
SIGN_OF_LIFE_SECONDS = 2.5
"""The page is told this often even if there is nothing new: only then is it noticed that it was closed."""
FRAME_SECONDS = 0.5
"""The achieved distribution is sent at most this often,"""
FRAMES_BEFORE_SLOWING = 40
"""and half as often after every so many: the page keeps them all."""
JOURNAL_SECONDS = 0.8
"""The journal follows the run this closely."""
FIRST_LOOK_SECONDS = 15.0
"""A run that nobody has looked at yet is given so long."""

Marks = Callable[[], dict[str, float | None] | None]


@dataclass(frozen=True)
class RunView:
    """What the page shows of a run at one moment."""

    live: str
    """The live chart's stream."""
    ranks: str
    """The rank chart's stream."""
    status: str
    """One line of HTML."""
    step: TuneStep | None = None
    """The latest step, once there is one."""
    result: TuneResult | None = None
    """At the last view, unless the run failed."""
    frames: Frames | None = None
    """With the result: what the run said on its way."""

    @property
    def marked(self) -> bool:
        """Whether the live chart has the floor's lines."""
        return '\n{"floor":' in self.live

    def with_marks(self, marks: dict[str, float | None]) -> RunView:
        """The same view with lines across the KL chart, nats."""
        return replace(self, live=self.live + mark_line(**marks))


class LiveRun:
    """A run on the server. A thread of its own follows it, journals it, and stops it when nobody looks for long."""

    def __init__(
        self, run_id: str, model: str, run: Run, file: RunFile | None, marks: Marks = lambda: None, grace: float = 0.0
    ) -> None:
        """`marks` is asked for the lines across the KL chart (`floor`, `head`, in nats) until it has them; `grace` is
        how many seconds the run goes on when nobody looks at it."""
        self.id, self.model, self.run = run_id, model, run
        self.keep_running = False
        """Whether it goes on however long nobody looks."""
        self._file, self._marks, self._grace = file, marks, grace
        self._live = LiveStream(run_id, run.config.restarts, run.config.steps, run.target.entropy_nats)
        self._ranks = RankStream(run_id, run.target.probs.numpy(), run.lm.token_text)
        self._frames = Frames(run.lm.vocab_size)
        self._seen, self._latest, self._marked = 0, None, False
        self._shown_best, self._last_frame = float("inf"), -FRAME_SECONDS
        self._journaled, self._written, self._noted_best = 0.0, [0, 0], float("inf")
        self._viewers, self._looked, self._alone_since = 0, False, time.monotonic()
        self._last: RunView | None = None
        self._changes, self._changed = 0, threading.Condition()

    def start(self, ended: Callable[[LiveRun], None] = lambda _live: None) -> None:
        """Begin to follow the run; `ended` is called once its result, if it has one, can be seen and is journaled."""
        threading.Thread(target=self._follow, args=(ended,), name=f"run {self.id[:6]}", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether its result, if it has one, can be seen."""
        return self._last is not None

    def views(self) -> Generator[RunView]:
        """What to show, as it changes, until the run has ended. Closing the iterator means looking away."""
        told, told_at, seen = None, 0.0, -1
        with self._looking():
            while self._last is None:
                with self._changed:
                    self._changed.wait_for(lambda seen=seen: self._changes != seen, LOOK_SECONDS)
                    seen = self._changes
                view = self._view()
                if self._last is None and (view != told or time.monotonic() - told_at > SIGN_OF_LIFE_SECONDS):
                    yield view
                    told, told_at = view, time.monotonic()
                    time.sleep(UPDATE_SECONDS / 2)
            yield self._last

    async def rows(self) -> AsyncGenerator[RunView]:
        """A view for every look at the run, at most one for each step, and the last one; it takes no thread.

        Gradio cannot end a generator in a thread before its next value, and lets everybody else wait until then.
        """
        told = 0
        with self._looking():
            while self._last is None:
                view = self._view()
                if view.step is not None and view.step.step > told:
                    told = view.step.step
                    yield view
                await asyncio.sleep(UPDATE_SECONDS)
            yield self._last

    def cancel(self) -> None:
        """Stop within a step and keep the best so far."""
        self.run.cancel()

    def _view(self) -> RunView:
        return RunView(self._live.text, self._ranks.text, status_line(self.run, self._latest), self._latest)

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
            last = RunView(self._live.text, self._ranks.text, message(INTERNAL_ERROR, "error"))
            self._end_journal(None, INTERNAL_ERROR)
        self._last = last
        self._tell()
        ended(self)

    def _catch_up(self) -> None:
        """Bring streams, frames and journal to where the run stands."""
        ended, steps = self.run.finished, self.run.steps_since(self._seen)
        for step in steps:
            self._live.add_step(step.step, step.kl_nats, step.entropy_nats, step.best_restart)
        self._seen += len(steps)
        if steps:
            self._latest = steps[-1]
            self._add_frame(steps[-1], ended)
        lines = None if self._marked else self._marks()
        if lines is not None:
            self._marked = True
            self._live.mark(**lines)
        if ended or time.monotonic() - self._journaled >= JOURNAL_SECONDS:
            self._write_journal()
        if steps or lines is not None:
            self._tell()

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
        if self._file is None:
            return
        best = describe_best(self.run)
        if best is not None and best["loss"] < self._noted_best:
            self._noted_best = best["loss"]
        else:
            best = None
        texts = self._live.text, self._ranks.text
        self._file.update(texts[0][self._written[0] :], texts[1][self._written[1] :], best)
        self._written = [len(text) for text in texts]

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
            return RunView(self._live.text, self._ranks.text, message(str(error), "error"))
        self._live.mark(end=result.status)
        self._ranks.add_frame(result.steps, result.log_probs.numpy(), result.kl_nats)
        self._frames.add(result.steps, result.log_probs.numpy(), last=True)
        self._end_journal(result.capsule, None)
        line = ended_line(result, self.run.target.recipe)
        return RunView(self._live.text, self._ranks.text, line, self._latest, result, self._frames)


def capsule_view(lm: LanguageModel, target: Target, capsule: dict[str, Any], record: Record | None = None) -> RunView:
    """A finished run as it was shown, from its capsule and its journal, if it has one. InputError as `restore`."""
    result = restore(lm, capsule, target)
    if record is None or not record.live:  # a capsule from elsewhere has no streams
        live, ranks = _drawn_again(lm, target, capsule, result)
    else:
        live, ranks = "".join(f"{line}\n" for line in record.live), "".join(f"{line}\n" for line in record.ranks)
    frames = Frames(lm.vocab_size)
    frames.add(result.steps, result.log_probs.numpy(), last=True)
    interrupted = record is not None and record.interrupted
    return RunView(live, ranks, ended_line(result, target.recipe, interrupted), None, result, frames)


def failed_view(record: Record) -> RunView:
    """A journaled run that left no prompt."""
    reason = record.error or "The server stopped before this run had made a step; press Tune to begin it again."
    live, ranks = "".join(f"{line}\n" for line in record.live), "".join(f"{line}\n" for line in record.ranks)
    return RunView(live, ranks, message(reason, "error"))


def _drawn_again(lm: LanguageModel, target: Target, capsule: dict[str, Any], result: TuneResult) -> tuple[str, str]:
    """Both charts' streams of a capsule."""
    history, name = capsule["history"], f"capsule {capsule.get('created', '')}"
    rows = list(zip(history["kl_nats"], history["entropy_nats"], strict=True))
    live = LiveStream(name, _restarts_of(capsule), capsule["config"]["steps"], target.entropy_nats)
    for step, (kl, entropy) in enumerate(rows, start=1):
        live.add_step(step, kl, entropy, result.best_restart)
    live.mark(end=result.status)
    ranks = RankStream(name, target.probs.numpy(), lm.token_text)
    ranks.add_frame(result.steps, result.log_probs.numpy(), result.kl_nats)
    return live.text, ranks.text


def _restarts_of(capsule: dict[str, Any]) -> int:
    """How many restarts a capsule tells of."""
    return max(len(capsule["restarts"]), *(len(row) for row in capsule["history"]["kl_nats"]), 1)


def status_line(run: Run, step: TuneStep | None) -> str:
    """Where a moving run stands."""
    if step is None:
        place = run.queue_position
        ahead = {1: "this run is next", 2: "1 row is ahead of this run"}
        full = f"The machine is full: {ahead.get(place, f'{place - 1:,} rows are ahead of this run')}"
        doing = "Preparing the first step" if run.preparation is None else run.preparation.text
        text = full if place else doing
        return f"<p class='dpx-message is-busy' data-place='{place}'>{text}</p>"
    active = sum(kl is not None for kl in step.kl_nats)
    waiting = f" · {run.waiting_rows} wait for a place" if run.waiting_rows else ""
    return (
        f"<p class='dpx-message is-busy' data-moving data-step='{step.step}'><b>Running</b> · "
        f"step {step.step} of {run.config.steps} · "
        f"best {quantity(step.best_kl_nats, 'kl', 3)} (restart {step.best_restart + 1}) · "
        f"{active} of {run.config.restarts} restarts active{waiting}</p>"
    )


def ended_line(result: TuneResult, recipe: str, interrupted: bool = False) -> str:
    """How a run ended."""
    word = {"cancelled": "Stopped", "converged": "Converged", "max_steps": "Done", "nonfinite": "Failed"}[result.status]
    if interrupted:
        word = "Cut off when the server stopped"
    return (
        f"<p class='dpx-message is-ready' data-status='{result.status}'><b>{word}</b> · best "
        f"{quantity(result.kl_nats, 'kl', 3)} after {result.steps} steps in {result.seconds:.1f} s · "
        f"target <code>{escape(recipe[:80])}</code></p>"
    )
