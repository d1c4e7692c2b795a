"""On a server the engine's thread has the cores; other threads use one, unless they ask for all."""

from __future__ import annotations

import json
import subprocess
import sys

_PROGRAM = """
import json, threading, torch
torch.set_num_threads(3)
from dpexplore.models.cores import all_cores, take_all_cores

def counted(before=lambda: None):
    found = []
    def count():
        before()
        found.append(torch.get_num_threads())
        torch.rand(64, 64) @ torch.rand(64, 64)
        found.append(torch.get_num_threads())
    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
    assert found[0] == found[1]
    return found[0]

def borrowed():
    before = torch.get_num_threads()
    with all_cores():
        within = torch.get_num_threads()
    return [before, within, torch.get_num_threads()]

told = {"before": counted(), "engine": counted(take_all_cores), "others": counted()}
held = []
thread = threading.Thread(target=lambda: held.append(borrowed()))
thread.start()
thread.join()
print(json.dumps({**told, "borrowed": held[0], "others after": counted(), "main": torch.get_num_threads()}))
"""


def test_one_thread_takes_the_cores_and_others_borrow_them() -> None:
    """In a process of its own: the number of threads is the whole process's."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {
        "before": 3,
        "engine": 3,
        "others": 1,
        "borrowed": [1, 3, 1],
        "others after": 1,
        "main": 3,
    }
