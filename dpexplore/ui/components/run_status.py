"""Where a run stands, in one line of HTML."""

from __future__ import annotations

from html import escape

from dpexplore.experiments.progress import duration
from dpexplore.serving.run_view import Moving, RunView
from dpexplore.tuning import TuneResult, TuneStep
from dpexplore.ui.components.markup import message, quantity

TODAY = " The target designer and the floor show what it gives today."


def status_line(view: RunView) -> str:
    """Where a run stands, or how it ended."""
    if view.error is not None:
        return message(view.error, "error")
    if view.result is not None:
        note = "" if view.note is None else message(view.note + TODAY * (view.recorded is not None))
        return _ended_line(view.result, view.recipe, view.interrupted) + note
    assert view.moving is not None
    return _moving_line(view.moving, view.step)


def _moving_line(run: Moving, step: TuneStep | None) -> str:
    if step is None:
        place = run.queue_position
        ahead = {1: "this run is next", 2: "1 row is ahead of this run"}
        full = f"The machine is full: {ahead.get(place, f'{place - 1:,} rows are ahead of this run')}"
        doing = run.preparation or "Preparing the first step"
        text = full if place else doing
        return f"<p class='dpx-message is-busy' data-place='{place}'>{text}</p>"
    left = f" · about {duration(run.seconds_left)} left at most" if run.seconds_left is not None else ""
    active = sum(kl is not None for kl in step.kl_nats)
    waiting = f" · {run.waiting_rows} wait for a place" if run.waiting_rows else ""
    return (
        f"<p class='dpx-message is-busy' data-moving data-step='{step.step}'><b>Running</b> · "
        f"step {step.step} of {run.steps} · "
        f"best {quantity(step.best_kl_nats, 'kl', 3)} (restart {step.best_restart + 1}) · "
        f"{active} of {run.restarts} restarts active{waiting}{left}</p>"
    )


def _ended_line(result: TuneResult, recipe: str, interrupted: bool) -> str:
    word = {"cancelled": "Stopped", "converged": "Converged", "max_steps": "Done", "nonfinite": "Failed"}[result.status]
    if interrupted:
        word = "Cut off when the server stopped"
    return (
        f"<p class='dpx-message is-ready' data-status='{result.status}'><b>{word}</b> · best "
        f"{quantity(result.kl_nats, 'kl', 3)} after {result.steps} steps in {result.seconds:.1f} s · "
        f"target <code>{escape(recipe[:80])}</code></p>"
    )
