"""The processor's memory: how much is left to this process, and giving back what it uses no more (glibc)."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path
from typing import Any

import psutil

HEAPS = 2
"""For all threads; the C library makes up to eight for each core where nobody says otherwise."""
_M_ARENA_MAX = -8


_GROUPS = Path("/sys/fs/cgroup")
_GROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""Limit and use of a container, and what of the use is files that it can drop: of cgroup v2, and of v1."""
_OWN_STATUS = Path("/proc/self/status")


def free_memory() -> int:
    """Free bytes: of the machine, or what a container's limit or `ulimit -d` leaves to this process, if that is less.

    A process that asks for more is killed, or refused, however much the machine has.
    """
    return max(0, min([psutil.virtual_memory().available, *_left_by_groups(), *_left_by_ulimit()]))


def _left_by_groups() -> list[int]:
    found: list[int] = []
    for limit, used, statistics, droppable in _GROUP_FILES:
        try:
            told = dict(line.split() for line in (_GROUPS / statistics).read_text().splitlines())
            left = int((_GROUPS / limit).read_text()) - int((_GROUPS / used).read_text()) + int(told[droppable])
        except (OSError, ValueError, KeyError):  # not there, or "max": no limit
            continue
        found.append(left)
    return found


def _left_by_ulimit() -> list[int]:
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return []
    try:
        line = next(line for line in _OWN_STATUS.read_text().splitlines() if line.startswith("VmData:"))
    except (OSError, StopIteration):
        return []
    return [limit - 1024 * int(line.split()[1])]


def share_heaps() -> None:
    """Let all threads allocate from a few heaps: what lies free in a heap that few threads use is lost to the others.

    Call it before the threads begin.
    """
    if (library := _c_library()) is not None:
        library.mallopt(_M_ARENA_MAX, HEAPS)


def give_back_memory() -> None:
    """Return to the system what was freed but still counts as this process's."""
    if (library := _c_library()) is not None:
        library.malloc_trim(0)


def _c_library() -> Any:
    """The C library, if it is one that can do this."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "malloc_trim") else None
