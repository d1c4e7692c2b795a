"""Which run belongs to which open page, so that Stop and a closed tab reach it and nobody else's."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from typing import Any

from dpexplore.serving.live_run import LiveRun
from dpexplore.tuning import TuneConfig, TuneResult

PROGRAM = "program"
"""A session that begins so is one question of a program, which has no page."""
ADDRESSES_KEPT = 10_000
"""Sessions of which the address is remembered."""


class Sessions:
    """The run that each session sees, and all runs by their ids. A new run of a session stops the one it began before.

    And whose turn it is at the target: of several answers on their way to one page only the one to
    the latest question may arrive. And the session's best results, as rungs of the gap ladder.
    """

    def __init__(self) -> None:
        self._runs: dict[str, LiveRun] = {}
        self._began: dict[str, LiveRun] = {}
        self._shown: dict[str, str] = {}
        self._told: dict[str, TuneConfig | None] = {}
        self._by_id: dict[str, LiveRun] = {}
        self._keep: dict[str, bool] = {}
        self._turns: dict[str, dict[str, int]] = {}
        self._targets: dict[str, tuple[int, tuple[str, str]]] = {}
        self._finished: dict[str, dict[str, None]] = {}
        self._tuned: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
        self._addresses: OrderedDict[str, str] = OrderedDict()
        self._gate = threading.Lock()

    def note_address(self, session: str, address: str) -> None:
        """Where a session asks from now."""
        with self._gate:
            self._addresses[session] = address
            self._addresses.move_to_end(session)
            if len(self._addresses) > ADDRESSES_KEPT:
                self._addresses.popitem(last=False)

    def address(self, session: str) -> str:
        """Where a session asked from last; empty if that is not known."""
        with self._gate:
            return self._addresses.get(session, "")

    def begin(self, session: str, live: LiveRun, beside: bool = False) -> None:
        """The session has begun a run: it sees this one now, and the one that it began before stops.

        One that moves `beside` others is seen once the session turns to it (`join`), and stops nothing.
        """
        with self._gate:
            if beside:
                self._by_id[live.id] = live
                live.keep_running = self._keep.get(session, False)
                return
            before = self._began.get(session)
            self._runs[session] = self._began[session] = self._by_id[live.id] = live
            self._shown[session] = live.id
            live.keep_running = self._keep.get(session, False)
        if before is not None:
            before.cancel()

    def join(self, session: str, run_id: str) -> LiveRun | None:
        """Let a session see a run that moves, by its id; None if there is none."""
        with self._gate:
            live = self._by_id.get(run_id)
            if live is not None:
                self._runs[session] = live
                self._shown[session] = live.id
            return live

    def turn_to(self, session: str, record: str) -> None:
        """The session looks at a finished run's record now. The run that it began has its time of grace."""
        with self._gate:
            self._runs.pop(session, None)
            self._shown[session] = record

    def shows(self, session: str, what: str) -> bool:
        """Whether the session has turned to nothing else since it began or joined this run, or opened this record.

        What an overtaken run still has to say would be written over the newer one: its charts, its status, and which
        of Tune and Stop can be pressed.
        """
        with self._gate:
            return self._shown.get(session) == what

    def shown(self, session: str) -> str:
        """The run or record that the session sees; empty before the first."""
        with self._gate:
            return self._shown.get(session, "")

    def tell_of(self, session: str, settings: TuneConfig | None) -> bool:
        """Whether the session's status line must change to be about these settings (None: invalid ones, always)."""
        with self._gate:
            before = self._told.get(session)
            self._told[session] = settings
            return settings is None or settings != before

    def is_moving(self, session: str) -> bool:
        """Whether there is something that Stop would stop."""
        live = self.current(session)
        return live is not None and not live.ended

    def find(self, run_id: str) -> LiveRun | None:
        """A run that moves, by its id."""
        with self._gate:
            return self._by_id.get(run_id)

    def current(self, session: str) -> LiveRun | None:
        """The run that the session sees, while it moves."""
        with self._gate:
            return self._runs.get(session)

    def note_result(self, session: str, model: str, recipe: str, result: TuneResult) -> None:
        """A run's KL becomes a rung of the gap ladder if it is the session's best of its method for this target."""
        if not math.isfinite(result.kl_nats):
            return
        method = _rung(result.capsule["config"], result)
        with self._gate:
            rungs = self._tuned.setdefault(session, {}).setdefault((model, recipe), {})
            if result.kl_nats >= rungs.get(method, math.inf):
                return
            rungs[method] = result.kl_nats
            if result.kl_reencoded_nats is not None:
                rungs["re-encoded"] = result.kl_reencoded_nats

    def note_finished(self, session: str, run_id: str) -> None:
        """A run that the session saw has ended with a result."""
        with self._gate:
            self._finished.setdefault(session, {})[run_id] = None

    def finished(self, session: str) -> list[str]:
        """Ids of the runs whose results the session saw, in that order."""
        with self._gate:
            return list(self._finished.get(session, ()))

    def forget_finished(self, session: str, run_id: str | None) -> None:
        """The session wants to see no more of a run."""
        with self._gate:
            self._finished.get(session, {}).pop(run_id or "", None)

    def tuned(self, session: str, model: str, recipe: str) -> dict[str, float]:
        """The session's best KLs in nats for a target, by rung of the gap ladder."""
        with self._gate:
            return dict(self._tuned.get(session, {}).get((model, recipe), {}))

    def take_turn(self, session: str, about: str = "target") -> int:
        """The number of a question that the session asks now."""
        with self._gate:
            turns = self._turns.setdefault(session, {})
            turns[about] = turns.get(about, 0) + 1
            return turns[about]

    def is_latest(self, session: str, turn: int, about: str = "target") -> bool:
        """Whether the session has asked nothing about this since."""
        with self._gate:
            return self._turns.get(session, {}).get(about) == turn

    def note_target(self, session: str, model: str, recipe: str) -> None:
        """The session's page shows another target now."""
        with self._gate:
            self._targets[session] = self._targets.get(session, (0, ("", "")))[0] + 1, (model, recipe)

    def targets_shown(self, session: str) -> int:
        """How many targets were noted so far."""
        with self._gate:
            return self._targets.get(session, (0, ("", "")))[0]

    def has_left(self, session: str, model: str, recipe: str, shown: int) -> bool:
        """Whether the page has gone on to another target than this one since `shown` targets were noted."""
        with self._gate:
            now, latest = self._targets.get(session, (0, ("", "")))
        return now > shown and latest != (model, recipe)

    def stop(self, session: str) -> bool:
        """Ask the run that the session sees to stop within a step; whether there was one running."""
        live = self.current(session)
        if live is None or live.ended:
            return False
        live.cancel()
        return True

    def keep_running(self, session: str, keep: bool) -> None:
        """Whether the run that the session sees, and its later ones, go on when nobody looks."""
        with self._gate:
            self._keep[session] = keep
            live = self._runs.get(session)
        if live is not None:
            live.keep_running = keep

    def end(self, live: LiveRun) -> None:
        """Forget a run that has ended: from now on its journal tells of it."""
        with self._gate:
            self._by_id.pop(live.id, None)
            for seen in (self._runs, self._began):
                for session in [session for session, run in seen.items() if run is live]:
                    del seen[session]

    def settle(self, seconds: float) -> None:
        """Wait until every run that was asked to stop has ended and is journaled, at most this long."""
        deadline = time.monotonic() + seconds
        while self._by_id and time.monotonic() < deadline:
            time.sleep(0.02)

    def close(self, session: str) -> None:
        """The page was closed: forget it. Its run has its time of grace."""
        with self._gate:
            for kept in (
                self._runs,
                self._began,
                self._shown,
                self._told,
                self._keep,
                self._finished,
                self._turns,
                self._targets,
                self._tuned,
            ):
                kept.pop(session, None)


def _rung(config: dict[str, Any], result: TuneResult) -> str:
    """The rung of the gap ladder that a result stands on."""
    if config["soft_rule"] == "direct" and config["method"] != "hard" and result.bounds.reached(result.kl_nats):
        return "direct token"
    budget = config.get("norm_budget")
    return f"soft within {budget}" if budget is not None and config["method"] == "soft" else f"best {config['method']}"
