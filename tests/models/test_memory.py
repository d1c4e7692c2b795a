"""Memory that was freed goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import psutil
import pytest
import torch

from dpexplore.models.memory import HEAPS, give_back_memory

BLOCK, BLOCKS = 100_000, 3_000  # bytes; smaller than what the C library asks the system for one by one
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
_THREADS = """
import ctypes, threading
from dpexplore.models.memory import share_heaps
share_heaps()
gate = threading.Barrier(12)
def allocate():
    kept = ctypes.create_string_buffer(1000)
    gate.wait()
threads = [threading.Thread(target=allocate) for _ in range(12)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
library = ctypes.CDLL(None)
library.malloc_info(0, ctypes.c_void_p.in_dll(library, "stdout"))
library.fflush(None)
"""


@glibc
def test_what_lies_free_below_something_used_is_given_back() -> None:
    process = psutil.Process()
    blocks = [torch.ones(BLOCK // 4) for _ in range(BLOCKS)]
    last = blocks[-1]  # holds the heap up
    del blocks
    held = process.memory_info().rss
    give_back_memory()
    assert held - process.memory_info().rss > BLOCK * BLOCKS / 2
    assert last.sum() == BLOCK // 4


@glibc
def test_many_threads_share_a_few_heaps() -> None:
    told = subprocess.run([sys.executable, "-c", _THREADS], capture_output=True, text=True, check=True).stdout
    assert 1 <= told.count("<heap nr=") <= HEAPS
