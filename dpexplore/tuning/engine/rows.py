"""Rows: the prompts of all restarts of one length and one rule, with their state, stacked."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.tuning.engine.log import WIDTH, Bests, StepLog
from dpexplore.tuning.engine.parked import ParkedRow
from dpexplore.tuning.engine.passes import Batch, Evaluation
from dpexplore.tuning.init.layout import initial_prompt
from dpexplore.tuning.record.outcome import RowOutcome, StopReason
from dpexplore.tuning.rules.adamw import AdamW
from dpexplore.tuning.rules.ball import within
from dpexplore.tuning.rules.direct import Direct
from dpexplore.tuning.rules.eq4 import Eq4
from dpexplore.tuning.rules.gcg import GCG
from dpexplore.tuning.rules.hard import HardRule
from dpexplore.tuning.rules.lbfgs import LBFGS
from dpexplore.tuning.rules.memory import SearchMemory
from dpexplore.tuning.rules.search import Search
from dpexplore.tuning.rules.soft import SoftRule
from dpexplore.tuning.rules.state import End, Limits, PromptState, RowState
from dpexplore.tuning.run import Run

Rules = tuple[str | None, str | None, int]
"""What makes rows of a kind: the rule of the soft and of the hard slots, and how much the soft rule remembers."""


@dataclass(frozen=True, eq=False)
class Row:
    """One restart of one run."""

    run: Run
    restart: int
    slot: int = 0
    """Where its numbers stand in the log of its batch."""
    memory: SearchMemory = field(default_factory=SearchMemory)
    """What a search over tokens remembers of its own prompts."""


def rules_of(run: Run) -> Rules:
    """Rows of runs that agree in this and in their length are stepped together."""
    soft, hard = run.config.rules
    return soft, hard, run.config.memory if soft in ("lbfgs", "direct") else 0


def soft_rule(name: str | None, history_size: int) -> SoftRule:
    """The rule of the soft slots by its name; where there are none, AdamW, which then moves nothing."""
    match name:
        case "adamw" | None:
            return AdamW()
        case "lbfgs":
            return LBFGS(history_size)
        case "direct":
            return Direct(history_size)
    raise ValueError(f"There is no rule {name!r} for soft slots.")


def hard_rule(name: str | None) -> HardRule:
    """The rule of the hard slots by its name; where there are none it is not asked."""
    match name:
        case "eq4" | None:
            return Eq4()
        case "gcg":
            return GCG()
        case "search":
            return Search()
    raise ValueError(f"There is no rule {name!r} for hard slots.")


_REASONS: dict[End, StopReason] = {
    End.CONVERGED: "converged",
    End.MAX_STEPS: "max_steps",
    End.NONFINITE: "nonfinite",
    End.CANCELLED: "cancelled",
}


class RowStack:
    """The rows of one prompt length and one pair of rules; one step advances them all.

    A row may hold soft and hard positions (hybrid), so the three methods are one loop: the soft positions move by the
    soft rule, the hard ones by the hard rule.
    """

    def __init__(self, lm: LanguageModel, rules: Rules = ("adamw", "eq4", 0)) -> None:
        self.lm = lm
        self.rows: list[Row] = []
        self.soft_rule = soft_rule(rules[0], rules[2])
        self.hard_rule = hard_rule(rules[1])
        self.log = StepLog()
        self.prompts: PromptState
        """Of all rows, as what follows; there are none before the first row."""
        self.soft_state: RowState
        self._limits: Limits
        self._slots = np.zeros(0, dtype=np.int64)
        self._objectives = np.zeros(0, dtype=object)
        self._ended = np.zeros(0, dtype=np.int64)
        self._watched_slots = self._ended
        self._watched = torch.zeros(0, dtype=torch.long, device=lm.device)
        self._log_q: Tensor | None = None
        self._unscreened = False
        self._has_soft, self._has_hard = rules[0] is not None, rules[1] is not None

    def __len__(self) -> int:
        return len(self.rows)

    def admit(self, starters: Sequence[tuple[Run, int]]) -> None:
        """Let restarts of runs join, each at its own start. InputError if one has none (see `initial_prompt`)."""
        device, runs = self.lm.device, [run for run, _ in starters]
        starts = [run.beginning(restart) for run, restart in starters]
        ids, embeds = (torch.stack(parts) for parts in zip(*starts, strict=True))
        soft, hard = (torch.stack([getattr(run.layout, kind) for run in runs]).to(device) for kind in ("soft", "hard"))
        spent = torch.tensor([run.evaluations_of(restart) for run, restart in starters], device=device)
        budget = torch.tensor([run.norm_budget for run in runs], device=device)
        strict = torch.tensor([run.config.strict for run in runs], device=device) & soft.any(1) & hard.any(1)
        prompts = PromptState.of(ids, embeds, soft, hard, strict, budget, spent)
        rows = [Row(run, restart) for run, restart in starters]
        self._unscreened = self._unscreened or any(run.config.beginnings > 1 for run in runs)
        self._append(rows, prompts, self.soft_rule.begin(prompts.embeds, [run.config for run in runs]))

    def resume(self, run: Run, parked: list[ParkedRow]) -> None:
        """Let parked rows of a run go on from where they stood."""
        if parked:
            prompts, soft = [one.prompts for one in parked], [one.soft for one in parked]
            rows = [Row(run, one.restart, memory=one.memory) for one in parked]
            self._append(rows, PromptState.cat(prompts), type(soft[0]).cat(soft))

    def park(self, run: Run, count: int) -> list[ParkedRow]:
        """Take out the last `count` rows of a run with all that they know; what they would do next stays the same."""
        places = [i for i, row in enumerate(self.rows) if row.run is run][-count:]
        each = [(self.rows[i], torch.tensor([i], device=self.lm.device)) for i in places]
        parked = [
            ParkedRow(row.restart, row.memory, self.prompts.pick(at), self.soft_state.pick(at)) for row, at in each
        ]
        self._drop(places)
        return parked

    def step(self) -> Generator[Batch, Evaluation, None]:
        """Ask for the evaluations of one step and move on by them; rows that have ended stay until `leave`."""
        if not self.rows:
            return
        prompts = self.prompts
        if self._unscreened:
            yield from self._screen()
            self._unscreened = False
        present = Batch.of_prompts(prompts.ids, prompts.embeds, grad=True)
        found = yield present
        assert found.grad is not None
        prompts.step = prompts.step + (prompts.ended == End.RUNNING)
        prompts.finite = torch.isfinite(found.loss) & torch.isfinite(found.grad).flatten(1).all(1)
        self.take(found, prompts.ids, prompts.embeds)
        prompts.steps_since_best = prompts.steps_since_best + 1
        settled = torch.ones_like(prompts.finite)
        if self._has_soft:
            settled = self.soft_rule.update(self.soft_state, prompts, found.loss, found.grad)
        if self._has_hard:
            yield from self.hard_rule.turn(self, present.embeds, found, settled & prompts.finite)
        prompts.assign(prompts.improved, steps_since_best=0)
        prompts.improved = torch.zeros_like(prompts.improved)
        self._end()

    def _end(self) -> None:
        """Mark the rows that end with this step."""
        prompts, limits = self.prompts, self._limits
        ended = prompts.ended
        spent = (prompts.step >= limits.steps) | (prompts.evaluations >= limits.evaluations)
        stopped = self.soft_rule.ended(self.soft_state) & ~prompts.hard.any(1)
        found = prompts.best_kl <= limits.enough
        converged = stopped | found | (prompts.steps_since_best >= limits.patience)
        lost = ~prompts.finite & ~self.soft_rule.returns(self.soft_state)
        for which, end in ((spent, End.MAX_STEPS), (converged, End.CONVERGED), (lost, End.NONFINITE)):
            ended = torch.where(which & (prompts.ended == End.RUNNING), int(end), ended)
        prompts.ended = ended.to(torch.int8)

    def take(self, found: Evaluation, ids: Tensor, embeds: Tensor, rows: Tensor | None = None) -> None:
        """Note the numbers of one prompt a row: what the row reports for this step, and its best.

        `found`, ids `(rows pos)` and embeds `(rows pos hidden)` have one entry for each row; `rows` `(rows,)` bool
        leaves some of them out.
        """
        prompts = self.prompts
        counts = prompts.ended == End.RUNNING if rows is None else rows & (prompts.ended == End.RUNNING)
        better = counts & torch.isfinite(found.loss) & (found.loss < prompts.best_loss)
        prompts.assign(counts, kl=found.kl, entropy=found.entropy)
        prompts.assign(better, best_loss=found.loss, best_kl=found.kl, best_entropy=found.entropy)
        prompts.assign(better, best_ids=ids, best_embeds=embeds)
        prompts.improved = prompts.improved | better
        if self._log_q is not None and found.log_q is not None:
            places = self._watched
            self._log_q = torch.where(better[places, None], found.log_q[places], self._log_q)

    def unwanted(self) -> bool:
        """Whether all its rows leave at the next step, whatever they would still do."""
        return all(row.run.ending for row in self.rows)

    def count(self, owners: Tensor) -> None:
        """Prompts have been evaluated, one for each entry of `owners`, which name their rows."""
        scored = torch.zeros_like(self.prompts.evaluations).scatter_add(0, owners, torch.ones_like(owners))
        self.prompts.evaluations = self.prompts.evaluations + scored * (self.prompts.ended == End.RUNNING)

    def share_done(self, runs: Collection[Run]) -> float:
        """Restarts' worth of steps that these runs' rows have made of those that they may make."""
        places = torch.tensor(self.places_of(runs), dtype=torch.long, device=self.lm.device)
        return float((self.prompts.step / self._limits.steps)[places].sum())

    def objectives(self, owners: Tensor | None = None) -> Sequence[Any]:
        """The objectives of some rows `(prompts,)`, or of all."""
        return (self._objectives if owners is None else self._objectives[owners.cpu().numpy()]).tolist()

    def report(self) -> None:
        """Write the step's numbers into the log; `ended` then tells of the rows that it was the last one of."""
        prompts = self.prompts
        shown = prompts.finite & torch.isfinite(prompts.kl)
        kl, entropy = (torch.where(shown, column, torch.nan) for column in (prompts.kl, prompts.entropy))
        columns = [kl, entropy, prompts.best_loss, prompts.best_kl, prompts.evaluations, prompts.ended]
        numbers = torch.stack([column.float() for column in columns], 1).cpu().numpy()
        self._publish()
        self.log.append(self._slots, numbers[:, :WIDTH])
        self._ended = numbers[:, WIDTH].nonzero()[0]

    def leave(self, places: Sequence[int], end: End | None = None) -> list[tuple[Row, RowOutcome]]:
        """Let go of the rows at `places`, which have ended by themselves, or are ended now by `end`."""
        if not len(places):
            return []
        index = torch.tensor(places, device=self.lm.device)
        p = self.prompts
        counts = [column[index].tolist() for column in (p.ended, p.step, p.evaluations)]
        found = [column[index].tolist() for column in (p.best_loss, p.best_kl, p.best_entropy)]
        ids, embeds = p.best_ids[index].cpu(), p.best_embeds[index].cpu()
        gone = [
            (self.rows[place], RowOutcome(_REASONS[end or End(reason)], *numbers))
            for place, reason, *numbers in zip(places, *counts, *found, ids, embeds, strict=True)
        ]
        for row, outcome in gone:
            row.run.outcomes[row.restart] = outcome
        self._drop(places)
        return gone

    def leave_ended(self) -> list[tuple[Row, RowOutcome]]:
        """Drop the rows of the latest report."""
        ended, self._ended = self._ended, self._ended[:0]
        return self.leave(ended.tolist())

    def places_of(self, runs: Collection[Run]) -> list[int]:
        """Where the rows of some runs stand."""
        return [i for i, row in enumerate(self.rows) if row.run in runs]

    def watch(self, runs: Collection[Run]) -> None:
        """From now on keep log q of the best prompts of these runs' rows, and of no others."""
        places = self.places_of(runs)
        kept = {} if self._log_q is None else dict(zip(self._watched_slots.tolist(), self._log_q, strict=True))
        self._watched_slots = self._slots[places]
        self._watched = torch.tensor(places, dtype=torch.long, device=self.lm.device)
        nothing = torch.full((self.answers,), torch.nan, device=self.lm.device)
        logs = [kept.get(slot, nothing) for slot in self._watched_slots.tolist()]
        self._log_q = torch.stack(logs) if logs else None
        self._publish()

    @property
    def watches(self) -> bool:
        """Whether log q of evaluations is wanted."""
        return self._log_q is not None

    @property
    def answers(self) -> int:
        """The length of log q of a prompt, which is the same for all rows."""
        return self.rows[0].run.objective.answers if self.rows else self.lm.vocab_size

    def _append(self, rows: list[Row], prompts: PromptState, soft: RowState) -> None:
        slots = self.log.claim(len(rows))
        rows = [replace(row, slot=slot) for row, slot in zip(rows, slots.tolist(), strict=True)]
        runs = [row.run for row in rows]
        limits = Limits.of([run.config for run in runs], [run.bounds.enough_nats for run in runs], self.lm.device)
        if self.rows:
            prompts, soft = PromptState.cat([self.prompts, prompts]), type(soft).cat([self.soft_state, soft])
            limits = Limits.cat([self._limits, limits])
        self.prompts, self.soft_state, self._limits = prompts, soft, limits
        objectives = np.empty(len(rows), dtype=object)
        objectives[:] = [row.run.objective for row in rows]
        self._objectives = np.concatenate([self._objectives, objectives])
        self._slots = np.concatenate([self._slots, slots])
        self.rows = self.rows + rows
        self._membership_changed({row.run for row in rows})

    def _drop(self, places: Sequence[int]) -> None:
        """Let go of the rows at `places`."""
        kept = np.delete(np.arange(len(self.rows)), places)
        runs, freed = {self.rows[place].run for place in places}, self._slots[list(places)]
        index = torch.tensor(kept, device=self.lm.device)
        self.prompts, self.soft_state = self.prompts.pick(index), self.soft_state.pick(index)
        self._limits = self._limits.pick(index)
        self._objectives, self._slots = self._objectives[kept], self._slots[kept]
        self.rows = [self.rows[place] for place in kept.tolist()]
        self._membership_changed(runs)
        self.log.release(freed)

    def _membership_changed(self, runs: set[Run]) -> None:
        """Runs whose rows have joined or left read other places of the log from now on."""
        places: dict[Run, list[Row]] = {run: [] for run in runs}
        for row in self.rows:
            if row.run in places:
                places[row.run].append(row)
        if self._log_q is not None:
            self.watch({row.run for row in self.rows if row.run.watched})
        else:
            self._publish()
        for run, rows in places.items():
            slots = np.array([row.slot for row in rows], dtype=np.int64)
            run.read_from(self.log.view(slots) if rows else None, [row.restart for row in rows])

    def _publish(self) -> None:
        """Let the best prompts be read by other threads."""
        p = self.prompts
        self.log.bests = Bests(
            self._slots, p.best_loss, p.best_kl, p.best_ids, p.best_embeds, self._watched_slots, self._log_q
        )

    def _screen(self) -> Generator[Batch, Evaluation, None]:
        """Rows at their first step take the best of several random initialisations."""
        prompts = self.prompts
        drawn: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for i, (row, step) in enumerate(zip(self.rows, prompts.step.tolist(), strict=True)):
            run = row.run
            if step == 0 and run.config.beginnings > 1 and run.starts is None:
                draws = range(1, run.config.beginnings)
                probs, last = run.objective.token_probs, run.last_tokens
                others = [initial_prompt(self.lm, run.layout, run.config, row.restart, n, probs, last) for n in draws]
                drawn[i] = [(prompts.ids[i], prompts.embeds[i]), *others]
        if not drawn:
            return
        owners = torch.tensor([i for i, starts in drawn.items() for _ in starts], device=self.lm.device)
        ids, embeds = (torch.stack(parts) for parts in zip(*chain.from_iterable(drawn.values()), strict=True))
        embeds = within(embeds, prompts.soft[owners], prompts.budget[owners])
        layouts = [self.rows[i].run.layout for i in drawn]
        alike = min(int((layout.soft | layout.hard).long().argmax()) for layout in layouts)
        found = yield Batch(ids, owners, embeds, grad=False, alike=alike)
        best = torch.arange(len(self.rows), device=self.lm.device)
        fresh = torch.zeros_like(prompts.finite)
        for i in drawn:
            mine = (owners == i).nonzero()[:, 0]
            best[i] = mine[found.loss[mine].nan_to_num(torch.inf).argmin()]
            fresh[i] = True
        best = torch.where(fresh, best, 0)
        prompts.assign(fresh, ids=ids[best], embeds=embeds[best])
        self.soft_rule.rebase(self.soft_state, prompts, prompts.embeds, fresh)
