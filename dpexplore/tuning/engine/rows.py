"""Rows: the prompts of all restarts of one length and one rule, with their state, stacked."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.tuning.engine.parked import ParkedRow
from dpexplore.tuning.engine.passes import Batch, Evaluation
from dpexplore.tuning.init.layout import initial_prompt
from dpexplore.tuning.record.outcome import RowOutcome, StopReason
from dpexplore.tuning.rules.adamw import AdamW
from dpexplore.tuning.rules.ball import within
from dpexplore.tuning.rules.direct import Direct
from dpexplore.tuning.rules.hard import GCG, Eq4, HardRule, Search, SearchMemory
from dpexplore.tuning.rules.lbfgs import LBFGS
from dpexplore.tuning.rules.soft import SoftRule
from dpexplore.tuning.rules.state import PromptState, RowState
from dpexplore.tuning.run import Run

Rules = tuple[str | None, str | None, int]
"""What makes rows of a kind: the rule of the soft and of the hard slots, and how much the soft rule remembers."""


@dataclass(frozen=True, eq=False)
class Row:
    """One restart of one run."""

    run: Run
    restart: int
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
        self.prompts: PromptState
        """Of all rows, as `soft_state`; there are none before the first row."""
        self.soft_state: RowState

    def __len__(self) -> int:
        return len(self.rows)

    def admit(self, rows: list[Row]) -> None:
        """Let rows join, each at its own start. InputError if one has none (see `initial_prompt`)."""
        device = self.lm.device
        ids, embeds = (
            torch.stack(parts) for parts in zip(*(row.run.beginning(row.restart) for row in rows), strict=True)
        )
        soft, hard = (
            torch.stack([getattr(row.run.layout, kind) for row in rows]).to(device) for kind in ("soft", "hard")
        )
        spent = torch.tensor([row.run.evaluations_of(row.restart) for row in rows], device=device)
        budget = torch.tensor([row.run.norm_budget for row in rows], device=device)
        prompts = PromptState.of(ids, embeds, soft, hard, budget, spent)
        self._append(rows, prompts, self.soft_rule.begin(prompts.embeds, [row.run.config for row in rows]))

    def resume(self, run: Run, parked: list[ParkedRow]) -> None:
        """Let parked rows of a run go on from where they stood."""
        if parked:
            prompts, soft = [one.prompts for one in parked], [one.soft for one in parked]
            rows = [Row(run, one.restart, one.memory) for one in parked]
            self._append(rows, PromptState.cat(prompts), type(soft[0]).cat(soft))

    def park(self, run: Run, count: int) -> list[ParkedRow]:
        """Take out the last `count` rows of a run with all that they know; what they would do next stays the same."""
        places = [i for i, row in enumerate(self.rows) if row.run is run][-count:]
        each = [(i, torch.tensor([i], device=self.lm.device)) for i in places]
        parked = [
            ParkedRow(self.rows[i].restart, self.rows[i].memory, self.prompts.pick(at), self.soft_state.pick(at))
            for i, at in each
        ]
        self._keep([i for i in range(len(self.rows)) if i not in set(places)])
        return parked

    def step(self) -> Generator[Batch, Evaluation, None]:
        """Ask for the evaluations of one step and move on by them; rows that have ended stay until `leave`."""
        if not self.rows:
            return
        prompts = self.prompts
        if any(row.run.config.beginnings > 1 for row in self.rows) and (prompts.step == 0).any():
            yield from self._screen()
        present = Batch.of_prompts(prompts.ids, prompts.embeds, grad=True)
        found = yield present
        assert found.grad is not None
        prompts.step = prompts.step + 1
        prompts.finite = torch.isfinite(found.loss) & torch.isfinite(found.grad).flatten(1).all(1)
        self.take(found, prompts.ids, prompts.embeds)
        prompts.steps_since_best = prompts.steps_since_best + 1
        settled = torch.ones_like(prompts.finite)
        if prompts.soft.any():
            settled = self.soft_rule.update(self.soft_state, prompts, found.loss, found.grad)
        if prompts.hard.any():
            yield from self.hard_rule.turn(self, present.embeds, found, settled & prompts.finite)
        prompts.assign(prompts.improved, steps_since_best=0)
        prompts.improved = torch.zeros_like(prompts.improved)

    def take(self, found: Evaluation, ids: Tensor, embeds: Tensor, rows: Tensor | None = None) -> None:
        """Note the numbers of one prompt a row: what the row reports for this step, and its best.

        `found`, ids `(rows pos)` and embeds `(rows pos hidden)` have one entry for each row; `rows` `(rows,)` bool
        leaves some of them out.
        """
        prompts = self.prompts
        counts = torch.ones_like(prompts.finite) if rows is None else rows
        better = counts & torch.isfinite(found.loss) & (found.loss < prompts.best_loss)
        prompts.assign(counts, kl=found.kl, entropy=found.entropy)
        prompts.assign(better, best_loss=found.loss, best_kl=found.kl, best_ids=ids, best_embeds=embeds)
        prompts.improved = prompts.improved | better

    def count(self, owners: Tensor) -> None:
        """Prompts have been evaluated, one for each entry of `owners`, which name their rows."""
        self.prompts.evaluations = self.prompts.evaluations + torch.bincount(owners, minlength=len(self.rows))

    def leave(self) -> list[tuple[Row, RowOutcome]]:
        """Let go of the rows that have ended: by their own rule, or because their run was cancelled."""
        if not self.rows:
            return []
        gone: list[tuple[Row, RowOutcome]] = []
        keep: list[int] = []
        prompts = self.prompts
        lost = ~prompts.finite & ~self.soft_rule.returns(self.soft_state)
        stopped = self.soft_rule.ended(self.soft_state) & ~prompts.hard.any(1)
        columns = (prompts.step, prompts.evaluations, prompts.steps_since_best, lost, stopped)
        numbers = zip(*(column.tolist() for column in columns), strict=True)
        for i, (row, each) in enumerate(zip(self.rows, numbers, strict=True)):
            reason = self._reason(row, *each)
            if reason is None:
                keep.append(i)
            else:
                gone.append((row, self._outcome(i, reason)))
        if gone:
            self._keep(keep)
        return gone

    def _append(self, rows: list[Row], prompts: PromptState, soft: RowState) -> None:
        if self.rows:
            prompts, soft = PromptState.cat([self.prompts, prompts]), type(soft).cat([self.soft_state, soft])
        self.prompts, self.soft_state, self.rows = prompts, soft, self.rows + rows

    def _keep(self, keep: list[int]) -> None:
        """Let go of all other rows."""
        index = torch.tensor(keep, dtype=torch.long, device=self.lm.device)
        self.prompts, self.soft_state = self.prompts.pick(index), self.soft_state.pick(index)
        self.rows = [self.rows[i] for i in keep]

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

    @staticmethod
    def _reason(
        row: Row, step: int, evaluations: int, steps_since_best: int, lost: bool, stopped: bool
    ) -> StopReason | None:
        config = row.run.config
        if row.run.ending:
            return "cancelled"
        if lost:
            return "nonfinite"
        if row.run.reached or stopped or (config.patience is not None and steps_since_best >= config.patience):
            return "converged"
        spent = config.evaluations is not None and evaluations >= config.evaluations
        return "max_steps" if spent or step >= config.steps else None

    def _outcome(self, i: int, reason: StopReason) -> RowOutcome:
        prompts = self.prompts
        return RowOutcome(
            reason,
            int(prompts.step[i]),
            int(prompts.evaluations[i]),
            float(prompts.best_loss[i]),
            float(prompts.best_kl[i]),
            prompts.best_ids[i].cpu(),
            prompts.best_embeds[i].cpu(),
        )
