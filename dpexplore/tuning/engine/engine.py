"""The engine: rows of all runs of one model, stepped together; runs join and leave between steps."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from functools import partial
from typing import Any

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.models.interruption import prepare
from dpexplore.targets import Target
from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.engine.capacity import Capacity
from dpexplore.tuning.engine.evaluator import INTERNAL_ERROR, Evaluator
from dpexplore.tuning.engine.fairness import NOBODY, Owner, Pace, group_weights
from dpexplore.tuning.engine.preparation import LookUp, SoftPart, preparation_of
from dpexplore.tuning.engine.recovery import Recover
from dpexplore.tuning.engine.rows import RowStack, Rules, rules_of
from dpexplore.tuning.engine.scheduler import Claim, allocate, queue_positions, wanted_by_owner
from dpexplore.tuning.init.layout import Layout, Start
from dpexplore.tuning.init.lookup import table_bytes
from dpexplore.tuning.rules.state import End
from dpexplore.tuning.run import Run
from dpexplore.wanted import NotWanted

logger = logging.getLogger(__name__)

JOINING_AT_ONCE = 256
"""Restarts that begin together; between two such parts a run that was stopped ends."""
PREPARING_SECONDS = 0.5
"""What runs that prepare themselves take of a step, all together; a part that has begun is made."""
MOST_LAYOUTS = 256
"""Layouts of slots that an engine keeps."""


class Engine:
    """Continuous batching for prompt tuning. One per loaded model; usable with and without a server thread.

    `submit` and `Run.cancel` may be called from any thread; `step` from one thread at a time.
    """

    def __init__(
        self, lm: LanguageModel, *, max_rows: int | None = None, served: bool = False, capture: bool = True
    ) -> None:
        """`max_rows` bounds a pass; None leaves it to the memory present. `served`: another thread calls `step`.

        `capture` lets passes be recorded where the device can replay them; it pays after a few seconds.
        """
        self.lm = lm
        self.capacity = Capacity(lm, max_rows)
        prepare(lm)
        self.evaluator = Evaluator(lm, self.capacity, capture=capture, served=served)
        self.on_work: Callable[[], object] = lambda: None
        """Called, from any thread, when there is something to do in `step`."""
        self._served = served
        self._pace = Pace()
        self._arrivals: queue.SimpleQueue[Run] = queue.SimpleQueue()
        self._changed = threading.Condition(threading.RLock())
        self._attention: queue.SimpleQueue[Run] = queue.SimpleQueue()  # cancelled, or watched from now on
        self._layouts: dict[tuple[object, ...], Layout] = {}
        # Only the stepping thread touches what follows.
        self._runs: dict[Run, None] = {}  # in order of arrival
        self._timed: list[Run] = []  # those that may last so long and no longer
        self._preparing: list[Run] = []
        self._stacks: dict[tuple[int, Rules, Hashable], RowStack] = {}  # by prompt length, rules, objective's group
        self._reached: set[Run] = set()  # with a restart at the head's optimum, and others that have not begun
        self._unsettled = False  # whether somebody may have rows that others should have
        self._waiting = False  # whether somebody has fewer rows than wanted

    def submit(
        self,
        target: Target,
        config: TuneConfig,
        starts: Sequence[Start] | None = None,
        resumed_from: dict[str, Any] | None = None,
        owner: Owner = NOBODY,
    ) -> Run:
        """Queue a run. InputError if the target, the prompt's length, the policy or the memory do not allow it.

        `starts` are the beginnings of the restarts in place of random ones: ids `(pos,)`, embeddings `(pos hidden)`;
        `resumed_from` records in the capsule the run that they come from. Runs of one `owner` share what is
        a fair part of the rows while other owners want some too.
        """
        run = self.prepare(target, config, starts, resumed_from, owner)
        self.queue(run)
        return run

    def submit_many(
        self, problems: Iterable[tuple[Target, TuneConfig]], owner: Owner = NOBODY
    ) -> list[Run | InputError]:
        """Queue many runs at once, for each its run or the sentence why there is none.

        They join together at the next step.
        """
        runs: list[Run | InputError] = []
        checked: set[tuple[int, ...]] = set()
        for target, config in problems:
            try:
                runs.append(self.prepare(target, config, owner=owner, checked=checked))
            except InputError as error:
                runs.append(error)
        for run in runs:
            if isinstance(run, Run):
                self.queue(run)
        return runs

    def prepare(
        self,
        target: Target,
        config: TuneConfig,
        starts: Sequence[Start] | None = None,
        resumed_from: dict[str, Any] | None = None,
        owner: Owner = NOBODY,
        checked: set[tuple[int, ...]] | None = None,
    ) -> Run:
        """A run that is checked as `submit` checks it, and waits to be queued.

        `checked` are sizes that are known to fit, to which those of this run are added.
        """
        drive = None if self._served else self.step
        layout = self._layout(config)
        if starts and config.chat:
            layout = layout.around(starts[0][0])
        run = Run(self.lm, target, config, drive, starts, resumed_from, owner, layout, self._changed)
        run.on_change = self._notice
        run.preparation = preparation_of(run)
        if isinstance(run.preparation, LookUp | Recover):
            self.capacity.check_table(table_bytes(self.lm))
        checked = set() if checked is None else checked
        for each in _with_parts(run):
            pairs, behind = rules_of(each)[2], each.objective.behind
            size = len(each.layout), each.config.restarts, each.config.most_steps, pairs, behind
            if size not in checked:
                self.capacity.check(*size)
                checked.add(size)
        return run

    def _layout(self, config: TuneConfig) -> Layout:
        """The layout of a config's slots; runs that agree in it share one."""
        key = (config.slots, config.method, config.length, config.bos, config.chat, config.policy, *_lists(config))
        if key not in self._layouts:
            if len(self._layouts) >= MOST_LAYOUTS:
                self._layouts.clear()
            self._layouts[key] = Layout.of(self.lm, config)
        return self._layouts[key]

    def queue(self, run: Run) -> None:
        """Let a prepared run join at the next step."""
        self._arrivals.put(run)
        self.on_work()

    def _notice(self, run: Run) -> None:
        """Have a run seen to at the next step, and see that there is one: it may have no row that calls for it."""
        self._attention.put(run)
        self.on_work()

    @property
    def running(self) -> int:
        """Runs that have not ended; read from another thread it may be slightly stale."""
        return sum(run.part_of is None for run in list(self._runs)) + self._arrivals.qsize()

    @property
    def active_rows(self) -> int:
        """Rows that the next pass would hold."""
        return sum(map(len, self._stacks.values()))

    def share_done(self, runs: Collection[Run]) -> float:
        """Restarts' worth of work done on those restarts of some runs that are in the batches."""
        return sum(stack.share_done(runs) for stack in self._stacks.values())

    def step(self) -> bool:
        """Evaluate every active row once and update it; False if there was nothing to do."""
        self._receive()
        self._attend()
        prepared = self._prepare()
        self._allocate()
        if not self.active_rows:
            return prepared
        began, rows = time.monotonic(), self.active_rows
        for stack in list(self._stacks.values()):
            try:
                self._step_stack(stack)
            except Exception:
                if not self._served:
                    raise
                logger.exception("a step of %d rows failed", len(stack))
                for run in {row.run for row in stack.rows}:
                    run.fail(InputError(INTERNAL_ERROR))
        self._pace.note(time.monotonic() - began, rows)
        self._collect()
        self._attend()
        self.capacity.went_well(full=self._unsettled)
        return True

    def cancel_all(self) -> None:
        """End every run there is, keeping its best so far."""
        self._receive()
        for run in list(self._runs):
            run.cancel()
        self._attend()

    def pause(self, run: Run) -> None:
        """Take a run's rows out of the batches, with all that they know; they go on at the next step."""
        if run.active_rows:
            self._give(run, 0)
            self._unsettled = True

    def fail(self, error: InputError) -> None:
        """End every run there is with a sentence for its user: the engine itself has failed."""
        self._receive()
        for run in self._runs:
            run.finish(error)
        for kept in (self._runs, self._stacks, self._timed, self._preparing):
            kept.clear()

    def _receive(self) -> None:
        """Take up the runs that were queued."""
        while not self._arrivals.empty():
            for run in _with_parts(self._arrivals.get()):
                run.on_change = self._notice
                self._runs[run] = None
                if run.config.seconds is not None:
                    self._timed.append(run)
                if run.preparation is not None:
                    self._preparing.append(run)
                if run.ending:
                    self._notice(run)
                self._unsettled = True

    def _prepare(self) -> bool:
        """Runs whose restarts cannot begin yet make a part of what they lack; whether there is any such run.

        At least one of them does in every step, and more while there is time: the others are first in the next one.
        """
        lacking = [run for run in self._preparing if not run.ending]
        self._preparing = []
        began = time.monotonic()
        for place, run in enumerate(lacking):
            if place and time.monotonic() - began > PREPARING_SECONDS:
                self._preparing = lacking[place:] + self._preparing
                break
            assert run.preparation is not None
            try:
                ready = run.preparation.advance(self.capacity)
            except InputError as error:
                run.fail(error)
            except Exception:
                if not self._served:
                    raise
                logger.exception("preparing a run failed")
                run.fail(InputError(INTERNAL_ERROR))
            else:
                run.preparation = None if ready else run.preparation
                self._unsettled = self._unsettled or ready
                if not ready:
                    self._preparing.append(run)
        return bool(lacking)

    def _allocate(self) -> None:
        """Rows join, or make room, so that every owner has a fair share of what fits; queue positions follow.

        What fits is bounded by the memory and, where owners share, by the time that a step may take.
        """
        if not self._unsettled:
            return
        runs = [run for run in self._runs if run.preparation is None and not run.ending and run.wanted_rows]
        claims = [Claim(run.owner, len(run.layout), run.waiting_rows, run.active_rows) for run in runs]
        wanted = wanted_by_owner(claims)
        room = self._pace.room(sum(group_weights(wanted).values())) if len(wanted) > 1 else wanted.total()
        joining: dict[RowStack, list[tuple[Run, int]]] = {}
        if any(claim.waiting for claim in claims) or wanted.total() > room:
            given = allocate(claims, room, partial(self._fitting, _by_length(runs)))
            changes = [(run, rows - run.active_rows, rows) for run, rows in zip(runs, given, strict=True)]
            for run, more, rows in sorted(changes, key=lambda change: change[1] > 0):  # first those that make room
                if more:
                    joining.setdefault(self._stack_of(run), []).extend(self._give(run, rows))
        for stack, starters in joining.items():
            self._join(stack, starters)
        claims = [Claim(run.owner, len(run.layout), run.waiting_rows, run.active_rows) for run in runs]
        for run, position in zip(runs, queue_positions(claims), strict=True):
            run.queue_position = 0 if run.begun else position
        self._waiting = self._unsettled = any(claim.waiting for claim in claims)

    def _fitting(self, runs: dict[Hashable, list[Run]], length: Hashable) -> int:
        """Rows of one length that fit, by the run of that length that takes most."""
        pairs = max(rules_of(run)[2] for run in runs[length])
        behind = max(run.objective.behind for run in runs[length])
        return self.capacity.rows(len(runs[length][0].layout), pairs, behind)

    def _give(self, run: Run, rows: int) -> list[tuple[Run, int]]:
        """Bring the rows of a run in the batches to this number; the restarts that must begin for it."""
        more = rows - run.active_rows
        if more < 0:
            run.parked += self._stack_of(run).park(run, -more)
            return []
        self._stack_of(run).resume(run, run.parked[:more])
        fresh = more - len(run.parked[:more])
        del run.parked[:more]
        return [(run, run.begun + i) for i in range(fresh)]

    def _stack_of(self, run: Run) -> RowStack:
        key = len(run.layout), rules_of(run), (type(run.objective), run.objective.group)
        if key not in self._stacks:
            self._stacks[key] = RowStack(self.lm, key[1])
        return self._stacks[key]

    def _join(self, stack: RowStack, starters: list[tuple[Run, int]]) -> None:
        """Restarts begin, many together; those of a run that was stopped meanwhile do not."""
        for start in range(0, len(starters), JOINING_AT_ONCE):
            self._join_together(stack, [one for one in starters[start : start + JOINING_AT_ONCE] if not one[0].ending])

    def _join_together(self, stack: RowStack, starters: list[tuple[Run, int]]) -> None:
        """Restarts begin; where that fails, a run whose prompts have no start ends with a sentence."""
        runs = dict.fromkeys(run for run, _ in starters)
        try:
            if starters:
                stack.admit(starters)
        except InputError as error:
            if len(runs) == 1:
                return starters[0][0].fail(error)
            for run in runs:
                self._join_together(stack, [one for one in starters if one[0] is run])
            return
        for run, _ in starters:
            run.begun += 1

    def _attend(self) -> None:
        """See to the runs that were cancelled, failed, ran out of time or are watched from now on."""
        self._timed = [run for run in self._timed if not run.finished]
        for run in self._timed:
            if run.out_of_time and not run.cancel_requested:
                run.cancel()
        runs: dict[Run, None] = {}
        while not self._attention.empty():
            runs[self._attention.get()] = None
        if not runs:
            return
        runs.update({run: None for run in self._runs if run.part_of in runs})
        ending = {run for run in runs if run.ending and run in self._runs}
        for run in ending:
            if run.parked:
                self._stack_of(run).resume(run, run.parked)
                run.parked = []
            if isinstance(run.preparation, Recover) and run.error is None:
                run.preparation.leave()
        for stack in list(self._stacks.values()):
            stack.leave(stack.places_of(ending), End.CANCELLED)
            if watched := [run for run in runs if run.watched and run not in ending]:
                stack.watch({row.run for row in stack.rows if row.run.watched or row.run in watched})
        self._retire(ending)

    def _collect(self) -> None:
        """Let go of the rows that have ended by themselves."""
        stacks = list(self._stacks.values())
        gone = dict.fromkeys(row.run for stack in stacks for row, _ in stack.leave_ended())
        self._reached |= {run for run in gone if run.reached}
        if self._reached:  # their other restarts have nothing left to find
            for stack in stacks:
                gone.update({row.run: None for row, _ in stack.leave(stack.places_of(self._reached), End.CONVERGED)})
            self._reached = {run for run in self._reached if run.waiting_rows}
        self._retire(gone)
        with self._changed:
            self._changed.notify_all()

    def _retire(self, runs: Iterable[Run]) -> None:
        """With its last row a run ends."""
        for run in runs:
            self._unsettled = self._unsettled or self._waiting
            if not run.waiting_rows and len(run.outcomes) == run.begun:
                self._runs.pop(run, None)
                run.finish(run.error)
        self._stacks = {key: stack for key, stack in self._stacks.items() if len(stack)}

    def _step_stack(self, stack: RowStack) -> None:
        """One step of the rows of one kind: whatever evaluations they ask for, in passes that fit the memory.

        The step is given up where it is when nobody wants it any more.
        """
        work, steps = stack.step(), stack.prompts.step
        batch = next(work, None)
        while batch is not None:
            try:
                found = self.evaluator.evaluate(stack, batch)
            except NotWanted:
                work.close()
                if stack.prompts.step is not steps:  # it had taken the prompts' numbers
                    stack.report()
                return
            stack.count(batch.owners)
            try:
                batch = work.send(found)
            except StopIteration:
                batch = None
        stack.report()


def _lists(config: TuneConfig) -> tuple[object, ...]:
    return tuple((type(token), token) for token in (*config.allow, None, *config.forbid))


def _by_length(runs: Sequence[Run]) -> dict[Hashable, list[Run]]:
    found: dict[Hashable, list[Run]] = {}
    for run in runs:
        found.setdefault(len(run.layout), []).append(run)
    return found


def _with_parts(run: Run) -> list[Run]:
    """A run, and before it the one that prepares it, if there is any."""
    return [run.preparation.soft, run] if isinstance(run.preparation, SoftPart) else [run]


def tune(lm: LanguageModel, target: Target, config: TuneConfig | None = None) -> Run:
    """Start a run with an engine of its own; iterating over it, or asking for its result, makes it move.

    ```
    run = tune(lm, target, TuneConfig(method="soft", restarts=5, steps=500, seed=0))
    for step in run: ...
    run.result.kl_nats
    ```
    InputError if the target is over another vocabulary, the prompt too long, or the memory too small.
    """
    return Engine(lm).submit(target, config or TuneConfig())
