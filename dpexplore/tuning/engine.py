"""The engine: rows of all runs of one model, stepped together; runs join and leave between steps."""

from __future__ import annotations

import math
import queue

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning.capacity import Capacity, is_out_of_memory
from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.rows import Row, RowStack
from dpexplore.tuning.run import Run


class Engine:
    """Continuous batching for prompt tuning. One per loaded model; usable with and without a server thread.

    `submit` and `Run.cancel` may be called from any thread; `step` from one thread at a time.
    """

    def __init__(self, lm: LanguageModel, *, max_rows: int | None = None, served: bool = False) -> None:
        """`max_rows` bounds a pass; None leaves it to the memory present. `served`: another thread calls `step`."""
        self.lm = lm
        self.capacity = Capacity(lm, max_rows)
        self._served = served
        self._arrivals: queue.SimpleQueue[Run] = queue.SimpleQueue()
        self._runs: list[Run] = []  # in order of arrival; only the stepping thread touches these two
        self._stacks: dict[int, RowStack] = {}  # by prompt length

    def submit(self, target: Target, config: TuneConfig) -> Run:
        """Queue a run. InputError if the target, the prompt's length or the memory do not allow it."""
        run = Run(self.lm, target, config, None if self._served else self.step)
        self.capacity.check(len(run.layout), config.restarts, config.steps)
        self._arrivals.put(run)
        return run

    @property
    def active_rows(self) -> int:
        """Rows that the next pass would hold."""
        return sum(map(len, self._stacks.values()))

    def step(self) -> bool:
        """Evaluate every active row once and update it; False if there was nothing to do."""
        self._welcome()
        self._let_go()
        self._admit()
        if not self.active_rows:
            return False
        for stack in list(self._stacks.values()):
            self._step_stack(stack)
        self.capacity.went_well(full=any(run.waiting_rows for run in self._runs))
        self._let_go()
        return True

    def cancel_all(self) -> None:
        """End every run there is, keeping its best so far."""
        self._welcome()
        for run in self._runs:
            run.cancel()
        self._let_go()

    def fail(self, error: InputError) -> None:
        """End every run there is with a sentence for its user: the engine itself has failed."""
        self._welcome()
        for run in self._runs:
            run.finish(error)
        self._runs.clear()
        self._stacks.clear()

    def _welcome(self) -> None:
        while not self._arrivals.empty():
            self._runs.append(self._arrivals.get())

    def _admit(self) -> None:
        """Waiting rows join in order of arrival, as many as fit; queue positions follow."""
        ahead = 0
        for run in self._runs:
            length = len(run.layout)
            if run.waiting_rows and not ahead:
                stack = self._stacks.setdefault(length, RowStack(self.lm))
                joining = min(run.waiting_rows, self.capacity.rows(length) - len(stack))
                if joining > 0:
                    stack.admit([Row(run, run.begun + i) for i in range(joining)])
                    run.begun += joining
            run.queue_position = 0 if run.begun else ahead
            ahead += run.waiting_rows

    def _let_go(self) -> None:
        """Rows that have ended leave, and with its last row a run ends."""
        for length, stack in list(self._stacks.items()):
            for row, outcome in stack.leave():
                row.run.outcomes[row.restart] = outcome
            if not len(stack):
                del self._stacks[length]
        for run in self._runs:
            if not run.waiting_rows and len(run.outcomes) == run.begun:
                run.finish(run.error)
        self._runs = [run for run in self._runs if not run.finished]

    def _step_stack(self, stack: RowStack) -> None:
        """One evaluation and one update of the rows of one length, in as many passes as memory asks for."""
        losses, entropies, grads = [], [], []
        start = 0
        while start < len(stack):
            size = min(self.capacity.rows(stack.embeds.shape[1]), len(stack) - start)
            evaluated = self._try_pass(stack, start, start + size)
            if evaluated is None and size > 1:
                self.capacity.ran_out(size)
                continue
            if evaluated is None:
                evaluated = self._give_up(stack, start)
            loss, entropy, grad = evaluated
            losses.append(loss)
            entropies.append(entropy)
            grads.append(grad)
            start += size
        loss = torch.cat(losses)
        stack.update(loss, torch.cat(grads))
        self._report(stack, loss, torch.cat(entropies))

    def _try_pass(self, stack: RowStack, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Loss `(rows,)`, entropy `(rows,)` and gradient `(rows pos hidden)` of some rows; None if memory ran out."""
        try:
            embeds = stack.embeds[start:stop].detach().requires_grad_()
            rows = stack.rows[start:stop]
            objectives = [row.run.objective for row in rows]
            scores = objectives[0].score(self.lm, embeds, objectives)
            (grad,) = torch.autograd.grad(scores.loss.sum(), embeds)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            for i, (row, kl) in enumerate(zip(rows, scores.loss.tolist(), strict=True)):
                if kl < row.run.best_kl_nats:
                    row.run.note_best(kl, row.restart, scores.log_q[i], stack.ids[start + i])
            return scores.loss.detach(), scores.entropy, grad
        if self.lm.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _give_up(self, stack: RowStack, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Not even this one row fits: its run ends with a sentence, the others go on."""
        run = stack.rows[index].run
        run.error = InputError(
            f"The memory does not hold a single prompt of {len(run.layout):,} tokens for {self.lm.name}; "
            "a shorter prompt or a smaller model is accepted."
        )
        nothing = torch.full((1,), math.nan, device=self.lm.device)
        return nothing, nothing, torch.full_like(stack.embeds[index : index + 1], math.nan)

    def _report(self, stack: RowStack, loss: Tensor, entropy: Tensor) -> None:
        """Tell every run the numbers of its rows."""
        kl: dict[Run, dict[int, float]] = {}
        nats: dict[Run, dict[int, float]] = {}
        for row, loss_nats, entropy_nats in zip(stack.rows, loss.tolist(), entropy.tolist(), strict=True):
            if math.isfinite(loss_nats):
                kl.setdefault(row.run, {})[row.restart] = loss_nats
                nats.setdefault(row.run, {})[row.restart] = entropy_nats
        for run in dict.fromkeys(row.run for row in stack.rows):
            run.note_step(kl.get(run, {}), nats.get(run, {}))


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
