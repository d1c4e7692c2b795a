"""What a run does before its restarts begin, a part at a time: between two parts others move on, and it can be stopped.

For `init` "lookup" the model's table of tokens is measured, for "recover" the prompt behind a captured target is
looked for (`dpexplore.tuning.engine.recovery`), for "soft" a run of soft tokens is made; for the soft rule `direct` the
head is solved (`dpexplore.tuning.engine.direct`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.tuning.engine.capacity import Capacity, is_out_of_memory
from dpexplore.tuning.engine.direct import DirectToken
from dpexplore.tuning.engine.recovery import Recover, other_length, recoverable
from dpexplore.tuning.init.layout import projected_prompt
from dpexplore.tuning.init.lookup import BATCH, closest_tokens, last_token_context, measure_more
from dpexplore.tuning.record.bounds import Bounds
from dpexplore.tuning.run import Run

LAST_TOKENS = 32
"""Best tokens from which a looked-up last token is drawn."""


class LookUp:
    """Finds the tokens that prompts begin with at their end: those after which alone the model is closest to p."""

    def __init__(self, run: Run, probs: Tensor) -> None:
        """probs `(vocab,)`: the run's target."""
        self._run, self._probs, self._done = run, probs, 0.0
        self._before = last_token_context(run.lm)

    @property
    def text(self) -> str:
        return f"Looking up tokens to begin with, once for this model: {self._done:.0%}"

    def advance(self, capacity: Capacity) -> bool:
        """Make a part; whether the run is ready. InputError if the memory does not hold a single token."""
        size = min(BATCH, capacity.rows(2))
        try:
            self._done = measure_more(self._run.lm, self._before, size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise InputError("The memory is too full to look tokens up; init 'vocab' needs none.") from error
            capacity.ran_out(size)
        if self._done < 1:
            return False
        closest = closest_tokens(self._run.lm, self._probs)
        if closest is not None:
            allowed = closest[torch.isin(closest, self._run.layout.allowed.cpu())][:LAST_TOKENS]
            self._run.last_tokens = allowed if len(allowed) else None
        return True


class SoftPart:
    """Waits for a run of soft tokens alone; its prompts, projected, are where the run begins."""

    def __init__(self, run: Run) -> None:
        """InputError as `Run`."""
        self._run = run
        self.go_on(Run(run.lm, run.target, run.config.soft_part(), None, owner=run.owner))

    def go_on(self, soft: Run) -> None:
        """Wait for this soft run: a new one, or one that has been elsewhere."""
        self.soft = soft
        soft.part_of = self._run

    @property
    def text(self) -> str:
        return f"Tuning soft tokens to begin with: step {len(self.soft.steps)} of {self.soft.config.most_steps}"

    def advance(self, capacity: Capacity) -> bool:
        """Whether the run is ready; the soft run moves in the engine, by itself. InputError if it failed."""
        self._run.queue_position = self.soft.queue_position
        if not self.soft.finished:
            return False
        if self.soft.error is not None:
            raise self.soft.error
        restarts = range(self._run.config.restarts)
        spent = [self.soft.outcomes[restart].evaluations for restart in restarts]
        self._run.begin_at([self._start(restart) for restart in restarts], spent)
        return True

    def _start(self, restart: int) -> tuple[Tensor, Tensor]:
        """A restart's beginning; the drawn one where the soft one came to nothing that can be used."""
        run, outcome = self._run, self.soft.outcomes[restart]
        usable = outcome.loss < torch.inf
        found = projected_prompt(run.lm, run.layout, run.config, outcome.embeds) if usable else None
        return found or run.beginning(restart)


def preparation_of(run: Run) -> LookUp | Recover | SoftPart | DirectToken | None:
    """What a new run does first; None where its restarts can begin at once. InputError as `Run`."""
    probs = run.objective.token_probs
    if run.starts is not None:
        return None
    if run.config.init in ("lookup", "recover") and probs is not None:
        look_up = LookUp(run, probs) if run.layout.hard[-1] else None
        recover = run.config.init == "recover" and recoverable(run)
        if recover and (note := other_length(run)):
            run.bounds, recover = Bounds(note=note), False
        if recover or look_up:
            return Recover(run, probs, look_up) if recover else look_up
    if run.config.rules[0] == "direct":
        return DirectToken(run)
    return SoftPart(run) if run.config.soft_steps else None
