"""Whatever happens while a file is written, what was there before is there afterwards."""

from __future__ import annotations

import ast
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpexplore import files
from dpexplore.files import (
    append_line,
    leftovers,
    remove_leftovers,
    replacing,
    replacing_folder,
    why_unwritable,
    write_file,
)

PACKAGE = Path(files.__file__).parent
OLD, NEW = "old", "new" * 1000

WRITE = {
    "file": "write_file(folder / 'kept', sys.argv[3])",
    "library": "with replacing(folder / 'kept') as beside: beside.write_text(sys.argv[3])",
    "folder": "with replacing_folder(folder / 'whole') as beside: (beside / 'kept').write_text(sys.argv[3])",
    "line": "append_line(folder / 'kept', sys.argv[3])",
}
"""Every way of writing that the project has."""
DIES = """
import os, signal, sys
from pathlib import Path
from files import append_line, replacing, replacing_folder, write_file
folder, moment = Path(sys.argv[1]), sys.argv[2]
setattr(os, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""
FULL = """
import os, resource, sys
from pathlib import Path
from files import append_line, reason, replacing, replacing_folder, write_file
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    CALL
except OSError as error:
    print(reason(error))
"""


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run code beside `files.py`, so that it need not import the package, which takes seconds."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(PACKAGE)})


def kept(folder: Path, way: str) -> Path:
    """The old file that a way of writing replaces."""
    path = folder / "whole" / "kept" if way == "folder" else folder / "kept"
    path.parent.mkdir(exist_ok=True)
    path.write_text(OLD)
    return path


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("way", ["file", "library", "folder"])
def test_killed_at_any_moment_the_old_file_stays_and_the_next_write_cleans_up(
    tmp_path: Path, way: str, moment: str
) -> None:
    path = kept(tmp_path, way)
    died = python(DIES + WRITE[way], tmp_path, moment, NEW)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert path.read_text() == OLD
    (left,) = leftovers(tmp_path)
    assert remove_leftovers(tmp_path) == 0  # it may be about to be locked by its writer
    long_ago = time.time() - 2 * files.LEFTOVER_SECONDS
    os.utime(left, (long_ago, long_ago))
    write_file(tmp_path / "another", NEW)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("way", WRITE)
def test_a_full_disk_costs_nothing_that_was_there(tmp_path: Path, way: str) -> None:
    """The kernel refuses to write more than 1,000 bytes to a file, as a full disk would."""
    path = kept(tmp_path, way)
    full = python(FULL.replace("CALL", WRITE[way]), tmp_path, "", NEW)
    assert full.stdout == "the disk is full\n", full.stderr
    assert path.read_text() == OLD
    assert not leftovers(tmp_path)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_what_another_is_writing_is_left_to_it(tmp_path: Path) -> None:
    with replacing(tmp_path / "slow") as beside:
        os.utime(beside, (0, 0))
        write_file(tmp_path / "quick", NEW)
        assert leftovers(tmp_path) == [beside]
        beside.write_text(NEW)
    assert (tmp_path / "slow").read_text() == NEW
    assert not leftovers(tmp_path)


def test_a_clock_set_back_leaves_no_leftover_for_ever(tmp_path: Path) -> None:
    left = tmp_path / files.LEFTOVER.format(name="kept", unique="0")
    left.write_text("")
    future = time.time() + 10**6
    os.utime(left, (future, future))
    assert remove_leftovers(tmp_path) == 1


def test_permissions_links_and_pipes_stay_what_they_were(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    write_file(path, OLD)
    path.chmod(0o640)
    (tmp_path / "link").symlink_to(path)
    write_file(tmp_path / "link", NEW)
    assert (tmp_path / "link").is_symlink()
    assert path.read_text() == NEW
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    write_file(tmp_path / "secret", NEW, private=True)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert python("from files import *; write_file(Path('/dev/stdout'), 'piped')").stdout == "piped"


def test_a_folder_keeps_its_other_files_and_a_failed_one_changes_nothing(tmp_path: Path) -> None:
    path = kept(tmp_path, "folder")
    (path.parent / "other").write_text(OLD)

    def fails() -> None:
        with replacing_folder(path.parent) as beside:
            (beside / "kept").write_text(NEW)
            raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        fails()
    assert path.read_text() == OLD
    with replacing_folder(path.parent) as beside:
        (beside / "kept").write_text(NEW)
    assert path.read_text() == NEW
    assert (path.parent / "other").read_text() == OLD
    assert not leftovers(tmp_path)


def test_lines_are_appended_whole(tmp_path: Path) -> None:
    append_line(tmp_path / "lines", "one")
    append_line(tmp_path / "lines", "two")
    assert (tmp_path / "lines").read_text() == "one\ntwo\n"


WRITERS = {
    "write_text", "write_bytes", "save_pretrained", "mkstemp", "NamedTemporaryFile", "to_parquet", "to_csv", "savez",
    "savez_compressed", "save_file", "write_image", "write_html", "write_json", "np.save", "torch.save", "json.dump",
    "pq.write_table", "os.replace", "os.rename",
}  # fmt: skip
ALLOWED = {
    "files.py": "the one place",
    "serving/journal.py": "a journal appends to its own open file",
    "diffuse/adapter.py": "into the folder of `replacing_folder`",
    "models/gguf.py": "into the folder of `replacing_folder`",
    "tuning/engine/checkpoint.py": "into memory",
    "experiments/store.py": "into memory, then by `write_file`",
}


def test_no_other_module_writes_a_file_in_place() -> None:
    """`open` for writing, `os.replace` and what libraries write with stand in `files.py`, or within its functions."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {ast.unparse(node)}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if str(path.relative_to(PACKAGE)) not in ALLOWED
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _writes(node)
    ]
    assert not found


def _writes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    first = call.args[0] if call.args else None
    last = call.args[-1] if call.args else None
    # `beside` is what `replacing` gives, `stream` what it was opened as; safetensors takes the path last.
    if any(isinstance(arg, ast.Name) and arg.id in ("beside", "stream") for arg in (first, last)):
        return False
    if ast.unparse(call).startswith("beside."):
        return False
    if name == "to_csv":
        return bool(call.args)
    if name == "open" and any(isinstance(arg, ast.Constant) and arg.value in ("w", "wb", "a") for arg in call.args):
        return True
    return name in WRITERS or ast.unparse(call.func) in WRITERS


@pytest.mark.parametrize(
    ("source", "in_place"),
    [
        ("np.savez(path, probs=probs)", True),
        ("np.savez(stream, probs=probs)", False),
        ("path.open('w')", True),
        ("beside.open('wb')", False),
        ("save_file(tensors, beside)", False),
        ("save_file(tensors, path)", True),
        ("table.to_csv(index=False)", False),
    ],
)
def test_writing_in_place_is_recognised(source: str, in_place: bool) -> None:
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)
    assert _writes(call) == in_place


def test_where_nothing_can_be_written_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text(OLD)
    for name, folder, says in (
        ("new", False, None),
        ("file", False, None),
        ("", False, "is a folder"),
        ("no/file", False, "does not exist"),
        ("file/x", False, "does not exist"),
        ("", True, None),
        ("no/such/folder", True, None),
        ("file", True, "is a file"),
        ("file/x", True, "cannot be written"),
    ):
        found = why_unwritable(tmp_path / name, folder=folder)
        assert (found is None) if says is None else (says in str(found)), (name, found)
    assert why_unwritable(Path("/dev/stdout")) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    assert (tmp_path / "file").read_text() == OLD

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "Permission denied" in str(why_unwritable(tmp_path / "new"))
