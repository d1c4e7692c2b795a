"""What is to be shown of a run: while it moves, when it has ended, and again from its record."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dpexplore.models import LanguageModel
from dpexplore.serving.frames import Frames
from dpexplore.serving.journal import Record
from dpexplore.serving.streams import LiveStream, RankStream, mark_line
from dpexplore.targets import Target
from dpexplore.tuning import Run, TuneResult, TuneStep, restore
from dpexplore.tuning.record.replay import changed_since, same_prompts, target_of
from dpexplore.wanted import while_asking


@dataclass(frozen=True)
class Moving:
    """Where a moving run stands, beside its latest step."""

    queue_position: int
    """0 when its rows are in the engine, else its place among those that wait."""
    preparation: str | None
    waiting_rows: int
    restarts: int
    steps: int
    seconds_left: float | None = None
    """Estimated most seconds to its last step; None before there is a pace."""

    @classmethod
    def of(cls, run: Run) -> Moving:
        preparing = None if run.preparation is None else run.preparation.text
        return cls(run.queue_position, preparing, run.waiting_rows, run.config.restarts, run.config.most_steps)


@dataclass(frozen=True)
class RunView:
    """What the page shows of a run at one moment."""

    live: str
    """The live chart's stream."""
    ranks: str
    """The rank chart's stream."""
    recipe: str
    """Of its target."""
    moving: Moving | None = None
    """While it moves."""
    step: TuneStep | None = None
    """The latest step, once there is one."""
    result: TuneResult | None = None
    """At the last view, unless the run failed."""
    frames: Frames | None = None
    """With the result: what the run said on its way."""
    error: str | None = None
    """The sentence with which it failed."""
    interrupted: bool = False
    """The server stopped before the run did."""
    note: str | None = None
    """What is otherwise today than when the run was recorded, in a sentence."""
    recorded: Target | None = None
    """The run's target, where its recipe gives another one today."""

    @property
    def marked(self) -> bool:
        """Whether the live chart has the floor's lines."""
        return '\n{"floor":' in self.live

    def with_marks(self, marks: dict[str, float | None]) -> RunView:
        """The same view with lines across the KL chart, nats."""
        return replace(self, live=self.live + mark_line(**marks))


def capsule_view(lm: LanguageModel, today: Target, capsule: dict[str, Any], record: Record | None = None) -> RunView:
    """A finished run as it was shown, from its capsule and its journal, if it has one. InputError as `restore`.

    today: what the capsule's recipe gives today. A chat template may write the date: then the run's own target is built
    from the prompt that its record holds, and the view says so.
    """
    recorded = None if same_prompts(today, capsule) else target_of(lm, capsule)
    target = recorded or today
    result = restore(lm, capsule, target)
    if record is None or not record.moments:  # a capsule from elsewhere has no streams
        live, ranks = _drawn_again(lm, target, capsule, result)
    else:
        live, ranks = record.live_stream(), record.rank_stream()
    frames = Frames(lm.vocab_size)
    frames.add(result.steps, result.log_probs.numpy(), last=True)
    interrupted = record is not None and record.interrupted
    note = changed_since(lm, capsule, target)
    return RunView(live, ranks, target.recipe, None, None, result, frames, None, interrupted, note, recorded)


def failed_view(record: Record) -> RunView:
    """A journaled run that left no prompt."""
    reason = record.error or "The server stopped before this run had made a step; press Tune to begin it again."
    recipe = str(record.head.get("target", {}).get("recipe", ""))
    return RunView(record.live_stream(), record.rank_stream(), recipe, error=reason)


def _drawn_again(lm: LanguageModel, target: Target, capsule: dict[str, Any], result: TuneResult) -> tuple[str, str]:
    """Both charts' streams of a capsule."""
    history, name = capsule["history"], f"capsule {capsule.get('created', '')}"
    rows = list(zip(history["kl_nats"], history["entropy_nats"], strict=True))
    live = LiveStream(name, _restarts_of(capsule), capsule["config"]["steps"], target.entropy_nats)
    for step, (kl, entropy) in enumerate(while_asking(rows), start=1):
        live.add_step(step, kl, entropy, result.best_restart)
    live.mark(end=result.status)
    ranks = RankStream(name, target.probs.numpy(), lm.token_text)
    ranks.add_frame(result.steps, result.log_probs.numpy(), result.kl_nats)
    return live.text, ranks.text


def _restarts_of(capsule: dict[str, Any]) -> int:
    """How many restarts a capsule tells of."""
    return max(len(capsule["restarts"]), *(len(row) for row in capsule["history"]["kl_nats"]), 1)
