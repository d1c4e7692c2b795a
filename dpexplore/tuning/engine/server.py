"""A thin thread behind which one engine serves many users."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.models.cores import take_all_cores
from dpexplore.models.memory import give_back_memory
from dpexplore.targets import Target
from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.engine.engine import Engine
from dpexplore.tuning.engine.evaluator import INTERNAL_ERROR
from dpexplore.tuning.engine.fairness import NOBODY, Owner
from dpexplore.tuning.init.layout import Start
from dpexplore.tuning.run import Run

logger = logging.getLogger(__name__)


class EngineServer:
    """Steps an engine while there is work; while there is none it sleeps, freed memory given back."""

    def __init__(self, lm: LanguageModel, *, max_rows: int | None = None) -> None:
        self.engine = Engine(lm, max_rows=max_rows, served=True)
        self._wake = threading.Event()
        self.engine.on_work = self._wake.set
        self._closing = False
        self._runs: list[Run] = []
        self._gate = threading.Lock()  # nothing is submitted once the server has begun to close
        self._thread = threading.Thread(target=self._serve, name=f"engine {lm.name}", daemon=True)
        self._thread.start()

    @property
    def lm(self) -> LanguageModel:
        """The model that all runs share."""
        return self.engine.lm

    @property
    def running(self) -> int:
        """Runs that have not ended; may be slightly stale."""
        return self.engine.running

    @property
    def owners(self) -> list[Owner]:
        """Whose these runs are, one entry a run."""
        with self._gate:
            self._runs = [run for run in self._runs if not run.finished]
            return [run.owner for run in self._runs]

    def submit(
        self,
        target: Target,
        config: TuneConfig,
        starts: Sequence[Start] | None = None,
        resumed_from: dict[str, Any] | None = None,
        owner: Owner = NOBODY,
    ) -> Run:
        """Queue a run; it moves by itself. InputError as `Engine.submit`, or if the server is closed."""
        with self._gate:
            if self._closing:
                raise InputError(f"The model {self.lm.name} has been released; choose it again.")
            run = self.engine.submit(target, config, starts, resumed_from, owner)
            self._runs = [*(other for other in self._runs if not other.finished), run]
            return run

    def close(self) -> None:
        """End all runs, keeping their best so far, and the thread with them."""
        with self._gate:
            self._closing = True
        self._wake.set()
        self._thread.join()

    def _serve(self) -> None:
        take_all_cores()
        while not self._closing:
            self._wake.clear()
            try:
                while not self._closing and self.engine.step():
                    pass
            except Exception:
                logger.exception("the engine of %s failed", self.lm.name)
                self.engine.fail(InputError(INTERNAL_ERROR))
            if not self._closing:
                give_back_memory()
                self._wake.wait()
        self.engine.cancel_all()
