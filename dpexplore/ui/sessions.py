"""Which run belongs to which open page, so that Stop and a closed tab reach it and nobody else's."""

from __future__ import annotations

import math
import threading

from dpexplore.tuning import Run, TuneResult


class Sessions:
    """The latest run of each session: a new run replaces, and stops, the one before.

    And whose turn it is at the target: of several answers on their way to one page only the one to
    the latest question may arrive. And the session's best results, as rungs of the gap ladder.
    """

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._turns: dict[str, int] = {}
        self._tuned: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
        self._gate = threading.Lock()

    def begin(self, session: str, run: Run) -> None:
        with self._gate:
            before = self._runs.get(session)
            self._runs[session] = run
        if before is not None:
            before.cancel()

    def note_result(self, session: str, model: str, recipe: str, result: TuneResult) -> None:
        """A run's KL becomes a rung of the gap ladder if it is the session's best of its method for this target."""
        if not math.isfinite(result.kl_nats):
            return
        method = f"best {result.capsule['config']['method']}"
        with self._gate:
            rungs = self._tuned.setdefault(session, {}).setdefault((model, recipe), {})
            if result.kl_nats >= rungs.get(method, math.inf):
                return
            rungs[method] = result.kl_nats
            if result.kl_reencoded_nats is not None:
                rungs["re-encoded"] = result.kl_reencoded_nats

    def tuned(self, session: str, model: str, recipe: str) -> dict[str, float]:
        """The session's best KLs in nats for a target, by rung of the gap ladder."""
        with self._gate:
            return dict(self._tuned.get(session, {}).get((model, recipe), {}))

    def take_turn(self, session: str) -> int:
        """The number of a question that the session asks now."""
        with self._gate:
            self._turns[session] = self._turns.get(session, 0) + 1
            return self._turns[session]

    def is_latest(self, session: str, turn: int) -> bool:
        """Whether the session has asked nothing since."""
        with self._gate:
            return self._turns.get(session) == turn

    def stop(self, session: str) -> bool:
        """Ask the session's run to stop within a step; whether there was one running."""
        with self._gate:
            run = self._runs.get(session)
        if run is None or run.finished:
            return False
        run.cancel()
        return True

    def end(self, session: str, run: Run) -> None:
        """Forget a finished run, unless another one has begun since."""
        with self._gate:
            if self._runs.get(session) is run:
                del self._runs[session]

    def close(self, session: str) -> None:
        """The page was closed: stop its run and forget it."""
        with self._gate:
            run = self._runs.pop(session, None)
            self._turns.pop(session, None)
            self._tuned.pop(session, None)
        if run is not None:
            run.cancel()
