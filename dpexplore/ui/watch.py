"""A run seen from the page: what to show while it moves, what when it has ended."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Generator
from dataclasses import dataclass
from html import escape

from dpexplore.errors import InputError
from dpexplore.tuning import Run, TuneResult, TuneStep
from dpexplore.ui.frames import Frames
from dpexplore.ui.markup import message, quantity
from dpexplore.ui.model_pool import INTERNAL_ERROR
from dpexplore.ui.streams import LiveStream, RankStream

logger = logging.getLogger(__name__)

UPDATE_SECONDS = 0.15
"""The page is told at most this often; faster updates cost the server and show nothing more."""
FRAME_SECONDS = 0.5
"""The achieved distribution is sent at most this often,"""
FRAMES_BEFORE_SLOWING = 40
"""and half as often after every so many: the page keeps them all."""

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


def watch_run(run: Run, marks: Marks = lambda: None) -> Generator[RunView]:
    """Views of a served run until it has ended; closing the iterator stops the run.

    `marks` is asked for the lines across the KL chart (`floor`, `head`, in nats) until it has them.
    """
    name = uuid.uuid4().hex[:12]
    live = LiveStream(name, run.config.restarts, run.config.steps, run.target.entropy_nats)
    ranks = RankStream(name, run.target.probs.numpy(), run.lm.token_text)
    frames = Frames(run.lm.vocab_size)
    latest: TuneStep | None = None
    seen, shown_best, last_frame, marked = 0, float("inf"), -FRAME_SECONDS, False
    try:
        while True:
            run.wait(UPDATE_SECONDS, seen)
            ended = run.finished
            steps = run.steps_since(seen)
            for step in steps:
                live.add_step(step.step, step.kl_nats, step.entropy_nats, step.best_restart)
            seen += len(steps)
            best = run.best_log_probs()
            pause = FRAME_SECONDS * 2 ** (ranks.frames // FRAMES_BEFORE_SLOWING)
            due = ended or time.monotonic() - last_frame >= pause
            if best is not None and steps and due and steps[-1].best_kl_nats < shown_best:
                shown_best, last_frame = steps[-1].best_kl_nats, time.monotonic()
                ranks.add_frame(steps[-1].step, best.numpy(), shown_best)
                frames.add(steps[-1].step, best.numpy())
            if not marked and (lines := marks()) is not None:
                marked = True
                live.mark(**lines)
            if ended:
                break
            latest = steps[-1] if steps else latest
            yield RunView(live.text, ranks.text, status_line(run, latest), latest)
            time.sleep(UPDATE_SECONDS / 2 if steps else 0)
        yield _last_view(run, live, ranks, frames)
    finally:
        run.cancel()


def _last_view(run: Run, live: LiveStream, ranks: RankStream, frames: Frames) -> RunView:
    try:
        result = run.result
    except InputError as error:
        return RunView(live.text, ranks.text, message(str(error), "error"))
    except Exception:
        logger.exception("scoring the result of a run failed")
        return RunView(live.text, ranks.text, message(INTERNAL_ERROR, "error"))
    live.mark(end=result.status)
    ranks.add_frame(result.steps, result.log_probs.numpy(), result.kl_nats)
    frames.add(result.steps, result.log_probs.numpy(), last=True)
    return RunView(live.text, ranks.text, ended_line(run, result), result=result, frames=frames)


def status_line(run: Run, step: TuneStep | None) -> str:
    """Where a moving run stands."""
    if step is None:
        ahead = run.queue_position
        text = f"Waiting for a place in the batch: {ahead} rows are ahead" if ahead else "Preparing the first step"
        return f"<p class='dpx-message is-busy'>{text}</p>"
    active = sum(kl is not None for kl in step.kl_nats)
    return (
        f"<p class='dpx-message is-busy' data-step='{step.step}'><b>Running</b> · "
        f"step {step.step} of {run.config.steps} · "
        f"best {quantity(step.best_kl_nats, 'kl', 3)} (restart {step.best_restart + 1}) · "
        f"{active} of {run.config.restarts} restarts active</p>"
    )


def ended_line(run: Run, result: TuneResult) -> str:
    """How a run ended."""
    word = {"cancelled": "Stopped", "converged": "Converged", "max_steps": "Done", "nonfinite": "Failed"}[result.status]
    return (
        f"<p class='dpx-message is-ready' data-status='{result.status}'><b>{word}</b> · best "
        f"{quantity(result.kl_nats, 'kl', 3)} after {result.steps} steps in {result.seconds:.1f} s · "
        f"target <code>{escape(run.target.recipe[:80])}</code></p>"
    )
