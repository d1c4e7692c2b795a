"""The store: whole or not at all, every problem once, whatever happens to the disk, the files or the driver."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpexplore import files
from dpexplore.errors import InputError
from dpexplore.experiments import ModelFacts, Problem, Store
from dpexplore.experiments.store import Listing, result_row
from dpexplore.tuning import TuneConfig

MODEL = ModelFacts("m", "sha256:1", "float32", 100)


def rows(*restarts: int) -> list[dict[str, Any]]:
    problems = [Problem.tune(MODEL, "entropy(bits=3, seed=0)", TuneConfig(), restart) for restart in restarts]
    return [result_row(problem, kl_nats=float(problem.restart), seconds=1.0) for problem in problems]


def ids(*restarts: int) -> set[str]:
    return {row["id"] for row in rows(*restarts)}


def test_what_is_committed_is_read_back_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.locked():
        store.commit(rows(0, 1))
        store.commit(rows(1, 2))
    assert store.done() == ids(0, 1, 2)
    table = Store(tmp_path).read()
    assert sorted(table["kl_nats"].to_pylist()) == [0.0, 1.0, 2.0]
    assert set(store.read(ids=ids(1))["id"].to_pylist()) == ids(1)
    assert not list(tmp_path.glob("*/.*.tmp"))


def test_listings_come_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    listing = Listing("s", "fig1", "t", "small", "m", "i", ["a", "b"], ["g", "g"], [{"bits": 1.5}, {"bits": 2}])
    with store.locked():
        store.write_listing(listing)
        store.write_listing(listing)
    assert store.listings() == [listing]


def test_a_second_driver_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    with Store(tmp_path).locked(), pytest.raises(InputError, match="Another sweep"), Store(tmp_path).locked():
        pass
    with Store(tmp_path).locked():
        pass


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_damaged_shard_is_set_aside_and_its_problems_are_to_be_done_again(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    with store.locked():
        path = store.commit(rows(0, 1))
        store.commit(rows(2))
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content) - 1))
        path.write_bytes(content[:cut])
        assert store.done() == ids(2)
        (moved,) = store.put_corrupt_aside()
        assert moved.read_bytes() == content[:cut]
        assert store.put_corrupt_aside() == []
        store.commit(rows(0, 1))
    assert store.done() == ids(0, 1, 2)


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])  # what takes seconds to import is imported once for all of them


def exit_code(work: Callable[..., None], *arguments: object) -> int | None:
    """How a process ends that does this work alone: it may be killed, and its limits are its own."""
    child = PROCESSES.Process(target=work, args=arguments)
    child.start()
    child.join()
    return child.exitcode


def die_at(name: str, folder: Path) -> None:
    """Commit twice; at the second one this process is killed where it is about to call `os.<name>`."""
    store = Store(folder)
    with store.locked():
        store.commit(rows(0))
        setattr(os, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        store.commit(rows(1))


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_within_a_commit_the_store_is_as_before_it(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exit_code(die_at, moment, tmp_path) == -signal.SIGKILL
    assert len(list(tmp_path.glob("results/.*.part"))) == 1  # it died with a temporary file open
    monkeypatch.setattr(files, "LEFTOVER_SECONDS", 0)
    store = Store(tmp_path)
    assert store.done() == ids(0)
    with store.locked():
        assert not list(tmp_path.glob("results/.*.part"))
        store.commit(rows(1))
    assert store.done() == ids(0, 1)


def commit_to_a_full_disk(folder: Path, message: Path) -> None:
    """The kernel refuses to write more than 1,000 bytes to a file, as a full disk would."""
    store = Store(folder)
    with store.locked():
        store.commit(rows(0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        try:
            store.commit(rows(1))
        except InputError as error:
            message.write_text(str(error), encoding="utf-8")


def test_a_full_disk_is_one_sentence_and_costs_nothing_that_was_committed(tmp_path: Path) -> None:
    folder, message = tmp_path / "store", tmp_path / "message"
    assert exit_code(commit_to_a_full_disk, folder, message) == 0
    sentence = message.read_text(encoding="utf-8")
    assert "disk is full" in sentence
    assert "\n" not in sentence
    assert Store(folder).done() == ids(0)
    assert not list(folder.glob("results/.*.part"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"), Store(tmp_path / "file").locked():
        pass
