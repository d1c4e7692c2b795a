"""Certified floors for the page: computed once for each target, beside everything else, one at a time."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.floor import FloorResult
from dpexplore.floor.of_model import softmax_floor
from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.wanted import NotWanted, check_wanted

logger = logging.getLogger(__name__)

KEPT_FLOORS = 64
"""Floors that are remembered."""
WAITING_FLOORS = 8
"""Floors that one session waits for; then its oldest question is overtaken."""
ASKED_SECONDS = 4.0
"""A floor that was asked for and that nobody looks at is given up after this long without the question again."""
LOOK_SECONDS = 0.04
"""Between two looks of who watches a floor rise."""
WAITING_OF_ALL = 1024
"""Floors that everybody together waits for."""

Solver = Callable[..., FloorResult]
Key = tuple[str, str]


@dataclass(eq=False)
class Waiting:
    """A floor that is not there yet."""

    future: Future[FloorResult]
    lm: LanguageModel
    target: Target
    sessions: set[str]
    """Who waits for it."""
    asked: float = -math.inf
    """When somebody last asked for it who does not look on (`time.monotonic`)."""
    watchers: int = 0
    """Who looks on as it rises."""
    bound_nats: float = 0.0
    """Certified so far."""

    @property
    def wanted(self) -> bool:
        """Whether somebody looks on, or may ask again."""
        return self.watchers > 0 or time.monotonic() - self.asked < ASKED_SECONDS


class Floors:
    """Floors by model and recipe, shared by everybody.

    A floor takes about a second on two CPU cores, so they are computed one after the other in a thread of their own,
    each from the last one's solution; the addresses that wait take turns. Nobody's question ends another's. Every
    iterate is a bound: `rising` tells it long before the floor is done.
    """

    def __init__(self, solve: Solver = softmax_floor) -> None:
        self._solve = solve
        self._known: OrderedDict[Key, Waiting] = OrderedDict()
        self._waiting: OrderedDict[str, OrderedDict[Key, Waiting]] = OrderedDict()
        """By address; the one whose turn it is next comes first."""
        self._latest: dict[str, Tensor] = {}
        """The last point of each model's floors, finished or not: a start for the next."""
        self._gate = threading.Lock()
        self._risen = threading.Condition(self._gate)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="floor")

    def start(self, lm: LanguageModel, target: Target, session: str = "", address: str = "") -> Future[FloorResult]:
        """The floor, now or later; for who asks again every second or two until it is there, and else gives it up.

        Its `result()` raises InputError where the model has none, with the reason, or where the session that asked
        has asked for many others since; NotWanted, which is one too, if it was given up. InputError if too many are
        waited for.
        """
        with self._gate:
            asked = self._ask(lm, target, session, address)
            asked.asked = time.monotonic()
        return asked.future

    def rising(
        self, lm: LanguageModel, target: Target, session: str = "", address: str = ""
    ) -> Generator[float | FloorResult]:
        """The certified bound in nats as it rises, then the floor; for who looks on. Errors as of `start`.

        At least every `LOOK_SECONDS` it says where the bound stands, or ends with NotWanted if who looks on has left
        (`dpexplore.wanted`). Closing the iterator looks away: a floor that nobody looks at and nobody asks for is
        given up.
        """
        with self._gate:
            asked = self._ask(lm, target, session, address)
            asked.watchers += 1
        try:
            while not asked.future.done():
                with self._risen:
                    self._risen.wait(LOOK_SECONDS)
                check_wanted()
                if not asked.future.done():
                    yield asked.bound_nats
            yield asked.future.result()
        finally:
            self._look_away(asked)

    def _look_away(self, asked: Waiting) -> None:
        with self._gate:
            asked.watchers -= 1
            if not asked.wanted and not asked.future.done():
                self._forget(asked)

    def _forget(self, asked: Waiting) -> None:
        """Drop it, so that the next question starts it again; under the gate."""
        key = (asked.lm.identity, asked.target.recipe)
        for known in (self._known, *self._waiting.values()):
            if known.get(key) is asked:
                del known[key]

    def _ask(self, lm: LanguageModel, target: Target, session: str, address: str) -> Waiting:
        """The question, asked now or before; under the gate."""
        key = (lm.identity, target.recipe)
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            known.sessions.add(session)
            return known
        if sum(map(len, self._waiting.values())) >= WAITING_OF_ALL:
            raise InputError("Too many floors are waited for here; please try again in a minute.")
        asked = Waiting(Future(), lm, target, {session})
        self._waiting.setdefault(address, OrderedDict())[key] = self._known[key] = asked
        self._overtake(address, session)
        done = [each for each, one in self._known.items() if one.future.done()]
        for each in done[: max(len(done) - KEPT_FLOORS, 0)]:
            del self._known[each]
        self._thread.submit(self._work)
        return asked

    def _overtake(self, address: str, session: str) -> None:
        """End the session's oldest question of too many, if nobody else asks it."""
        own = [key for key, asked in self._waiting[address].items() if asked.sessions == {session}]
        for key in own[: max(len(own) - WAITING_FLOORS, 0)]:
            self._known.pop(key, None)
            asked = self._waiting[address].pop(key)
            asked.future.set_exception(InputError("This floor was overtaken by later questions; ask again."))

    def marks(
        self, lm: LanguageModel, target: Target, session: str = "", address: str = ""
    ) -> dict[str, float | None] | None:
        """Lines for the KL chart in nats, `floor` and `head`; empty if the model has none, None if not yet known."""
        future = self.start(lm, target, session, address)
        if not future.done():
            return None
        if future.exception() is not None:
            return {}
        return {"floor": future.result().lower_bound_nats, "head": future.result().head_optimum_nats}

    def known(self, lm: LanguageModel, target: Target) -> FloorResult | None:
        """The floor if it is computed already; nobody waits for it."""
        with self._gate:
            asked = self._known.get((lm.identity, target.recipe))
        if asked is None or not asked.future.done() or asked.future.exception() is not None:
            return None
        return asked.future.result()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        while (asked := self._next()) is not None:
            asked.future.set_exception(InputError("The server stops; the floor was not computed."))

    def _next(self) -> Waiting | None:
        """The oldest question of the address whose turn it is."""
        with self._gate:
            while self._waiting:
                address, asked = self._waiting.popitem(last=False)
                if asked:
                    _, first = asked.popitem(last=False)
                    if asked:
                        self._waiting[address] = asked
                    if first.wanted:
                        return first
                    self._forget(first)
                    first.future.set_exception(NotWanted())
        return None

    def _work(self) -> None:
        asked = self._next()
        if asked is None:
            return

        def report(bound: float, point: Tensor) -> None:
            self._latest[asked.lm.identity] = point
            with self._risen:
                if not asked.wanted:
                    self._forget(asked)
                    raise NotWanted
                asked.bound_nats = bound
                self._risen.notify_all()

        try:
            found = self._solve(asked.lm, asked.target, start=self._latest.get(asked.lm.identity), report=report)
        except Exception as error:
            if not isinstance(error, InputError):
                logger.exception("the floor of %s failed", asked.target.recipe)
            asked.future.set_exception(error)
        else:
            self._latest[asked.lm.identity] = found.point
            asked.future.set_result(found)
        with self._risen:
            self._risen.notify_all()
