"""Which run belongs to which open page, so that Stop and a closed tab reach it and nobody else's."""

from __future__ import annotations

import threading

from dpexplore.tuning import Run


class Sessions:
    """The latest run of each session; a new run replaces, and stops, the one before."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._gate = threading.Lock()

    def begin(self, session: str, run: Run) -> None:
        with self._gate:
            before = self._runs.get(session)
            self._runs[session] = run
        if before is not None:
            before.cancel()

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
        if run is not None:
            run.cancel()
