"""Problems in, results out, for one model: what the local executor iterates over and what Ray calls."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from threading import RLock
from typing import Any

import numpy as np

from dpexplore.errors import InputError
from dpexplore.experiments.problems import ModelFacts, Problem
from dpexplore.experiments.store import result_row
from dpexplore.floor.of_model import softmax_floor
from dpexplore.floor.solver import rows_at_once
from dpexplore.models import LanguageModel, load_model
from dpexplore.targets import Target, build_many, parse_recipe
from dpexplore.targets.by_pos import pos_histogram, pos_left_out
from dpexplore.tuning import Engine, Run
from dpexplore.tuning.objectives.next_token import entropy_of
from dpexplore.tuning.record.capsule import library_versions
from dpexplore.tuning.record.precision import final_scores

FLUSH_SECONDS = 20.0
"""Finished results wait at most so long before they are handed over to be committed."""
TELL_SECONDS = 1.0
TARGETS_TOGETHER = 64
SCORED_TOGETHER = 64
"""Runs that have ended before their prompts are scored in a pass of their own; at most `TELL_SECONDS` later."""
ROWS_ON_CPU = 100
"""A processor gains nothing from larger batches, and answers later."""
SHAPE_POINTS = 200


@dataclass(frozen=True)
class Progress:
    """How far a worker is."""

    doing: float
    """Problems' worth of work done on problems that have not ended."""
    rows: int
    """Rows in the batch."""


@dataclass(frozen=True)
class Results:
    """Rows for the store."""

    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Failed:
    """A problem that cannot be computed, with the sentence why."""

    problem: Problem
    why: str


Event = Progress | Results | Failed


class Worker:
    """Holds one model. `run` is the one code path of every executor.

    Two threads may run problems at the same time: all rows are in one batch, so that those of the second fill the
    places that the first one's leave.
    """

    def __init__(self, model: str, device: str | None = None, max_rows: int | None = None) -> None:
        self._name, self._device, self._max_rows = model, device, max_rows
        self._lock = RLock()  # who holds it loads a model, or steps the batch
        self._lm: LanguageModel | None = None
        self._engine: Engine | None = None
        self._sources: dict[str, LanguageModel] = {}

    def facts(self) -> ModelFacts:
        """Load the model and say what it is. InputError if it cannot be loaded."""
        lm = self._model()
        return ModelFacts(self._name, lm.identity, lm.dtype_name, lm.vocab_size)

    def run(self, problems: Sequence[Problem], stop: Callable[[], bool] | None = None) -> Iterator[Event]:
        """Compute problems; results come as they are finished, not in order.

        `stop` is asked between steps: then what is finished is handed over and the rest is left undone.
        """
        stop = stop or (lambda: False)
        desk = _Desk(time.monotonic())
        by_kind: dict[str, list[Problem]] = {}
        for problem in problems:
            by_kind.setdefault(problem.kind, []).append(problem)
        parts = [
            *(self._simple(problem) for kind in ("shape", "pos_counts") for problem in by_kind.get(kind, [])),
            self._tune(by_kind.get("tune", []), stop),
            self._floors(by_kind.get("floor", []), stop),
        ]
        try:
            for part in parts:
                for event in part:
                    if isinstance(event, dict):
                        desk.rows.append(event)
                    elif event is not None:
                        yield event
                    if desk.due():
                        yield desk.hand_over()
                if stop():
                    break
        except Exception:  # what is finished must not go down with the rest
            if desk.rows:
                yield desk.hand_over()
            raise
        if desk.rows:
            yield desk.hand_over()

    def _model(self) -> LanguageModel:
        with self._lock:
            if self._lm is None:
                self._lm = load_model(self._name, device=self._device)
            return self._lm

    def _batch(self) -> tuple[Engine, int | None]:
        """The engine of all problems that run, and the rows that it may hold."""
        lm = self._model()
        rows = self._max_rows or (ROWS_ON_CPU if lm.device.type == "cpu" else None)
        with self._lock:
            self._engine = self._engine or Engine(lm, max_rows=rows)
            return self._engine, rows

    def _source(self, name: str) -> LanguageModel:
        """A model that targets are captured from, kept until the worker goes."""
        if name == self._name:
            return self._model()
        with self._lock:
            if name not in self._sources:
                self._sources[name] = load_model(name, device=self._device)
            return self._sources[name]

    def _row(self, problem: Problem, **numbers: Any) -> dict[str, Any]:
        lm = self._model()
        versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
        where = {"device": lm.device.type, "libraries": versions, "host": platform.node()}
        return result_row(problem, **numbers, **where)

    def _targets(self, problems: Sequence[Problem]) -> Iterator[tuple[list[Problem], Target | InputError]]:
        """Neighbouring problems of one recipe with its target, or with the reason why it has none."""
        groups = [list(group) for _, group in groupby(problems, key=lambda problem: problem.recipe)]
        for first in range(0, len(groups), TARGETS_TOGETHER):
            chunk = groups[first : first + TARGETS_TOGETHER]
            recipes = [parse_recipe(group[0].recipe) for group in chunk]
            try:
                built: list[Target | InputError] = list(build_many(recipes, self._model(), load=self._source))
            except InputError:  # one of them has no target; the others go on
                built = [self._build(recipe) for recipe in recipes]
            yield from zip(chunk, built, strict=True)

    def _build(self, recipe: Any) -> Target | InputError:
        try:
            return recipe.build(self._model(), load=self._source)
        except InputError as error:
            return error

    def _tune(self, problems: Sequence[Problem], stop: Callable[[], bool]) -> Iterator[Event | dict[str, Any] | None]:
        """All problems through one engine; whenever rows end, waiting ones take their place."""
        engine, rows = self._batch()
        waiting = ((p, target) for same, target in self._targets(_alike_together(problems)) for p in same)
        running: dict[Run, Problem] = {}
        ended: list[tuple[Problem, Run]] = []
        reported_at, empty, held = time.monotonic(), False, 0
        while not stop():
            # A batch without a bound grows by doubling until rows have to wait for memory.
            wanted = rows or max(ROWS_ON_CPU, 2 * held)
            while not empty and len(running) < wanted:
                more = list(islice(waiting, wanted - len(running)))
                empty = not more
                yield from self._submit(engine, more, running)
            if empty and not running:
                break
            with self._lock:
                engine.step()
                held = engine.active_rows
            ended += [(running.pop(run), run) for run in list(running) if run.finished]
            due = time.monotonic() - reported_at > TELL_SECONDS
            if len(ended) >= SCORED_TOGETHER or due:
                yield from self._tuned(ended)
                ended = []
            if due:
                reported_at = time.monotonic()
                yield Progress(engine.share_done(running), held)
            yield None
        yield from self._tuned(ended)
        for run in running:
            run.cancel()

    def _submit(
        self, engine: Engine, problems: Sequence[tuple[Problem, Target | InputError]], running: dict[Run, Problem]
    ) -> Iterator[Failed]:
        """Queue problems with their targets at once; those that can be run are added to `running`."""
        sound: list[tuple[Problem, Target]] = []
        for problem, target in problems:
            if isinstance(target, InputError):
                yield Failed(problem, str(target))
            else:
                sound.append((problem, target))
        runs = engine.submit_many((target, problem.config) for problem, target in sound)
        for (problem, _), run in zip(sound, runs, strict=True):
            if isinstance(run, InputError):
                yield Failed(problem, str(run))
            else:
                running[run] = problem

    def _tuned(self, ended: Sequence[tuple[Problem, Run]]) -> Iterator[dict[str, Any] | Failed]:
        """The rows of runs that have ended; every KL and entropy in float32."""
        for problem, run in ended:
            if run.error is not None:
                yield Failed(problem, str(run.error))
        sound = [(problem, run) for problem, run in ended if run.error is None]
        scored = self._scores([run for _, run in sound if run.outcomes[0].loss < float("inf")])
        for problem, run in sound:
            outcome, (kl, entropy, scored_in) = run.outcomes[0], scored.get(run, (None, None, "float32"))
            if scored_in != "float32":
                yield Failed(problem, f"The memory does not hold one layer of {run.lm.name} in float32 to score it.")
                continue
            yield self._row(
                problem,
                target_entropy_nats=run.target.entropy_nats,
                kl_nats=kl,
                entropy_nats=entropy,
                first_kl_nats=run.steps[0].kl_nats[0] if run.steps else None,
                reason=outcome.reason,
                steps=outcome.steps,
                evaluations=outcome.evaluations,
                prompt_ids=None if bool(run.layout.soft.any()) else outcome.ids.tolist(),
                seconds=run.seconds,
            )

    def _scores(self, runs: Sequence[Run]) -> dict[Run, tuple[float, float, str]]:
        """KL and entropy in nats of the best prompts, and what they were scored in; prompts of one length together."""
        by_length: dict[int, list[Run]] = {}
        for run in runs:
            by_length.setdefault(len(run.layout), []).append(run)
        found: dict[Run, tuple[float, float, str]] = {}
        for same in by_length.values():
            prompts = [(run.outcomes[0].ids, run.outcomes[0].embeds) for run in same]
            scores = final_scores(self._model(), [run.objective for run in same], prompts)
            entropies = entropy_of(scores.log_q.double()).tolist()
            for run, kl, entropy in zip(same, scores.kl.tolist(), entropies, strict=True):
                found[run] = kl, entropy, scores.scored_in
        return found

    def _floors(self, problems: Sequence[Problem], stop: Callable[[], bool]) -> Iterator[Event | dict[str, Any]]:
        together: list[tuple[Problem, Target]] = []
        left = len(problems)
        for same, target in self._targets(problems):
            left -= len(same)
            for problem in same:
                if isinstance(target, InputError):
                    yield Failed(problem, str(target))
                else:
                    together.append((problem, target))
            if together and (len(together) >= rows_at_once(self._model().device) or not left):
                yield from self._floors_of(together)
                together = []
            if stop():
                return

    def _floors_of(self, pairs: Sequence[tuple[Problem, Target]]) -> Iterator[Event | dict[str, Any]]:
        try:
            floors = softmax_floor(self._model(), [target for _, target in pairs])
        except InputError:  # no head that a floor could be computed for: that is a result too
            for problem, target in pairs:
                yield self._row(problem, target_entropy_nats=target.entropy_nats, reason="no_head")
            return
        for (problem, target), floor in zip(pairs, floors, strict=True):
            yield self._row(
                problem,
                target_entropy_nats=target.entropy_nats,
                reason=floor.status,
                floor_nats=floor.lower_bound_nats,
                head_optimum_nats=floor.head_optimum_nats,
                unconstrained_nats=floor.unconstrained_kl_nats,
                seconds=floor.seconds,
            )

    def _simple(self, problem: Problem) -> Iterator[Event | dict[str, Any]]:
        """A target's probabilities by rank, or the vocabulary's parts of speech."""
        try:
            if problem.kind == "pos_counts":
                lm = self._model()
                counts = pos_histogram(lm, "paper") | pos_left_out(lm, "paper")
                yield self._row(problem, names=list(counts), values=[float(count) for count in counts.values()])
                return
            target = parse_recipe(problem.recipe).build(self._model(), load=self._source)
        except InputError as error:
            yield Failed(problem, str(error))
            return
        probs = np.sort(target.probs.numpy())[::-1]
        ranks = np.unique(np.geomspace(1, len(probs), min(SHAPE_POINTS, len(probs))).round().astype(int))
        yield self._row(
            problem,
            target_entropy_nats=target.entropy_nats,
            names=[str(rank) for rank in ranks],
            values=probs[ranks - 1].tolist(),
        )


class _Desk:
    """Finished rows, until they are handed over."""

    def __init__(self, now: float) -> None:
        self.rows: list[dict[str, Any]] = []
        self._since = now

    def due(self) -> bool:
        return bool(self.rows) and time.monotonic() - self._since > FLUSH_SECONDS

    def hand_over(self) -> Results:
        rows, self.rows, self._since = self.rows, [], time.monotonic()
        return Results(rows)


def _alike_together(problems: Sequence[Problem]) -> list[Problem]:
    """Problems of one way of tuning side by side, so that they share a batch; otherwise in their order."""
    ways: dict[tuple[object, ...], list[Problem]] = {}
    for problem in problems:
        config = problem.config
        key = (config.rules, sum(slot.count for slot in config.parsed_slots().items if slot.kind != "text"))
        ways.setdefault(key, []).append(problem)
    return [problem for way in ways.values() for problem in way]
