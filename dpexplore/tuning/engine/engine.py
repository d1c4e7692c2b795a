"""The engine: rows of all runs of one model, stepped together; runs join and leave between steps."""

from __future__ import annotations

import logging
import math
import queue
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import torch

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.engine.capacity import Capacity, is_out_of_memory
from dpexplore.tuning.engine.fairness import Pace, fair_shares
from dpexplore.tuning.engine.passes import Batch, Evaluation
from dpexplore.tuning.engine.preparation import LookUp, SoftPart, preparation_of
from dpexplore.tuning.engine.rows import Row, RowStack, Rules, rules_of
from dpexplore.tuning.init.layout import Start
from dpexplore.tuning.init.lookup import table_bytes
from dpexplore.tuning.objectives.next_token import entropy_of
from dpexplore.tuning.run import RowReport, Run

logger = logging.getLogger(__name__)

INTERNAL_ERROR = "The run ended on an internal error, which the server has logged; try again."


class Engine:
    """Continuous batching for prompt tuning. One per loaded model; usable with and without a server thread.

    `submit` and `Run.cancel` may be called from any thread; `step` from one thread at a time.
    """

    def __init__(self, lm: LanguageModel, *, max_rows: int | None = None, served: bool = False) -> None:
        """`max_rows` bounds a pass; None leaves it to the memory present. `served`: another thread calls `step`."""
        self.lm = lm
        self.capacity = Capacity(lm, max_rows)
        self._served = served
        self._pace = Pace()
        self._arrivals: queue.SimpleQueue[Run] = queue.SimpleQueue()
        self._runs: list[Run] = []  # in order of arrival; only the stepping thread touches these two
        self._stacks: dict[tuple[int, Rules, Hashable], RowStack] = {}  # by prompt length, rules, objective's group

    def submit(
        self,
        target: Target,
        config: TuneConfig,
        starts: Sequence[Start] | None = None,
        resumed_from: dict[str, Any] | None = None,
        owner: str = "",
    ) -> Run:
        """Queue a run. InputError if the target, the prompt's length, the policy or the memory do not allow it.

        `starts` are the beginnings of the restarts in place of random ones: ids `(pos,)`, embeddings `(pos hidden)`;
        `resumed_from` is what the capsule shall say of the run that they come from. Runs of one `owner` share what is
        a fair part of the rows while other owners want some too.
        """
        run = self.prepare(target, config, starts, resumed_from, owner)
        self.queue(run)
        return run

    def prepare(
        self,
        target: Target,
        config: TuneConfig,
        starts: Sequence[Start] | None = None,
        resumed_from: dict[str, Any] | None = None,
        owner: str = "",
    ) -> Run:
        """A run that is checked as `submit` checks it, and waits to be queued."""
        run = Run(self.lm, target, config, None if self._served else self.step, starts, resumed_from, owner)
        run.preparation = preparation_of(run)
        if isinstance(run.preparation, LookUp):
            self.capacity.check_table(table_bytes(self.lm))
        for each in _with_parts(run):
            pairs, behind = rules_of(each)[2], each.objective.behind
            self.capacity.check(len(each.layout), each.config.restarts, each.config.steps, pairs, behind)
        return run

    def queue(self, run: Run) -> None:
        """Let a prepared run join at the next step."""
        self._arrivals.put(run)

    @property
    def running(self) -> int:
        """Runs that have not ended; from any thread a number of a moment ago."""
        return sum(run.part_of is None for run in self._runs) + self._arrivals.qsize()

    @property
    def active_rows(self) -> int:
        """Rows that the next pass would hold."""
        return sum(map(len, self._stacks.values()))

    def step(self) -> bool:
        """Evaluate every active row once and update it; False if there was nothing to do."""
        self._welcome()
        self._let_go()
        prepared = self._prepare()
        self._admit()
        if not self.active_rows:
            return prepared
        began, rows = time.monotonic(), self.active_rows
        for key, stack in list(self._stacks.items()):
            try:
                self._step_stack(stack)
            except Exception:
                if not self._served:
                    raise
                logger.exception("a step of %d rows failed", len(stack))
                del self._stacks[key]
                for run in {row.run for row in stack.rows}:
                    run.finish(InputError(INTERNAL_ERROR))
        self._pace.note(time.monotonic() - began, rows)
        self.capacity.went_well(full=any(run.waiting_rows for run in self._runs))
        self._let_go()
        return True

    def cancel_all(self) -> None:
        """End every run there is, keeping its best so far."""
        self._welcome()
        for run in self._runs:
            run.cancel()
        self._let_go()

    def pause(self, run: Run) -> None:
        """Take a run's rows out of the batches, with all that they know; they go on at the next step."""
        if run.active_rows:
            self._give(run, 0)

    def fail(self, error: InputError) -> None:
        """End every run there is with a sentence for its user: the engine itself has failed."""
        self._welcome()
        for run in self._runs:
            run.finish(error)
        self._runs.clear()
        self._stacks.clear()

    def _welcome(self) -> None:
        while not self._arrivals.empty():
            self._runs += _with_parts(self._arrivals.get())

    def _prepare(self) -> bool:
        """Runs whose restarts cannot begin yet make a part of what they lack; whether there is any such run."""
        lacking = [run for run in self._runs if run.preparation is not None and not run.ending]
        for run in lacking:
            assert run.preparation is not None
            try:
                ready = run.preparation.advance(self.capacity)
            except InputError as error:
                run.error = error
            except Exception:
                if not self._served:
                    raise
                logger.exception("preparing a run failed")
                run.error = InputError(INTERNAL_ERROR)
            else:
                run.preparation = None if ready else run.preparation
        return bool(lacking)

    def _admit(self) -> None:
        """Rows join, or make room, so that every owner has a fair share of what fits; queue positions follow.

        What fits is bounded by the memory and, where owners share, by the time that a step may take.
        """
        ready = [run for run in self._runs if run.preparation is None and not run.ending]
        runs = [run for run in ready if run.waiting_rows + run.active_rows]
        wanted = _wanted(runs)
        room = self._pace.room(len(wanted)) if len(wanted) > 1 else wanted.total()
        if any(run.waiting_rows for run in runs) or wanted.total() > room:
            shares = dict(zip(wanted, fair_shares([*wanted.values()], room), strict=True))
            for length in dict.fromkeys(len(run.layout) for run in runs):
                self._deal([run for run in runs if len(run.layout) == length], shares)
        for place, run in enumerate(runs):
            run.queue_position = 0 if run.begun else 1 + _rows_ahead(runs, place)

    def _deal(self, runs: list[Run], shares: dict[str, int]) -> None:
        """Deal the rows of one prompt length to its runs, in order of arrival within what their owners have left."""
        wanted = _wanted(runs)
        wants = [min(want, shares[owner]) for owner, want in wanted.items()]
        pairs, behind = max(rules_of(run)[2] for run in runs), max(run.objective.behind for run in runs)
        room = self.capacity.rows(len(runs[0].layout), pairs, behind)
        if len(wanted) == 1:  # nobody gains if rows that run already make room
            room = max(room, sum(run.active_rows for run in runs))
        for owner, share in zip(wanted, fair_shares(wants, room), strict=True):
            shares[owner] -= share
            for run in runs:
                if run.owner == owner:
                    given = min(run.waiting_rows + run.active_rows, share)
                    share -= given
                    self._give(run, given)

    def _give(self, run: Run, rows: int) -> None:
        """Let so many of a run's rows be in the batches."""
        more = rows - run.active_rows
        if more < 0:
            run.parked += self._stack_of(run).park(run, -more)
        elif more > 0:
            self._stack_of(run).resume(run, run.parked[:more])
            fresh = more - len(run.parked[:more])
            del run.parked[:more]
            if fresh:
                self._join(self._stack_of(run), run, fresh)

    def _stack_of(self, run: Run) -> RowStack:
        key = len(run.layout), rules_of(run), (type(run.objective), run.objective.group)
        return self._stacks.setdefault(key, RowStack(self.lm, key[1]))

    def _join(self, stack: RowStack, run: Run, count: int) -> None:
        """Some of a run's restarts begin; a run whose prompts have no beginning ends with a sentence."""
        try:
            stack.admit([Row(run, run.begun + i) for i in range(count)])
        except InputError as error:
            run.error = error
        else:
            run.begun += count

    def _let_go(self) -> None:
        """Rows that have ended leave, and with its last row a run ends."""
        for run in self._runs:
            if run.out_of_time:
                run.cancel()
            if run.ending and run.parked:
                self._stack_of(run).resume(run, run.parked)
                run.parked = []
        for key, stack in list(self._stacks.items()):
            for row, outcome in stack.leave():
                row.run.outcomes[row.restart] = outcome
            if not len(stack):
                del self._stacks[key]
        for run in self._runs:
            if not run.waiting_rows and len(run.outcomes) == run.begun:
                run.finish(run.error)
        self._runs = [run for run in self._runs if not run.finished]

    def _step_stack(self, stack: RowStack) -> None:
        """One step of the rows of one kind: whatever evaluations they ask for, in passes that fit the memory."""
        work = stack.step()
        batch = next(work, None)
        while batch is not None:
            found = self._evaluate(stack, batch)
            stack.count(batch.owners)
            try:
                batch = work.send(found)
            except StopIteration:
                batch = None
        if stack.rows:
            self._report(stack)

    def _evaluate(self, stack: RowStack, batch: Batch) -> Evaluation:
        """Everything asked of a batch, in as many passes as memory asks for."""
        parts: list[Evaluation] = []
        start, length, most = 0, batch.ids.shape[1], len(batch)
        behind = stack.rows[0].run.objective.behind
        while start < len(batch):
            size = min(self.capacity.rows(length, behind=behind), len(batch) - start, most)
            try:
                evaluated = self._try_pass(stack, batch, start, start + size)
            except Exception:
                if not self._served:
                    raise
                if size > 1:  # one prompt's trouble is not the others': look for it
                    most = size // 2
                    continue
                logger.exception("scoring a prompt of %d tokens failed", length)
                parts.append(self._give_up(stack, batch, start, INTERNAL_ERROR))
            else:
                if evaluated is None and size > 1:
                    self.capacity.ran_out(size)
                    continue
                parts.append(evaluated or self._give_up(stack, batch, start, self._too_long(length)))
            start += size
        grads = [part.grad for part in parts if part.grad is not None]
        return Evaluation(
            torch.cat([part.loss for part in parts]),
            torch.cat([part.kl for part in parts]),
            torch.cat([part.entropy for part in parts]),
            torch.cat(grads) if batch.grad else None,
        )

    def _try_pass(self, stack: RowStack, batch: Batch, start: int, stop: int) -> Evaluation | None:
        """Evaluate some prompts of a batch; None if memory ran out."""
        owners = batch.owners[start:stop].tolist()
        runs = [stack.rows[i].run for i in owners]
        try:
            with torch.set_grad_enabled(batch.grad):
                embeds = batch.part(self.lm, start, stop).requires_grad_(batch.grad)
                prefix = batch.prefix(start, stop)
                scores = runs[0].objective.score(self.lm, embeds, [run.objective for run in runs], prefix)
                grad = torch.autograd.grad(scores.loss.sum(), embeds)[0] if batch.grad else None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            losses, kls = scores.loss.detach().tolist(), scores.kl.tolist()
            entropies = torch.full_like(scores.kl, math.nan)
            best = list(range(len(owners))) if batch.grad else _best_of_each(owners, losses)
            entropies[best] = entropy_of(scores.log_q if batch.grad else scores.log_q[best])
            for i in best:
                if losses[i] < runs[i].best_loss:
                    restart = stack.rows[owners[i]].restart
                    runs[i].note_best(losses[i], kls[i], restart, scores.log_q[i], batch.ids[start + i], embeds[i])
            return Evaluation(scores.loss.detach(), scores.kl, entropies, grad)
        if self.lm.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _too_long(self, length: int) -> str:
        return (
            f"The memory does not hold a single prompt of {length:,} tokens for {self.lm.name}; "
            "a shorter prompt or a smaller model is accepted."
        )

    def _give_up(self, stack: RowStack, batch: Batch, index: int, reason: str) -> Evaluation:
        """This one prompt cannot be scored: its run ends with a sentence, the others go on."""
        stack.rows[int(batch.owners[index])].run.error = InputError(reason)
        nothing = torch.full((1,), math.nan, device=self.lm.device)
        grad = torch.full_like(batch.embeds[:1], math.nan) if batch.grad else None
        return Evaluation(nothing, nothing, nothing, grad)

    def _report(self, stack: RowStack) -> None:
        """Tell every run the numbers of its rows."""
        prompts = stack.prompts
        columns = [numbers.tolist() for numbers in (prompts.finite, prompts.kl, prompts.entropy, prompts.evaluations)]
        told: dict[Run, dict[int, RowReport]] = {}
        for row, finite, kl, entropy, evaluations in zip(stack.rows, *columns, strict=True):
            shown = (kl, entropy) if finite and math.isfinite(kl) else (None, None)
            told.setdefault(row.run, {})[row.restart] = RowReport(*shown, evaluations)
        for run, reports in told.items():
            run.note_step(reports)


def _with_parts(run: Run) -> list[Run]:
    """A run, and before it the one that prepares it, if there is any."""
    return [run.preparation.soft, run] if isinstance(run.preparation, SoftPart) else [run]


def _wanted(runs: list[Run]) -> Counter[str]:
    """Rows that each owner has or waits for, owners in order of arrival."""
    wanted = Counter[str]()
    for run in runs:
        wanted[run.owner] += run.waiting_rows + run.active_rows
    return wanted


def _rows_ahead(runs: list[Run], place: int) -> int:
    """Rows that get a place before the first one of `runs[place]`: the owner with the fewest rows is next."""
    run = runs[place]
    ahead = sum(other.waiting_rows for other in runs[:place] if other.owner == run.owner)
    own = ahead + sum(other.active_rows for other in runs if other.owner == run.owner)
    owners = list(_wanted(runs))
    for owner in owners:
        if owner != run.owner:
            theirs = [other for other in runs if other.owner == owner]
            turns = own - sum(other.active_rows for other in theirs) + (owners.index(owner) < owners.index(run.owner))
            ahead += max(0, min(sum(other.waiting_rows for other in theirs), turns))
    return ahead


def _best_of_each(owners: list[int], losses: list[float]) -> list[int]:
    """For each owner the place of its lowest loss; NaN never wins."""
    best: dict[int, int] = {}
    for place, (owner, loss) in enumerate(zip(owners, losses, strict=True)):
        if loss == loss and (owner not in best or loss < losses[best[owner]]):
            best[owner] = place
    return list(best.values())


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
