"""The processor's memory: how much is left to this process, and giving back what it uses no more (glibc)."""

from __future__ import annotations

import ctypes
import resource
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

HEAPS = 2
"""For all threads; the C library makes up to eight for each core where nobody says otherwise."""
STACK_BYTES = 4 * 2**20
"""Of a thread; half of that is too little for a thousand calls within one another through C code."""
_M_ARENA_MAX = -8


_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUP_FILES = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Controller, as a process's own list has it -> its folder, a group's limit and use, and what of the use is files that
it can drop; cgroup v2 has one hierarchy without a controller's name."""
_OWN_STATUS = Path("/proc/self/status")


def free_memory() -> int:
    """Free bytes: of the machine, or what a container's limit or `ulimit -d` leaves to this process, if that is less.

    A process that asks for more is killed, or refused, however much the machine has.
    """
    return max(0, min([psutil.virtual_memory().available, *_left_by_groups(), *_left_by_ulimit()]))


def _left_by_groups() -> list[int]:
    """What the process's groups, and the groups that they are in, have left; a container sees its own as the root."""
    try:
        listed = [line.split(":", 2) for line in _OWN_GROUPS.read_text().splitlines()]
    except OSError:  # no Linux
        return []
    found: list[int] = []
    for _, controller, path in listed:
        if controller not in _GROUP_FILES:
            continue
        folder, limit, used, droppable = _GROUP_FILES[controller]
        own = Path(path.lstrip("/"))
        for group in dict.fromkeys(_GROUPS / folder / each for each in (own, *own.parents)):
            try:
                stats = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                left = int((group / limit).read_text()) - int((group / used).read_text()) + int(stats[droppable])
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


def reserve_little() -> None:
    """Let this process reserve no more than it uses: `ulimit -d` counts what is reserved. Before its threads begin.

    All threads allocate from a few heaps: what lies free in a heap that few threads use is lost to the others. Their
    stacks are half as large. Arrow, on which pandas keeps texts, allocates as everybody else does; its own allocator
    reserves a gibibyte for the first of them.
    """
    threading.stack_size(STACK_BYTES)
    if arrow := sys.modules.get("pyarrow"):
        arrow.set_memory_pool(arrow.system_memory_pool())
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
