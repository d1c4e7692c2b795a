"""Certified floors for the page: computed once for each target, beside everything else, one at a time."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from dpexplore.errors import InputError
from dpexplore.floor import FloorResult
from dpexplore.floor.of_model import softmax_floor
from dpexplore.models import LanguageModel
from dpexplore.targets import Target

logger = logging.getLogger(__name__)

KEPT_FLOORS = 64

Solver = Callable[..., FloorResult]


class Floors:
    """Floors by model and recipe, shared by everybody.

    A floor takes about a second on two CPU cores, so they are computed one after the other in a thread of their own,
    each from the last one's solution.
    """

    def __init__(self, solve: Solver = softmax_floor) -> None:
        self._solve = solve
        self._known: OrderedDict[tuple[str, str], Future[FloorResult]] = OrderedDict()
        self._latest: dict[str, FloorResult] = {}
        self._gate = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="floor")

    def start(self, lm: LanguageModel, target: Target) -> Future[FloorResult]:
        """The floor, now or later. Its `result()` raises InputError where the model has none, with the reason."""
        key = (lm.identity, target.recipe)
        with self._gate:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            self._known[key] = future = self._thread.submit(self._work, lm, target)
            while len(self._known) > KEPT_FLOORS:
                self._known.popitem(last=False)[1].cancel()
        return future

    def marks(self, lm: LanguageModel, target: Target) -> dict[str, float | None] | None:
        """Lines for the KL chart in nats, `floor` and `head`; empty if the model has none, None if not yet known."""
        future = self.start(lm, target)
        if not future.done():
            return None
        if future.cancelled() or future.exception() is not None:
            return {}
        return {"floor": future.result().lower_bound_nats, "head": future.result().head_optimum_nats}

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _work(self, lm: LanguageModel, target: Target) -> FloorResult:
        try:
            found = self._solve(lm, target, start=self._latest.get(lm.identity))
        except InputError:
            raise
        except Exception:
            logger.exception("the floor of %s failed", target.recipe)
            raise
        self._latest[lm.identity] = found
        return found
