"""Memory that was freed goes back to the system."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from dpexplore.models import memory
from dpexplore.models.memory import HEAPS, free_memory, give_back_memory

BLOCK, BLOCKS = 100_000, 3_000  # bytes; smaller than what the C library asks the system for one by one
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
_THREADS = """
import ctypes, threading
from dpexplore.models.memory import reserve_little
reserve_little()
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


def test_free_memory_is_what_a_container_or_a_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    own = tmp_path / "own"
    monkeypatch.setattr(memory, "_OWN_GROUPS", own)
    machine = free_memory()
    for controller, (folder, limit, used, droppable) in memory._GROUP_FILES.items():
        own.write_text(f"1:cpu:/elsewhere\n0:{controller}:/outer/inner\n")
        group = tmp_path / folder / "outer"  # a limit of a group around the process's own counts too
        group.mkdir(parents=True)
        for name, text in ((limit, "3000"), (used, "2000"), ("memory.stat", f"anon 7\n{droppable} 500")):
            (group / name).write_text(text + "\n")
        assert free_memory() == 1500
        (group / used).write_text("9000")
        assert free_memory() == 0
        (group / limit).write_text("max")  # without a limit
        assert free_memory() > machine // 2
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (2**40, 2**40))
    assert free_memory() > machine // 2
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (2**20, 2**20))
    assert free_memory() == 0


RESERVING = """
import threading
import pandas
from dpexplore.models.memory import reserve_little

def reserved():
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmData:"))

reserve_little()
before, done = reserved(), threading.Event()
for _ in range(50):
    threading.Thread(target=done.wait).start()
texts = pandas.Series(["a"] * 1000)
print(reserved() - before)
done.set()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts as Linux does")
def test_a_server_reserves_little_more_than_it_uses() -> None:
    """50 threads and a table of texts: 0.4 GiB of stacks, and 1 GiB for Arrow, where nobody says otherwise."""
    told = subprocess.run([sys.executable, "-c", RESERVING], capture_output=True, text=True, check=True)
    assert int(told.stdout) < 300
