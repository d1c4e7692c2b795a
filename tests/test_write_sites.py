"""The project's own writers, killed where a file is about to take its place: what was there is there, whole."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from dpexplore.diffuse.matrix import read_cells
from dpexplore.experiments import store
from dpexplore.files import leftovers, write_file
from dpexplore.floor import over_entropies
from dpexplore.floor.over_entropies import CurvePoint
from dpexplore.floor.reach import save_head
from dpexplore.models import LanguageModel
from dpexplore.models.checksums import write_checksums
from dpexplore.serving.journal import Journal
from dpexplore.targets import Target, save_target
from dpexplore.targets.pos_table import write_table
from dpexplore.targets.pos_tagger import WordTags
from dpexplore.tuning.init import lookup

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def target_file(folder: Path, lm: LanguageModel) -> None:
    save_target(Target(torch.full((lm.vocab_size,), 1 / lm.vocab_size, dtype=torch.float64), "r"), folder / "t.npz")


def head_file(folder: Path, lm: LanguageModel) -> None:
    save_head(lm, folder / "head.npz")


def tags_file(folder: Path, _: LanguageModel) -> None:
    write_table(folder / "pos.tsv.gz", {"sea": WordTags("NOUN", "NOUN")}, "key")


def floors_file(folder: Path, _: LanguageModel) -> None:
    over_entropies._write(folder / "floors.json", [CurvePoint("r", 1.0, 0.1, 0.1, None)])


def checksums_file(folder: Path, _: LanguageModel) -> None:
    write_checksums(folder)


def lookup_file(folder: Path, lm: LanguageModel) -> None:
    lookup._keep(lm, (), lookup.TokenStates(torch.zeros(2, 2, dtype=torch.float16), torch.zeros(2)))


def shard_file(folder: Path, _: LanguageModel) -> None:
    store._write_whole(folder / "shard.parquet", pa.table({"a": [1, 2]}))


def torn_cells_file(folder: Path, _: LanguageModel) -> None:
    path = folder / "cells.jsonl"
    if "whole" not in path.read_text():
        path.write_text('{"whole": 0, "settings": 1}\n{"torn')
    read_cells(path, {})


def imported_capsule(folder: Path, _: LanguageModel) -> None:
    Journal(folder).add({"model": {"name": "m"}})


def compacted_journal(folder: Path, _: LanguageModel) -> None:
    run = Journal(folder).open("a" * 22, "m", {})
    assert run is not None
    run.write([b"best 1\n", b"best 2\n"])
    run._compact()
    run.close()


def alone() -> None:
    """In a forked child: the parent's threads are not there, and nobody waits for ever."""
    signal.alarm(60)
    torch.set_num_threads(1)


SITES = [target_file, head_file, tags_file, floors_file, checksums_file, lookup_file, shard_file, torn_cells_file,
         imported_capsule, compacted_journal]  # fmt: skip
Site = Callable[[Path, LanguageModel], None]


def contents(folder: Path) -> dict[str, bytes]:
    left = leftovers(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path not in left}


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.__name__)
def test_killed_at_any_writer_what_was_there_is_whole(
    tiny_lm: Callable[[str], LanguageModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    """Whatever stands at the place that it writes to; the next writer puts its own there."""
    lm, replace, places = tiny_lm("gpt2"), os.replace, list[Path]()
    monkeypatch.setattr(lookup, "_file", lambda *_: tmp_path / "lookup")
    monkeypatch.setattr(os, "replace", lambda old, new: (places.append(Path(new)), replace(old, new)))
    (tmp_path / "cells.jsonl").write_text("")
    site(tmp_path, lm)  # says where it writes
    (place,) = places
    if site not in (torn_cells_file, compacted_journal):
        place.write_text("what was there")
    else:
        place.write_text('{"whole": 0, "settings": 1}\n{"torn') if site is torn_cells_file else None
    before = contents(tmp_path)
    child = os.fork()
    if not child:  # no test goes on here, whatever happens
        alone()
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        try:
            site(tmp_path, lm)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    after = contents(tmp_path)
    if site is compacted_journal:  # it appends first
        assert after[place.name].startswith(before[place.name])
    else:
        assert after == before
    site(tmp_path, lm)
    assert contents(tmp_path)[place.name] != before[place.name]


def test_two_writers_of_one_file_leave_one_of_theirs(tmp_path: Path) -> None:
    """Two processes that prepare the same file at once, over and over."""
    texts = [str(number) * 100_000 for number in range(2)]
    ready, writers = os.pipe(), []
    for text in texts:
        if child := os.fork():
            writers.append(child)
            continue
        try:
            alone()
            os.read(ready[0], 1)
            for _ in range(30):
                write_file(tmp_path / "kept", text)
                assert (tmp_path / "kept").read_text() in texts
            os._exit(0)
        finally:
            os._exit(1)
    os.write(ready[1], b"go")
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in writers] == [0, 0]
    assert (tmp_path / "kept").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    os.close(ready[0])
    os.close(ready[1])
