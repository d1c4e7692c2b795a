"""Rows: the prompts of all restarts of one length and one rule, with their state, stacked."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.tuning.engine.passes import Batch, Evaluation
from dpexplore.tuning.init.layout import initial_prompt
from dpexplore.tuning.rules.hard import GCG, Eq4, HardRule, Search, SearchMemory
from dpexplore.tuning.rules.soft import LBFGS, AdamW, SoftRule

if TYPE_CHECKING:
    from dpexplore.tuning.run import Run

StopReason = Literal["converged", "max_steps", "nonfinite", "cancelled"]
Rules = tuple[str | None, str | None, int]
"""What makes rows of a kind: the rule of the soft and of the hard slots, and how much the soft rule remembers."""


@dataclass(frozen=True, eq=False)
class Row:
    """One restart of one run."""

    run: Run
    restart: int
    memory: SearchMemory = field(default_factory=SearchMemory)
    """What a search over tokens remembers of its own prompts."""


ParkedRow = tuple[Row, dict[str, Tensor]]
"""A row that waits for its turn, with its state: one entry of every tensor of a stack."""


@dataclass(frozen=True, eq=False)
class RowOutcome:
    """What a row leaves behind."""

    reason: StopReason
    steps: int
    evaluations: int
    loss: float
    """Lowest value of the objective; infinite if none was finite."""
    kl_nats: float
    """KL(p‖q) there."""
    ids: Tensor
    """`(pos,)` there, `NO_TOKEN` at soft positions."""
    embeds: Tensor
    """`(pos hidden)` float32 on the CPU, there."""


def rules_of(run: Run) -> Rules:
    """Rows of runs that agree in this and in their length are stepped together."""
    soft, hard = run.config.rules
    return soft, hard, run.config.memory if soft == "lbfgs" else 0


class RowStack:
    """The rows of one prompt length and one pair of rules; one step advances them all.

    A row may hold soft and hard positions (hybrid), so the three methods are one loop: the soft positions move by the
    soft rule, the hard ones by the hard rule.
    """

    def __init__(self, lm: LanguageModel, rules: Rules = ("adamw", "eq4", 0)) -> None:
        self.lm = lm
        self.rows: list[Row] = []
        self.soft_rule: SoftRule = LBFGS() if rules[0] == "lbfgs" else AdamW()
        self.hard_rule: HardRule = {"gcg": GCG, "search": Search}.get(rules[1] or "", Eq4)()
        self.state: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def embeds(self) -> Tensor:
        """The prompts to be evaluated next, `(rows pos hidden)` float32."""
        return self.state["embeds"]

    @property
    def ids(self) -> Tensor:
        """Their ids, `(rows pos)`; `NO_TOKEN` at soft positions."""
        return self.state["ids"]

    def admit(self, rows: list[Row]) -> None:
        """Let rows join, each at its own beginning. InputError if one has none (see `initial_prompt`)."""
        self.resume([(row, self._begin(row)) for row in rows])

    def resume(self, parked: list[ParkedRow]) -> None:
        """Let parked rows go on from where they stood."""
        if not parked:
            return
        stacked = {name: torch.stack([state[name] for _, state in parked]) for name in parked[0][1]}
        if self.rows:
            stacked = {name: torch.cat([self.state[name], tensor]) for name, tensor in stacked.items()}
        self.state = stacked
        self.rows = self.rows + [row for row, _ in parked]

    def park(self, run: Run, count: int) -> list[ParkedRow]:
        """Take out the last `count` rows of a run with all that they know; what they would do next stays the same."""
        index = [i for i, row in enumerate(self.rows) if row.run is run][-count:]
        parked = [(self.rows[i], {name: tensor[i].clone() for name, tensor in self.state.items()}) for i in index]
        self._keep([i for i in range(len(self.rows)) if i not in set(index)])
        return parked

    def step(self) -> Generator[Batch, Evaluation, None]:
        """Ask for the evaluations of one step and move on by them; rows that have ended stay until `leave`."""
        if not self.rows:
            return
        if any(row.run.config.beginnings > 1 for row in self.rows) and (self.state["step"] == 0).any():
            yield from self._screen()
        state = self.state
        present = Batch.of_prompts(state["ids"], state["embeds"], grad=True)
        found = yield present
        assert found.grad is not None
        state["step"] = state["step"] + 1
        state["finite"] = torch.isfinite(found.loss) & torch.isfinite(found.grad).flatten(1).all(1)
        self.take(found, state["ids"], state["embeds"])
        state["stale"] = state["stale"] + 1
        settled = torch.ones_like(state["finite"])
        if state["soft"].any():
            settled = self.soft_rule.update(state, found.loss, found.grad)
        if state["hard"].any():
            yield from self.hard_rule.turn(self, present.embeds, found, settled & state["finite"])
        state["stale"] = torch.where(state["improved"], 0, state["stale"])
        state["improved"] = torch.zeros_like(state["improved"])

    def take(self, found: Evaluation, ids: Tensor, embeds: Tensor, rows: Tensor | None = None) -> None:
        """Note the numbers of one prompt a row: what the row reports for this step, and its best.

        `found`, ids `(rows pos)` and embeds `(rows pos hidden)` have one entry for each row; `rows` `(rows,)` bool
        leaves some of them out.
        """
        state = self.state
        counts = torch.ones_like(state["finite"]) if rows is None else rows
        better = counts & torch.isfinite(found.loss) & (found.loss < state["best_loss"])
        for name, now in (("now_kl", found.kl), ("now_entropy", found.entropy)):
            state[name] = torch.where(counts, now, state[name])
        bests = {"best_loss": found.loss, "best_kl": found.kl, "best_ids": ids, "best_embeds": embeds}
        for name, now in bests.items():
            state[name] = torch.where(better.view(-1, *[1] * (now.ndim - 1)), now, state[name])
        state["improved"] = state["improved"] | better

    def count(self, owners: Tensor) -> None:
        """So many prompts have been evaluated for each row."""
        self.state["evaluations"] = self.state["evaluations"] + torch.bincount(owners, minlength=len(self.rows))

    def leave(self) -> list[tuple[Row, RowOutcome]]:
        """Let go of the rows that have ended: by their own rule, or because their run was cancelled."""
        if not self.rows:
            return []
        gone: list[tuple[Row, RowOutcome]] = []
        keep: list[int] = []
        searching = ["stuck", "placed"] if "stuck" in self.state else []
        names = ["step", "stale", "finite", "evaluations", *searching]
        columns = zip(*(self.state[name].tolist() for name in names), strict=True)
        for i, (row, numbers) in enumerate(zip(self.rows, columns, strict=True)):
            reason = self._reason(row, dict(zip(names, numbers, strict=True)))
            if reason is None:
                keep.append(i)
            else:
                gone.append((row, self._outcome(i, reason)))
        if gone:
            self._keep(keep)
        return gone

    def _keep(self, keep: list[int]) -> None:
        """Let go of all other rows."""
        index = torch.tensor(keep, dtype=torch.long, device=self.lm.device)
        self.state = {name: tensor[index] for name, tensor in self.state.items()}
        self.rows = [self.rows[i] for i in keep]

    def _begin(self, row: Row) -> dict[str, Tensor]:
        run = row.run
        ids, embeds = run.beginning(row.restart)
        device = self.lm.device
        return {
            "ids": ids,
            "embeds": embeds,
            "soft": run.layout.soft.to(device),
            "hard": run.layout.hard.to(device),
            "step": torch.tensor(0, device=device),
            "evaluations": torch.tensor(run.evaluations_of(row.restart), device=device),
            "stale": torch.tensor(0, device=device),
            "finite": torch.tensor(True, device=device),
            "improved": torch.tensor(False, device=device),
            "now_kl": torch.tensor(torch.nan, device=device),
            "now_entropy": torch.tensor(torch.nan, device=device),
            "best_loss": torch.tensor(torch.inf, device=device),
            "best_kl": torch.tensor(torch.inf, device=device),
            "best_ids": ids,
            "best_embeds": embeds,
            **self.soft_rule.begin(embeds, run.config),
        }

    def _screen(self) -> Generator[Batch, Evaluation, None]:
        """Rows at their first step take the best of several random beginnings."""
        state = self.state
        drawn: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for i, (row, step) in enumerate(zip(self.rows, state["step"].tolist(), strict=True)):
            run = row.run
            if step == 0 and run.config.beginnings > 1 and run.starts is None:
                draws = range(1, run.config.beginnings)
                probs, last = run.objective.token_probs, run.last_tokens
                others = [initial_prompt(self.lm, run.layout, run.config, row.restart, n, probs, last) for n in draws]
                drawn[i] = [(state["ids"][i], state["embeds"][i]), *others]
        if not drawn:
            return
        owners = torch.tensor([i for i, prompts in drawn.items() for _ in prompts], device=self.lm.device)
        ids, embeds = (torch.stack(parts) for parts in zip(*chain.from_iterable(drawn.values()), strict=True))
        layouts = [self.rows[i].run.layout for i in drawn]
        alike = min(int((layout.soft | layout.hard).long().argmax()) for layout in layouts)
        found = yield Batch(ids, owners, embeds, grad=False, alike=alike)
        for i in drawn:
            mine = (owners == i).nonzero()[:, 0]
            best = mine[found.loss[mine].nan_to_num(torch.inf).argmin()]
            for name, values in (("ids", ids), ("embeds", embeds)):
                state[name] = state[name].index_put((torch.tensor(i, device=ids.device),), values[best])
            if "point" in state:
                state["point"][i] = embeds[best].reshape(-1)

    @staticmethod
    def _reason(row: Row, numbers: dict[str, int | bool]) -> StopReason | None:
        config = row.run.config
        if row.run.ending:
            return "cancelled"
        # A line search may step where nothing is finite and come back, if it has a point to come back to.
        coming_back = numbers.get("stuck") is False and numbers["placed"]
        if not numbers["finite"] and not coming_back:
            return "nonfinite"
        if numbers.get("stuck") and not row.run.layout.hard.any():
            return "converged"
        if config.patience is not None and numbers["stale"] >= config.patience:
            return "converged"
        spent = config.evaluations is not None and numbers["evaluations"] >= config.evaluations
        return "max_steps" if spent or numbers["step"] >= config.steps else None

    def _outcome(self, i: int, reason: StopReason) -> RowOutcome:
        state = self.state
        return RowOutcome(
            reason,
            int(state["step"][i]),
            int(state["evaluations"][i]),
            float(state["best_loss"][i]),
            float(state["best_kl"][i]),
            state["best_ids"][i].cpu(),
            state["best_embeds"][i].cpu(),
        )
