"""Workers as Ray actors, one a GPU; the driver alone commits, retries and gives up. Ray is an optional extra."""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpexplore.errors import InputError
from dpexplore.experiments.problems import ModelFacts, Problem
from dpexplore.experiments.worker import Event, Failed, Progress, Results, Worker
from dpexplore.extras import extra

ATTEMPTS = 3
"""Times a shard is begun before its problems are given up."""
SHARDS_A_WORKER = 4
"""At least this many shards, so that workers finish together; none is larger than `LARGEST_SHARD`."""
LARGEST_SHARD = 512
STORE_BYTES = 200 * 2**20
"""Ray's object store; problems and results are small, and Ray would take a third of the memory."""
SHARDS_AT_ONCE = 2
"""That a worker has in hand: rows of the second fill the places that the first one's stragglers leave empty."""
POLL_SECONDS = 1.0

logger = logging.getLogger(__name__)


@dataclass
class _Shard:
    """Problems that a worker has in hand."""

    problems: list[Problem]
    attempt: int = 1
    doing: float = 0.0
    rows: int = 0
    left: set[str] = field(default_factory=set)
    """Ids without result so far."""

    def __post_init__(self) -> None:
        self.left = {problem.id for problem in self.problems}

    @property
    def rest(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.id in self.left]


@dataclass(eq=False)
class _Hired:
    """A worker."""

    actor: Any
    shards: int = 0
    """That it has in hand."""
    begun: bool = False
    """Whether it has shown a sign of life: before, it may be waiting for a place."""


class RayExecutor:
    """Runs the workers of one model on all GPUs (or CPUs) of a Ray cluster.

    address None begins a cluster of this machine that listens to nobody else. workers None means one a GPU, or where
    there is no GPU one a CPU. InputError if Ray is not installed or the cluster cannot be reached.
    """

    def __init__(
        self, address: str | None = None, workers: int | None = None, device: str | None = None, rows: int | None = None
    ) -> None:
        self._ray = _import_ray()
        self._device, self._rows = device, rows
        self._own = not self._ray.is_initialized()
        if self._own:
            _begin(self._ray, address)
        resources = self._ray.cluster_resources()
        self._gpus = int(resources.get("GPU", 0)) if device != "cpu" else 0
        cpus = int(resources.get("CPU", 0))
        self._workers = workers or self._gpus or cpus
        if self._workers < 1 or self._workers > (self._gpus or cpus):
            self.close()
            raise InputError(
                f"--workers is {workers}; the cluster has {cpus} CPUs and {self._gpus} GPUs, one for each worker."
            )
        self._model = ""
        self._hired: list[_Hired] = []

    def facts(self, model: str) -> ModelFacts:
        """Load the model in a first worker and ask it."""
        self._dismiss()
        self._model = model
        for attempt in range(1, ATTEMPTS + 1):
            worker = self._hire()
            try:
                found = self._ray.get(worker.actor.facts.remote())
            except self._ray.exceptions.RayError as error:
                self._kill(worker)
                cause = _input_error(error)
                if cause is not None or attempt == ATTEMPTS:
                    raise cause or InputError(f"No worker could load {model} ({_first_line(error)}).") from error
            else:
                worker.begun = True
                return found
        raise AssertionError("unreachable")

    def run(self, problems: Sequence[Problem], stop: Callable[[], bool]) -> Iterator[Event]:
        """Deal shards to workers; a dead worker is replaced and what it had not handed over is dealt again."""
        queue = deque(_Shard(part) for part in _parts(problems, self._workers))
        busy: dict[Any, tuple[_Hired, _Shard]] = {}  # result stream -> worker and shard
        seen: Counter[str] = Counter()
        while (queue or busy) and not stop():
            self._withdraw(queue, busy)
            while queue and (worker := self._free()):
                shard = queue.popleft()
                worker.shards += 1
                busy[worker.actor.run.options(num_returns="streaming").remote(shard.rest)] = (worker, shard)
            ready, _ = self._ray.wait(list(busy), num_returns=1, timeout=POLL_SECONDS)
            for stream in ready:
                worker, shard = busy[stream]
                worker.begun = True
                try:
                    event = self._ray.get(next(stream))
                except StopIteration:
                    del busy[stream]
                    worker.shards -= 1
                except self._ray.exceptions.RayError as error:
                    del busy[stream]
                    self._kill(worker)
                    yield from self._again(shard, error, queue)
                else:
                    yield from self._pass_on(event, shard, [each for _, each in busy.values()], seen)
        for worker in [each for each in self._hired if each.shards]:
            self._kill(worker)

    def _places(self) -> int:
        """Workers that the cluster has room for now; fewer when a node has gone."""
        resources = self._ray.cluster_resources()
        return max(1, int(resources.get("GPU" if self._gpus else "CPU", 0)))

    def _free(self) -> _Hired | None:
        """The worker with the least in hand, a new one where all have some and there is room; None if all are full."""
        least = min(self._hired, key=lambda each: each.shards, default=None)
        if (least is None or least.shards) and len(self._hired) < min(self._workers, self._places()):
            return self._hire()
        return least if least is not None and least.shards < SHARDS_AT_ONCE else None

    def _withdraw(self, queue: deque[_Shard], busy: dict[Any, tuple[_Hired, _Shard]]) -> None:
        """Take shards back from workers that wait for a place which went with its node: others compute them."""
        waiting = [worker for worker in self._hired if not worker.begun]
        surplus = waiting[: max(0, len(self._hired) - self._places())]
        for stream, (worker, shard) in list(busy.items()):
            if worker in surplus:
                del busy[stream]
                queue.appendleft(shard)
        for worker in surplus:
            self._kill(worker)

    def close(self) -> None:
        """End the workers, and the cluster if this executor began it."""
        if hasattr(self, "_hired"):
            self._dismiss()
        if self._own and self._ray.is_initialized():
            self._ray.shutdown()

    def _pass_on(self, event: Event, shard: _Shard, busy: list[_Shard], seen: Counter[str]) -> Iterator[Event]:
        """Results of a shard dealt twice may come twice; progress is summed over the workers."""
        if isinstance(event, Results):
            fresh = [row for row in event.rows if not seen[row["id"]]]
            seen.update(row["id"] for row in fresh)
            shard.left.difference_update(row["id"] for row in event.rows)
            shard.doing = 0.0
            if fresh:
                yield Results(fresh)
        elif isinstance(event, Failed):
            shard.left.discard(event.problem.id)
            yield event
        else:
            shard.doing, shard.rows = event.doing, event.rows
            yield Progress(sum(each.doing for each in busy), sum(each.rows for each in busy))

    def _again(self, shard: _Shard, error: Exception, queue: deque[_Shard]) -> Iterator[Event]:
        if shard.attempt < ATTEMPTS:
            logger.warning("a worker ended (%s); its %d problems are dealt again", _first_line(error), len(shard.rest))
            if shard.rest:
                queue.append(_Shard(shard.rest, shard.attempt + 1))
            return
        for problem in shard.rest:
            yield Failed(problem, f"its workers ended {ATTEMPTS} times, at last with: {_first_line(error)}")

    def _hire(self) -> _Hired:
        needs = {"num_cpus": 0, "num_gpus": 1} if self._gpus else {"num_cpus": 1}
        threads = {"env_vars": {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}} if not self._gpus else {}
        kind = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": SHARDS_AT_ONCE}
        actor = self._ray.remote(**needs, **kind, runtime_env=threads or None)(Worker)
        worker = _Hired(actor.remote(self._model, self._device, self._rows))
        self._hired.append(worker)
        return worker

    def _dismiss(self) -> None:
        for worker in [*self._hired]:
            self._kill(worker)

    def _kill(self, worker: _Hired) -> None:
        """Also one that only seems dead: it must not come back while its shard is dealt again."""
        self._hired = [each for each in self._hired if each is not worker]
        with suppress(Exception):  # it may be gone, its node with it
            self._ray.kill(worker.actor)


def _import_ray() -> Any:
    # Read at import: on a cluster of one machine Ray then listens on that machine alone.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    with extra("ray", "--executor ray"):
        import ray
    return ray


def _begin(ray: Any, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    package = str(Path(__file__).resolve().parents[1])
    try:
        if address is None:  # "local", or a stale session file of another cluster would be followed
            ray.init(address="local", include_dashboard=False, object_store_memory=STORE_BYTES, **quiet)
        else:
            ray.init(address=address, runtime_env={"py_modules": [package]}, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"No Ray cluster could be reached at {address or 'this machine'}: {_first_line(error)}."
        ) from error


def _parts(problems: Sequence[Problem], workers: int) -> list[list[Problem]]:
    """Shards of neighbouring problems, small enough that all workers have some and end together."""
    size = max(1, min(LARGEST_SHARD, -(-len(problems) // (workers * SHARDS_A_WORKER))))
    return [list(problems[first : first + size]) for first in range(0, len(problems), size)]


def _input_error(error: Exception) -> InputError | None:
    """The InputError that a worker raised, if that is what ended it."""
    cause = getattr(error, "cause", None)
    return InputError(str(cause)) if isinstance(cause, InputError) else None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
