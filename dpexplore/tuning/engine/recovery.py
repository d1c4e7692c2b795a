"""Recovering the prompt that a target was captured from, before the restarts of a run begin."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from threading import Thread

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.floor.inverse import state_behind
from dpexplore.models.interruption import interruptible, unless
from dpexplore.tuning.captured import captured_length
from dpexplore.tuning.engine.capacity import Capacity, is_out_of_memory
from dpexplore.tuning.init.general import General, Learning, general_of
from dpexplore.tuning.init.layout import Start
from dpexplore.tuning.init.recovery import MOST_POSITIONS, Recovery, States
from dpexplore.tuning.objectives.next_token import entropy_of
from dpexplore.tuning.objectives.states import last_states, reads_states
from dpexplore.tuning.record.bounds import RECOVERED_NATS, Bounds
from dpexplore.tuning.record.outcome import RowOutcome
from dpexplore.tuning.run import Preparation, Run
from dpexplore.wanted import NotWanted

SHARE = 0.5
"""Recovering takes at most this share of what the restarts may score together."""
TOKENS_AT_ONCE = {"cpu": 160}
"""Tokens of a part: a third of a second on two cores for a small model, so that others move on;"""
DEFAULT_TOKENS_AT_ONCE = 16_384
"""on a card."""
WAIT_SECONDS = 0.02
"""How long one part waits for the state behind the target, which is solved beside the engine."""


class Recover:
    """Solves the target for the state behind it, and looks for the prompt that has this state.

    Where the target is not what the model says of any prompt, `otherwise` prepares the run.
    """

    def __init__(self, run: Run, probs: Tensor, otherwise: Preparation | None) -> None:
        """probs `(vocab,)`: the run's target."""
        self._run, self._probs, self._otherwise = run, probs, otherwise
        self._state: Future[Tensor | None] | None = None
        self._gave_up = False
        self._general: General | Learning | None = None
        self._search: Recovery | None = None
        self._work: States | None = None
        self._asked: Tensor | None = None

    @property
    def text(self) -> str:
        """What is being done, and how far it is."""
        if self._gave_up:
            return "" if self._otherwise is None else self._otherwise.text
        if self._search is None:
            if not isinstance(self._general, Learning):
                return "Solving the target for the state behind it"
            return (
                f"Learning how tokens move the model's state, once for prompts of this shape: {self._general.done:.0%}"
            )
        closest = f"{self._search.distance:.1%}" if self._search.asked else "100%"
        suffix = self._run.lm.decode(list(self._search.suffix)) if self._search.suffix else ""
        ending = f" Likely ending: {suffix!r}." if suffix else ""
        return f"Recovering the prompt: {self._search.asked:,} prompts compared, the closest {closest} away.{ending}"

    def advance(self, capacity: Capacity) -> bool:
        """Whether the restarts can begin: the prompt is found or the search for it given up."""
        if self._gave_up:
            return self._otherwise is None or self._otherwise.advance(capacity)
        if self._general is None:
            return self._solve()
        size = max(1, self._tokens_at_once() // len(self._run.layout))
        size = min(size, capacity.rows(len(self._run.layout)))
        if isinstance(self._general, Learning):
            self._learn(self._general, size, capacity)
            return False
        if self._search is None:
            self._begin(self._general)
        return self._go_on(size, capacity)

    def _tokens_at_once(self) -> int:
        return TOKENS_AT_ONCE.get(self._run.lm.device.type, DEFAULT_TOKENS_AT_ONCE)

    def _solve(self) -> bool:
        """Find the state behind the target; whether there is nothing more to do."""
        if self._state is None:
            self._state = _beside(self._run, self._probs)
        try:
            state = self._state.result(WAIT_SECONDS)
        except TimeoutError:
            return False
        if state is None or not reads_states(self._run.lm):
            self._gave_up = True
            return self._otherwise is None
        self._run.bounds = Bounds(0.0, 0.0, RECOVERED_NATS, captured=True)
        self._general = general_of(self._run.lm, self._run.layout)
        return False

    def _learn(self, learning: Learning, size: int, capacity: Capacity) -> None:
        if learning.general is None:
            ids = learning.samples(size)
            states = self._states(ids, capacity)
            if states is not None:
                learning.take(ids, states)
        self._general = general_of(self._run.lm, self._run.layout)

    def _begin(self, general: General) -> None:
        assert self._state is not None
        state = self._state.result()
        assert state is not None
        config = self._run.config
        self._search = Recovery(
            self._run.lm,
            self._run.layout,
            state,
            general,
            seed=config.seed,
            most=int(SHARE * config.restarts * config.most_evaluations),
            keep=config.restarts,
            round_trip=config.round_trip,
        )
        self._work = self._search.work()

    def _go_on(self, size: int, capacity: Capacity) -> bool:
        """Make a part of the search; whether it is over."""
        search, work = self._search, self._work
        assert search is not None
        assert work is not None
        search.size = size
        try:
            if self._asked is None:
                self._asked = next(work)
            states = self._states(self._asked, capacity)
            if states is not None:
                self._asked = work.send(states)
            return False
        except StopIteration:
            pass
        run = self._run
        starts = [self._start(ids) for ids in search.best]
        starts += [run.beginning(restart) for restart in range(len(starts), run.config.restarts)]
        spent = [search.asked // run.config.restarts] * run.config.restarts
        spent[0] += search.asked - sum(spent)
        run.begin_at(starts, spent)
        return True

    def leave(self) -> None:
        """The run was stopped: the closest prompt so far, if there is any, is its outcome."""
        search, run = self._search, self._run
        if search is None or not search.best or run.begun:
            return
        ids, embeds = self._start(search.best[0])
        with torch.no_grad():
            scores = run.objective.score(run.lm, embeds[None], [run.objective])
        numbers = float(scores.loss), float(scores.kl), float(entropy_of(scores.log_q))
        run.outcomes[0] = RowOutcome("cancelled", 0, search.asked, *numbers, ids.cpu(), embeds.cpu())
        run.begun = 1

    def _start(self, ids: Sequence[int]) -> Start:
        """A prompt of hard tokens as the beginning of a restart."""
        lm = self._run.lm
        prompt = torch.tensor(ids, device=lm.device)
        with torch.no_grad():
            return prompt, lm.embed(prompt[None])[0].float()

    def _states(self, ids: Tensor, capacity: Capacity) -> Tensor | None:
        """The last states of prompts; None where nobody wants them any more."""
        lm = self._run.lm
        parts: list[Tensor] = []
        while ids.numel():
            size = min(len(ids), capacity.rows(ids.shape[1]))
            try:
                with torch.no_grad(), interruptible(unless(lambda: self._run.ending)):
                    parts.append(last_states(lm, lm.embed(ids[:size])))
            except NotWanted:
                return None
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise InputError("The memory is too full to recover a prompt; init 'vocab' needs none.") from error
                capacity.ran_out(size)
            else:
                ids = ids[size:]
        return torch.cat(parts)


def recoverable(run: Run) -> bool:
    """Whether recovering is tried: only hard tokens, not too many of them, and one distribution for a target."""
    layout = run.layout
    hard = int(layout.hard.sum())
    return run.objective.token_probs is not None and not layout.soft.any() and 0 < hard <= MOST_POSITIONS


def other_length(run: Run) -> str | None:
    """What to say of a target captured from a prompt of another length than the run's, which cannot be recovered.

    None where the lengths agree, or nobody knows what the target was captured from.
    """
    length, own = captured_length(run.lm, run.target), len(run.layout) - len(run.layout.bos_ids)
    if length is None or length == own or length > MOST_POSITIONS:
        return None
    tokens = f"{length} token{'s' * (length > 1)}"
    return f"The target was captured from a prompt of {tokens}, and this one has {own}: try {length}."


def _beside(run: Run, probs: Tensor) -> Future[Tensor | None]:
    """The state behind the run's target, by a thread of its own."""
    future: Future[Tensor | None] = Future()

    def work() -> None:
        try:
            future.set_result(state_behind(run.lm, probs))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, name="state behind a target", daemon=True).start()
    return future
