"""The same sweeps on a real Ray cluster of two nodes, whose workers and nodes are killed meanwhile."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dpexplore.errors import InputError
from dpexplore.experiments import Store, load_spec, run_sweep
from dpexplore.experiments.ray_executor import RayExecutor
from tests.experiments.test_sweep import assert_the_same, by_id, sweep, write_spec

ray = pytest.importorskip("ray")
pytestmark = [
    # Ray leaves sockets, processes and loops to the garbage collector.
    pytest.mark.filterwarnings("ignore"),
]
STEPS = 12
"""So few that the rounding of different batches stays within the tolerance."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (the default, 15, starves on a busy machine)
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=small)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(scope="module")
def spec_file(tmp_path_factory: pytest.TempPathFactory, tiny_folders: Callable[[str], Path]) -> Path:
    groups = {"vanilla": {"recipe": "entropy(bits=$bits, seed=$seed)", "over": {"seed": {"count": 16}, "bits": [2, 5]}}}
    tune = {"method": "soft", "length": 3, "steps": STEPS, "patience": None}
    folder = tmp_path_factory.mktemp("spec")
    return write_spec(folder, [str(tiny_folders("llama"))], groups=groups, tune=tune, kinds=["tune"], restarts=2)


def workers() -> list[psutil.Process]:
    """Ray's processes that hold a worker of ours."""
    found = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith("ray::Worker"):
            found.append(process)
    return found


def test_a_killed_worker_and_a_killed_node_cost_no_problem(cluster: Any, spec_file: Path, tmp_path: Path) -> None:
    second = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    cluster.wait_for_nodes()
    executor = RayExecutor(device="cpu", rows=4)
    done: list[str] = []

    def disturb(report: Any) -> None:
        """After the first results a worker is killed, after some more the second node with all that runs on it."""
        if report.computed >= 1 and not done:
            done.append("worker")
            os.kill(workers()[0].pid, signal.SIGKILL)
        elif report.computed >= 4 and len(done) == 1:
            done.append("node")
            cluster.remove_node(second, allow_graceful=False)

    try:
        report = run_sweep(load_spec(str(spec_file)), Store(tmp_path / "ray"), executor, tell=disturb)
    finally:
        executor.close()
    assert done == ["worker", "node"]
    assert report.failed == []
    assert ray.is_initialized()  # the cluster was not the executor's to end
    sweep(load_spec(str(spec_file)), tmp_path / "local")
    assert_the_same(tmp_path / "ray", by_id(tmp_path / "local"))


def test_what_a_worker_cannot_load_is_one_sentence(cluster: Any, tmp_path: Path) -> None:
    executor = RayExecutor(device="cpu", workers=1)
    with pytest.raises(InputError, match="nothing-here"):
        executor.facts("./nothing-here")
    executor.close()
    with pytest.raises(InputError, match="--workers is 99"):
        RayExecutor(device="cpu", workers=99)


def test_without_ray_the_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="pip install 'ray"):
        RayExecutor()
