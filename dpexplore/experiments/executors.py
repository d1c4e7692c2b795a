"""Where workers run: in this process, or as Ray actors on every GPU of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from dpexplore.experiments.problems import ModelFacts, Problem
from dpexplore.experiments.worker import Event, Worker


class Executor(Protocol):
    """Runs problems of one model at a time."""

    def facts(self, model: str) -> ModelFacts:
        """Make a model ready and say what it is. InputError if it cannot be had."""
        ...

    def run(self, problems: Sequence[Problem], stop: Callable[[], bool]) -> Iterator[Event]:
        """Compute problems of the model that `facts` was last asked for."""
        ...

    def close(self) -> None: ...


class LocalExecutor:
    """One worker in this process."""

    def __init__(self, device: str | None = None, max_rows: int | None = None) -> None:
        self._device, self._max_rows = device, max_rows
        self._worker: Worker | None = None

    def facts(self, model: str) -> ModelFacts:
        self._worker = None  # let go of the last model before the next one is loaded
        self._worker = Worker(model, self._device, self._max_rows)
        return self._worker.facts()

    def run(self, problems: Sequence[Problem], stop: Callable[[], bool]) -> Iterator[Event]:
        assert self._worker is not None
        return self._worker.run(problems, stop)

    def close(self) -> None:
        self._worker = None
