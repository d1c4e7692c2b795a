"""Runs on disk, one file each, written while they move: a server that is killed loses at most their last second.

A file only grows. Each of its lines is a tag, a space and JSON: `run` (what was asked for, once), `live` and `rank`
(lines of the charts' streams), `best` (the best prompt so far) and, as the last one, `end` (the capsule, or the
sentence with which the run failed). A line that was cut off in the middle is ignored.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpexplore.tuning.record.capsule import interrupted_capsule

logger = logging.getLogger(__name__)

RUN_ID = re.compile(r"[A-Za-z0-9_-]{22}")
"""128 random bits: whoever knows a run's id was given it."""
MOST_BYTES = 512 * 2**20
"""All journals together; the ones that were written longest ago give way."""
STALE_BYTES = 2 * 2**20
"""So many bytes of best prompts that better ones have replaced are let go of by writing the file anew."""
SUFFIX = ".run"


def new_run_id() -> str:
    return secrets.token_urlsafe(16)


@dataclass
class Record:
    """What a journal tells of a run."""

    run_id: str
    model: str
    """What the model was asked for by."""
    head: dict[str, Any]
    """`capsule.describe_run` of it."""
    live: list[str] = field(default_factory=list)
    ranks: list[str] = field(default_factory=list)
    best: dict[str, Any] | None = None
    capsule: dict[str, Any] | None = None
    """Once the run has ended with a result."""
    error: str | None = None
    """Once it has ended without."""

    @property
    def interrupted(self) -> bool:
        """The server stopped before the run did."""
        return self.capsule is None and self.error is None

    def as_capsule(self) -> dict[str, Any] | None:
        """The run's capsule; of an interrupted one what is known of it; None if there is no prompt."""
        if not self.interrupted or self.best is None:
            return self.capsule
        rows = [row for row in map(json.loads, self.live) if isinstance(row, list)]
        return interrupted_capsule(self.head, self.best, [row[1] for row in rows], [row[2] for row in rows])


class RunFile:
    """The journal of one run. Used by the run's own thread; a disk that fails costs the journal, never the run."""

    def __init__(self, path: Path, model: str, head: dict[str, Any]) -> None:
        self._path = path
        self._descriptor: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._stale = self._last_best = 0
        self.write([_line("run", {"model": model, "capsule": head})])

    def write(self, lines: list[bytes], to_disk: bool = False) -> None:
        """Append lines: a killed server loses none of them, and with `to_disk` a power cut neither."""
        if self._descriptor is None or not lines:
            return
        try:
            data = memoryview(b"".join(lines))
            while data:
                data = data[os.write(self._descriptor, data) :]
            if to_disk:
                os.fsync(self._descriptor)
        except OSError as error:
            logger.error("the journal %s ends here: %s", self._path.name, error)
            self.close()

    def update(self, live: str, ranks: str, best: dict[str, Any] | None) -> None:
        """What is new of the charts' streams, whole lines, and the best prompt if it is another one."""
        lines = [b"live " + line.encode() + b"\n" for line in live.splitlines()]
        lines += [b"rank " + line.encode() + b"\n" for line in ranks.splitlines()]
        if best is not None:
            lines.append(_line("best", best))
            self._stale += self._last_best
            self._last_best = len(lines[-1])
        self.write(lines)
        if self._stale > STALE_BYTES:
            self._compact()

    def end(self, capsule: dict[str, Any] | None, error: str | None) -> None:
        self.write([_line("end", {"capsule": capsule, "error": error})], to_disk=True)
        self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def _compact(self) -> None:
        """Leave out all best prompts but the last; the new file takes the old one's place at once, or not at all."""
        lines = self._path.read_bytes().splitlines(keepends=True)
        last = max(i for i, line in enumerate(lines) if line.startswith(b"best "))
        aside = self._path.with_suffix(".new")
        try:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            self.close()
            self._descriptor, self._stale = descriptor, 0
            kept = [line for i, line in enumerate(lines) if i >= last or not line.startswith(b"best ")]
            self.write(kept, to_disk=True)
            if self._descriptor is not None:
                os.replace(aside, self._path)
        except OSError as error:
            logger.error("the journal %s cannot be made smaller: %s", self._path.name, error)


class Journal:
    """The folder of all runs' files."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self.folder = folder
        self._most_bytes = most_bytes

    def open(self, run_id: str, model: str, head: dict[str, Any]) -> RunFile | None:
        """Begin a run's file; None, and a line in the log, where the disk does not allow it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_room()
            return RunFile(self._path(run_id), model, head)
        except OSError as error:
            logger.error("runs are not journaled in %s: %s", self.folder, error)
            return None

    def read(self, run_id: str) -> Record | None:
        """What is known of a run; None for an id that no run has, or that is none."""
        if not RUN_ID.fullmatch(run_id):
            return None
        try:
            data = self._path(run_id).read_bytes()
        except OSError:
            return None
        whole, _, _ = data.rpartition(b"\n")
        record = None
        for line in whole.split(b"\n"):
            try:
                record = _take(run_id, record, line.decode())
            except (ValueError, KeyError, TypeError):
                logger.warning("a line of the journal %s cannot be read", run_id)
        return record

    def _path(self, run_id: str) -> Path:
        return self.folder / f"{run_id}{SUFFIX}"

    def _make_room(self) -> None:
        """Delete the files written longest ago until the others stay within the limit."""
        files = sorted(
            (
                (status.st_mtime, status.st_size, path)
                for path in self.folder.glob(f"*{SUFFIX}")
                if (status := _stat(path))
            ),
            reverse=True,
        )
        total = 0
        for _, size, path in files:
            total += size
            if total > self._most_bytes:
                path.unlink(missing_ok=True)


def _take(run_id: str, record: Record | None, line: str) -> Record | None:
    """A journal's next line, taken into what the lines before it told."""
    tag, _, content = line.partition(" ")
    if tag == "run":
        head = json.loads(content)
        return Record(run_id, head["model"], head["capsule"])
    if record is None:
        return None
    if tag == "live":
        json.loads(content)
        record.live.append(content)
    elif tag == "rank":
        record.ranks.append(content)
    elif tag == "best":
        record.best = json.loads(content)
    elif tag == "end":
        end = json.loads(content)
        record.capsule, record.error = end["capsule"], end["error"]
    return record


def _line(tag: str, content: dict[str, Any]) -> bytes:
    return f"{tag} {json.dumps(content, separators=(',', ':'), ensure_ascii=False)}\n".encode()


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # another server let go of it
        return None
