"""Time as benchmarks need it: a device has done its work before the clock is read."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long `work` takes, the device's part included."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def median_seconds(
    work: Callable[[], object], device: torch.device, limit: float, times: int = 30
) -> tuple[float, int]:
    """Median over at most `times` calls begun within `limit` seconds, and how many there were; a first one warms up."""
    deadline = time.perf_counter() + limit
    work()
    taken = [seconds(work, device)]
    while len(taken) < times and time.perf_counter() < deadline:
        taken.append(seconds(work, device))
    return sorted(taken)[len(taken) // 2], len(taken)
