"""Every file that the project writes: beside its place first, then moved there, whole or not at all.

A process that is killed, a disk that is full or a power cut costs what was being written, never what was there
before. Files that only grow (journals, cells of a matrix) are appended to line by line; a torn last line is cut off.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers that mean: no room. EFBIG is that of a limit on a file's size."""
LEFTOVER = ".{name}.{unique}.part"
"""Name of what is being written; a killed process leaves it behind."""
LEFTOVER_SECONDS = 60.0
"""A younger one may be about to be locked by its writer."""


def reason(error: OSError) -> str:
    """Why a write failed, as part of a sentence, without a path."""
    return "the disk is full" if error.errno in DISK_FULL else str(error.strerror or error)


def why_unwritable(path: Path, *, folder: bool = False) -> str | None:
    """Why a file, or a `folder` of files, could not be put at `path`, as a sentence; None if it can.

    Asked before work begins whose result is to go there. It tries, by creating a file beside and removing it.
    """
    try:
        status = _status(path)
        if folder:
            if status is not None and not stat.S_ISDIR(status.st_mode):
                return f"{path} is a file; name a folder."
            place = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
        else:
            if status is not None and stat.S_ISDIR(status.st_mode):
                return f"{path} is a folder; name a file in it."
            if status is not None and not stat.S_ISREG(status.st_mode):
                return None  # a device or a pipe
            place = Path(os.path.realpath(path)).parent
            if not place.is_dir():
                return f"The folder of {path} does not exist; create it, or name a file in another folder."
        trial = place / LEFTOVER.format(name="trial", unique=uuid.uuid4().hex)
        os.close(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        trial.unlink()
    except OSError as error:
        return f"{path} cannot be written ({reason(error)}); name another place."
    return None


def write_file(path: Path, content: bytes | memoryview | str, *, private: bool = False) -> None:
    """Put a file in its place. OSError, and the old file as it was, if that fails. See `replacing`."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path, private=private) as beside, beside.open("wb") as stream:
        stream.write(data)


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Where to write a file that takes the place of `path` when the block ends, unless it raises.

    The file has the permissions of the one it replaces, those of the umask if there is none, and only its owner's
    if `private`. A link is followed; a device or a pipe, which holds nothing to lose, is written to directly.
    """
    before = _status(path)
    if before is not None and not stat.S_ISREG(before.st_mode) and not stat.S_ISDIR(before.st_mode):
        yield path
        return
    path = Path(os.path.realpath(path))
    remove_leftovers(path.parent)
    beside = path.parent / LEFTOVER.format(name=path.name[:100], unique=uuid.uuid4().hex)
    try:
        lock = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield beside
            if before is not None and not private:
                os.chmod(beside, stat.S_IMODE(before.st_mode))
            _to_disk(beside)
            os.replace(beside, path)
        finally:
            os.close(lock)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    _to_disk(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Where to fill a folder that takes its place as a whole when the block ends, unless it raises.

    A folder that is there already keeps its other files; those of the same name are replaced one by one.
    """
    with scratch_folder(path.parent, path.name) as beside:
        yield beside
        for file in beside.rglob("*"):
            _to_disk(file)
        if path.exists():
            for file in beside.iterdir():
                os.replace(file, path / file.name)
        else:
            os.replace(beside, path)
    _to_disk(path.parent)


@contextmanager
def scratch_folder(parent: Path, name: str = "scratch") -> Iterator[Path]:
    """A folder for what is on its way; it goes with the block, and with a killed process at the next write there."""
    remove_leftovers(parent)
    folder = parent / LEFTOVER.format(name=name[:100], unique=uuid.uuid4().hex)
    folder.mkdir()
    try:
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(lock)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file that only grows. OSError, and the file as it was, if there is no room for it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        length = os.fstat(descriptor).st_size
        data = memoryview(line.encode() + b"\n")
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, length)
            raise
    finally:
        os.close(descriptor)


def leftovers(folder: Path) -> list[Path]:
    """What is being written into a folder now, and what killed processes have left there."""
    return [path for path in folder.glob(LEFTOVER.format(name="*", unique="*")) if not path.is_symlink()]


def remove_leftovers(folder: Path) -> int:
    """Remove what killed processes have left in a folder, and count it; what others are writing stays."""
    removed = 0
    for path in leftovers(folder):
        with contextlib.suppress(OSError):
            if abs(time.time() - path.stat().st_mtime) < LEFTOVER_SECONDS:
                continue
            lock = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its writer holds it as long as it lives
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed += 1
            finally:
                os.close(lock)
    return removed


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
