"""Who has the processor's cores where many threads use torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CORES = torch.get_num_threads()
"""Threads that torch works with where nobody says otherwise."""


def take_all_cores() -> None:
    """Let torch work on every core in the calling thread, and on one in each thread that begins to use it later.

    Between two operations OpenMP's threads spin, which is quick, as long as the process has no more of them than
    cores. Every thread that uses torch brings threads of its own; as soon as there are too many, all of them sleep
    between any two operations: on two cores a step of 30 rows then takes half as long again.
    """
    torch.get_num_threads()  # a thread gets the common number when it first asks, so before its own is set
    torch.set_num_threads(CORES)
    others = threading.Thread(target=torch.set_num_threads, args=(1,))  # sets the common number, too
    others.start()
    others.join()


@contextmanager
def all_cores() -> Iterator[None]:
    """Let torch work on every core in the calling thread, for something long outside the engine."""
    before = torch.get_num_threads()
    torch.set_num_threads(CORES)
    try:
        yield
    finally:
        torch.set_num_threads(before)
