"""Tuning in slices of a lent GPU, by a stand-in that forks, pickles and cuts off; each test in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PREPARE = """
import sys
import time
import torch
torch.set_num_threads(1)
from tests import fake_spaces
sys.modules["spaces"] = fake_spaces
from dpexplore.errors import InputError
from dpexplore.models import load_model
from dpexplore.space import zero
from dpexplore.targets import entropy
from dpexplore.tuning import Engine, TuneConfig

lm = load_model("random:bytes-llama")
target = entropy(bits=3, seed=1).build(lm)
config = TuneConfig(length=3, restarts=2, steps=60, patience=None)
zero.CHECKPOINT_SECONDS = 0.1

def server(slice_seconds, cut_off=None):
    return zero.SlicedServer(lm, zero.slice_on_zero(cut_off or slice_seconds), slice_seconds)
"""


def run(body: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PREPARE + body], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("cut_off", ["None", "1"], ids=["ends by itself", "is cut off"])
def test_a_visitor_sees_one_run(cut_off: str) -> None:
    run(f"""
zero.RESERVE_SECONDS = 0.8 if {cut_off} is None else -60.0  # the second way no slice ends in time
whole = Engine(lm).submit(target, config)
expected = whole.result
step = Engine.step
Engine.step = lambda self: time.sleep(0.03) or step(self)  # a fast machine needs several slices, too
sliced = server(2, {cut_off})
mine = sliced.submit(target, config)
steps = list(mine)
assert [step.step for step in steps] == [step.step for step in whole.steps]
assert all(a.kl_nats == b.kl_nats for a, b in zip(steps, whole.steps))
assert abs(mine.result.kl_nats - expected.kl_nats) < 1e-6
assert mine.status == whole.status
assert len(fake_spaces.forks) >= 2, fake_spaces.forks
assert sliced.running == 0
sliced.close()
""")


def test_stop_keeps_the_best_and_ends_the_process() -> None:
    run("""
import os
sliced = server(60)
mine = sliced.submit(target, TuneConfig(length=3, restarts=2, steps=1_000_000, patience=None))
while len(mine.steps) < 30:
    mine.wait(1)
mine.cancel()
result = mine.result
assert mine.status == "cancelled"
assert abs(result.kl_nats - mine.steps[-1].best_kl_nats) < 1e-4
assert all(kl is not None for kl in result.kl_nats_per_restart)
(child,) = fake_spaces.forks
try:
    os.kill(child, 0)
    raise AssertionError("the slice's process is still there")
except ProcessLookupError:
    pass
""")


def test_refusals_are_sentences_and_bad_input_asks_for_no_gpu() -> None:
    run("""
def refuse(*args):
    raise RuntimeError("quota exceeded")
    yield
sliced = zero.SlicedServer(lm, refuse, 60)
mine = sliced.submit(target, config)
try:
    mine.result
    raise AssertionError("no error")
except InputError as error:
    assert str(error) == zero.NO_GPU
sliced.close()
try:
    sliced.submit(target, config)
    raise AssertionError("no error")
except InputError as error:
    assert "released" in str(error)

sliced = server(60)
try:
    sliced.submit(target, TuneConfig(length=100_000))
    raise AssertionError("no error")
except InputError as error:
    assert fake_spaces.forks == []
""")
