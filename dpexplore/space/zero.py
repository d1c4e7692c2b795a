"""Tuning on a GPU that is lent by the minute (ZeroGPU): each run in slices, one forked process after the other.

The page's process keeps the model on the CPU, for targets and floors. A slice is a generator in a forked process
with the GPU: it takes a run's checkpoint up, steps it, tells of the steps, and leaves a checkpoint for the next slice.
"""

from __future__ import annotations

import contextvars
import copy
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.models.precision import choose_precision
from dpexplore.models.registry import default_device
from dpexplore.targets import Target
from dpexplore.tuning import Engine, Run, TuneConfig, TuneStep
from dpexplore.tuning.engine.checkpoint import Checkpoint, checkpoint, pack, restore, resume, unpack
from dpexplore.tuning.engine.fairness import NOBODY, Owner
from dpexplore.tuning.init.layout import Start
from dpexplore.tuning.objectives.next_token import entropy_of
from dpexplore.tuning.record.outcome import BestPrompt, RowOutcome

CPU = torch.device("cpu")

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 5.0
"""Seconds of work that a slice loses at most when it is cut off."""
TELL_SECONDS = 0.15
RESERVE_SECONDS = 8.0
"""A slice ends by itself so long before it would be cut off."""
MOST_FRUITLESS = 3
"""Slices in a row that bring nothing, after which a run ends with a sentence."""
NO_GPU = "The GPU was not lent, or was taken away again and again; please try again later."

Slice = Callable[[str, Checkpoint, float], Iterator["News"]]

_MODELS: dict[str, LanguageModel] = {}
"""Models that slices may ask for: a forked process finds them here, for what is handed to it is pickled."""


class News(NamedTuple):
    """What a slice tells."""

    steps: list[TuneStep]
    best: bytes | None
    """The best prompt, packed; None if it is the one sent last."""
    saved: Checkpoint | None
    """At times, and at the end."""
    ended: bool = False
    """Whether the run needs no further slice."""


def run_slice(model: str, saved: Checkpoint, seconds: float) -> Iterator[News]:
    """Go on with a run for `seconds`; runs where the GPU is."""
    began = time.monotonic()
    engine = Engine(_placed(_MODELS[model]), capture=False)  # a slice is too short for it to pay
    run = resume(engine, saved)
    seen, best, sent_at, kept = run.step_count, _best(run), began, began
    while not run.finished and time.monotonic() - began < seconds:
        engine.step()
        now = time.monotonic()
        if now - sent_at >= TELL_SECONDS or run.finished:
            keep = now - kept >= CHECKPOINT_SECONDS
            steps, before, best = run.steps_since(seen), best, _best(run)
            yield News(steps, _packed(best, before), checkpoint(engine, run) if keep else None)
            seen, sent_at, kept = seen + len(steps), now, now if keep else kept
    yield News(run.steps_since(seen), _packed(_best(run), best), checkpoint(engine, run), run.finished)


def slice_on_zero(seconds: int) -> Slice:
    """`run_slice` where ZeroGPU's package is there: on the lent GPU. It must be made once, when the server starts."""
    spaces: Any = sys.modules.get("spaces")
    return run_slice if spaces is None else spaces.GPU(duration=seconds)(run_slice)


class SlicedServer:
    """Tunes as `EngineServer` does, in slices: a thread for each run, which asks for one slice after the other."""

    def __init__(self, lm: LanguageModel, slice_of: Slice, seconds: int) -> None:
        self.lm = lm
        self.engine = Engine(lm, served=True)  # checks what is submitted; it never steps
        self._slice_of = slice_of
        self._seconds = max(seconds - RESERVE_SECONDS, 1.0)
        self._runs: list[Run] = []
        self._gate = threading.Lock()
        self._closing = False
        self._key = f"{lm.name}@{lm.dtype_name}"
        _MODELS[self._key] = lm

    @property
    def running(self) -> int:
        """Runs that have not ended."""
        with self._gate:
            self._runs = [run for run in self._runs if not run.finished]
            return len(self._runs)

    @property
    def owners(self) -> list[Owner]:
        """Whose these runs are, one entry a run."""
        with self._gate:
            return [run.owner for run in self._runs if not run.finished]

    def submit(
        self,
        target: Target,
        config: TuneConfig,
        starts: Sequence[Start] | None = None,
        resumed_from: dict[str, Any] | None = None,
        owner: Owner = NOBODY,
    ) -> Run:
        """As `EngineServer.submit`. The slices are charged to the account that made the request."""
        if self._closing:
            raise InputError(f"The model {self.lm.name} has been released; choose it again.")
        run = self.engine.prepare(target, config, starts, resumed_from, owner)
        with self._gate:
            self._runs.append(run)
        context = contextvars.copy_context()  # by which ZeroGPU knows whose request it is
        threading.Thread(target=context.run, args=(self._follow, run), name="slices", daemon=True).start()
        return run

    def close(self) -> None:
        """End all runs, keeping their best so far."""
        self._closing = True
        for run in self._runs:
            run.cancel()
        for run in self._runs:
            run.wait(timeout=RESERVE_SECONDS, seen=sys.maxsize)
        _MODELS.pop(self._key, None)

    def _follow(self, run: Run) -> None:
        """Slice after slice until the run has ended."""
        try:
            saved, fruitless = checkpoint(self.engine, run), 0
            while not run.ending and fruitless < MOST_FRUITLESS:
                before = len(run.steps)
                saved, ended = self._one_slice(run, saved)
                if ended:
                    there = restore(self.engine, saved)
                    run.snapshot = there.snapshot
                    return run.finish(run.error)
                fruitless = 0 if len(run.steps) > before else fruitless + 1
            if not run.ending and not run.steps:
                return run.finish(InputError(NO_GPU))
            self._wind_up(run, saved)
        except Exception:
            logger.exception("a run in slices failed")
            run.finish(InputError("The run ended on an internal error, which the server has logged; try again."))

    def _one_slice(self, run: Run, saved: Checkpoint) -> tuple[Checkpoint, bool]:
        """The last checkpoint of a slice, and whether the run ended in it."""
        try:
            for news in self._slice_of(self._key, saved, self._seconds):
                run.follow(news.steps, BestPrompt(*unpack(news.best, CPU)) if news.best else run.best_prompt())
                saved = news.saved or saved
                if run.steps:
                    run.preparation = None
                if news.ended or run.ending:
                    return saved, news.ended
        except Exception as error:  # of whatever kind ZeroGPU raises for a slice refused, or cut off
            logger.warning("a slice was refused or cut off: %s", type(error).__name__)
        return saved, False

    def _wind_up(self, run: Run, saved: Checkpoint) -> None:
        """End a run that was stopped, or got no further: what the last checkpoint holds, and the best since."""
        engine = Engine(self.lm)
        there = resume(engine, saved)
        there.cancel()
        engine.step()
        run.begun, run.outcomes = there.begun, there.outcomes
        best = run.best_prompt()
        if best is not None and (best.restart not in run.outcomes or best.loss < run.outcomes[best.restart].loss):
            scored, log_q = run.steps[-1].evaluations[best.restart], run.best_log_probs()
            entropy = math.nan if log_q is None else float(entropy_of(log_q))
            run.outcomes[best.restart] = RowOutcome(
                "cancelled", len(run.steps), scored, best.loss, best.kl_nats, entropy, best.ids, best.embeds
            )
        run.cancel()
        run.finish()


def _placed(lm: LanguageModel) -> LanguageModel:
    """The model on the device of this process."""
    device = default_device()
    if lm.device == device:
        return lm
    precision = choose_precision(lm.parameter_count, device, None if lm.dtype == torch.float32 else lm.dtype)
    model: Any = copy.deepcopy(lm.model)
    return LanguageModel(
        lm.name, model.to(device, precision.dtype), lm.tokenizer, lm.identity, dtype_reason=precision.why
    )


def _best(run: Run) -> BestPrompt | None:
    """The best prompt with its log q, which the page's process has no GPU to compute with."""
    best, log_q = run.best_prompt(), run.best_log_probs()
    return None if best is None else best._replace(log_q=best.log_q if best.log_q is not None else log_q)


def _packed(best: BestPrompt | None, sent: BestPrompt | None) -> bytes | None:
    if best is None or (sent is not None and (best.loss, best.restart) == (sent.loss, sent.restart)):
        return None
    return pack(tuple(best))
