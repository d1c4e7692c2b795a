"""Certified floors for the page: computed once for each target, beside everything else, one at a time."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from dpexplore.errors import InputError
from dpexplore.floor import FloorResult
from dpexplore.floor.of_model import softmax_floor
from dpexplore.models import LanguageModel
from dpexplore.targets import Target

logger = logging.getLogger(__name__)

KEPT_FLOORS = 64
"""Floors that are remembered."""
WAITING_FLOORS = 8
"""Floors that one session waits for; then its oldest question is overtaken."""
WAITING_OF_ALL = 1024
"""Floors that everybody together waits for."""

Solver = Callable[..., FloorResult]
Key = tuple[str, str]


@dataclass(eq=False)
class Waiting:
    """A floor that has not begun."""

    future: Future[FloorResult]
    lm: LanguageModel
    target: Target
    sessions: set[str]
    """Who waits for it."""


class Floors:
    """Floors by model and recipe, shared by everybody.

    A floor takes about a second on two CPU cores, so they are computed one after the other in a thread of their own,
    each from the last one's solution; the addresses that wait take turns. Nobody's question ends another's.
    """

    def __init__(self, solve: Solver = softmax_floor) -> None:
        self._solve = solve
        self._known: OrderedDict[Key, Future[FloorResult]] = OrderedDict()
        self._waiting: OrderedDict[str, OrderedDict[Key, Waiting]] = OrderedDict()
        """By address; the one whose turn it is next comes first."""
        self._latest: dict[str, FloorResult] = {}
        self._gate = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="floor")

    def start(self, lm: LanguageModel, target: Target, session: str = "", address: str = "") -> Future[FloorResult]:
        """The floor, now or later.

        Its `result()` raises InputError where the model has none, with the reason, or where the session that asked
        has asked for many others since. InputError if too many are waited for.
        """
        key = (lm.identity, target.recipe)
        with self._gate:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                for asked in self._waiting.values():
                    if key in asked:
                        asked[key].sessions.add(session)
                return known
            if sum(map(len, self._waiting.values())) >= WAITING_OF_ALL:
                raise InputError("Too many floors are waited for here; please try again in a minute.")
            future: Future[FloorResult] = Future()
            self._waiting.setdefault(address, OrderedDict())[key] = Waiting(future, lm, target, {session})
            self._known[key] = future
            self._overtake(address, session)
            done = [each for each, one in self._known.items() if one.done()]
            for each in done[: max(len(done) - KEPT_FLOORS, 0)]:
                del self._known[each]
        self._thread.submit(self._work)
        return future

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
            future = self._known.get((lm.identity, target.recipe))
        return future.result() if future is not None and future.done() and future.exception() is None else None

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
                    return first
        return None

    def _work(self) -> None:
        asked = self._next()
        if asked is None:
            return
        try:
            found = self._solve(asked.lm, asked.target, start=self._latest.get(asked.lm.identity))
        except Exception as error:
            if not isinstance(error, InputError):
                logger.exception("the floor of %s failed", asked.target.recipe)
            asked.future.set_exception(error)
        else:
            self._latest[asked.lm.identity] = found
            asked.future.set_result(found)
