"""Memory of the processor that nobody uses any more, where the C library (glibc) can be told about it."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

HEAPS = 2
"""For all threads; the C library makes up to eight for each core where nobody says otherwise."""
_M_ARENA_MAX = -8


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
