"""What ZeroGPU does to a function, without a GPU: a forked process, pickled arguments and yields, and a cut-off."""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch

forks: list[int] = []
"""Process ids of the slices so far."""


class GPUTaskAborted(RuntimeError):
    """The process was killed at the end of its time."""


def GPU(duration: float) -> Callable[[Callable[..., Iterator[Any]]], Callable[..., Iterator[Any]]]:
    """As `spaces.GPU` for generators; `duration` in seconds."""

    def decorate(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def lent(*args: Any) -> Iterator[Any]:
            fork = multiprocessing.get_context("fork")
            here, there = fork.Pipe()
            child = fork.Process(target=_child, args=(there, function, pickle.dumps(args)), daemon=True)
            child.start()
            there.close()
            assert child.pid is not None
            forks.append(child.pid)
            deadline = time.monotonic() + duration
            try:
                while True:
                    if not here.poll(max(deadline - time.monotonic(), 0)):
                        raise GPUTaskAborted("GPU task aborted")
                    try:
                        value = pickle.loads(here.recv_bytes())
                    except EOFError:
                        return
                    if isinstance(value, Exception):
                        raise value
                    yield value
            finally:
                child.kill()
                child.join()
                here.close()

        return lent

    return decorate


def _child(pipe: Connection, function: Callable[..., Iterator[Any]], args: bytes) -> None:
    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork
    try:
        for value in function(*pickle.loads(args)):
            pipe.send_bytes(pickle.dumps(value))
    except Exception as error:
        pipe.send_bytes(pickle.dumps(RuntimeError(type(error).__name__)))
    finally:
        pipe.close()
