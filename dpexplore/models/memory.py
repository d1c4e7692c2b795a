"""Memory of the processor that nobody uses any more."""

from __future__ import annotations

import ctypes
import sys


def give_back_memory() -> None:
    """Return to the system what was freed but is still held, where the C library can (glibc's `malloc_trim`).

    Each thread that frees tensors has a heap of its own, and what lies free in it counts as this process's for good.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
