"""Runs on disk, one file each, written while they move: a server that is killed loses at most their last second.

A file only grows. Each of its lines is a tag, a space and JSON: `run` (what was asked for, once), `step` (every restart
of one step, with nothing rounded or left out), `mark` (lines across the KL chart, `floor` and `head` in nats), `rank`
(lines of the rank chart's stream, which no step holds), `best` (the best prompt so far), `name` (what the run is called
from then on) and, when it is over, `end` (the capsule, or the sentence with which the run failed). A line that was cut
off in the middle is ignored.

Until November 2026 there were lines of the KL chart's stream, `live`, in place of `step` and `mark`: of many restarts
they hold some, of long runs some steps. They are read as what they are.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import math
import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dpexplore.errors import InputError
from dpexplore.files import leftovers, remove_leftovers, write_file
from dpexplore.serving.streams import LiveStream
from dpexplore.tuning import TuneStep
from dpexplore.tuning.record.capsule import interrupted_capsule

logger = logging.getLogger(__name__)

RUN_ID = re.compile(r"[A-Za-z0-9_-]{22}")
"""128 random bits: only someone who was given a run's id knows it."""
MOST_BYTES = 512 * 2**20
"""All journals together; the least recently written are removed first."""
STALE_BYTES = 2 * 2**20
"""Bytes of superseded best prompts after which a file is rewritten without them."""
MOST_IMPORTED_BYTES = 64 * 2**20
"""All capsules from elsewhere together; they have a share of their own, so that none pushes a run out."""
SUFFIX, IMPORTED = ".run", ".import"

PARTS_OF_THE_END = ("result", "restarts", "history")
"""What a capsule has beside what was known when its run began."""


def new_run_id() -> str:
    """A run id that nobody can guess."""
    return secrets.token_urlsafe(16)


@dataclass(frozen=True)
class StepLine:
    """One step of a run as its journal keeps it; nats, None where a restart was not running."""

    step: int
    kl_nats: list[float | None]
    entropy_nats: list[float | None]
    best_restart: int
    evaluations: list[int]

    @classmethod
    def of(cls, step: TuneStep) -> StepLine:
        return cls(
            step.step,
            [_finite(kl) for kl in step.kl_nats],
            [_finite(nats) for nats in step.entropy_nats],
            step.best_restart,
            step.evaluations,
        )


@dataclass
class Record:
    """What a journal tells of a run."""

    run_id: str
    model: str
    """What the model was asked for by."""
    head: dict[str, Any]
    """`capsule.describe_run` of it."""
    moments: list[StepLine | dict[str, Any]] = field(default_factory=list)
    """Its steps and marks in their order."""
    ranks: list[str] = field(default_factory=list)
    best: dict[str, Any] | None = None
    capsule: dict[str, Any] | None = None
    """Once the run has ended with a result."""
    error: str | None = None
    """Once it has ended without."""
    name: str = ""
    """What it is called; empty if it was never named."""

    @property
    def interrupted(self) -> bool:
        """The server stopped before the run did."""
        return self.capsule is None and self.error is None

    def as_capsule(self) -> dict[str, Any] | None:
        """The run's capsule; of an interrupted one what is known of it; None if there is no prompt."""
        if not self.interrupted or self.best is None:
            return None if self.capsule is None else {**self.capsule, "name": self.name}
        absent: list[float | None] = [None] * self.head["config"]["restarts"]
        kls, entropies = [absent] * self._last_step, [absent] * self._last_step
        for step in self.steps:
            kls[step.step - 1], entropies[step.step - 1] = step.kl_nats, step.entropy_nats
        return interrupted_capsule({**self.head, "name": self.name}, self.best, kls, entropies)

    @property
    def steps(self) -> list[StepLine]:
        return [moment for moment in self.moments if isinstance(moment, StepLine)]

    @property
    def _last_step(self) -> int:
        return max((step.step for step in self.steps), default=0)

    @property
    def floor_nats(self) -> float | None:
        """The certified floor of its target, if it was known while the run moved."""
        marks = [moment["floor"] for moment in self.moments if isinstance(moment, dict) and "floor" in moment]
        return marks[-1] if marks else None

    def live_stream(self) -> str:
        """The KL chart's stream, as it was drawn."""
        config, entropy = self.head["config"], self.head["target"]["entropy_nats"]
        stream = LiveStream(self.run_id, config["restarts"], config["steps"], entropy)
        for moment in self.moments:
            if isinstance(moment, StepLine):
                stream.add_step(moment.step, moment.kl_nats, moment.entropy_nats, moment.best_restart)
            else:
                stream.mark(**moment)
        return stream.text

    def rank_stream(self) -> str:
        """The rank chart's stream, as it was drawn."""
        return "".join(f"{line}\n" for line in self.ranks)


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

    def update(
        self, moments: Sequence[TuneStep | dict[str, float | None]], ranks: str, best: dict[str, Any] | None
    ) -> None:
        """New steps and marks, new whole lines of the rank chart's stream, and the best prompt if it is another one."""
        lines = [
            _line("mark", moment) if isinstance(moment, dict) else _line("step", asdict(StepLine.of(moment)))
            for moment in moments
        ]
        lines += [b"rank " + line.encode() + b"\n" for line in ranks.splitlines()]
        if best is not None:
            lines.append(_line("best", best))
            self._stale += self._last_best
            self._last_best = len(lines[-1])
        self.write(lines)
        if self._stale > STALE_BYTES:
            self._compact()

    def rename(self, name: str) -> None:
        self.write([_line("name", {"name": name})])

    def end(self, capsule: dict[str, Any] | None, error: str | None) -> None:
        self.write([_line("end", {"capsule": capsule, "error": error})], to_disk=True)
        self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def _compact(self) -> None:
        """Leave out all best prompts but the last."""
        self._stale = 0  # where it fails, it is tried again when as many bytes are stale again
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
            last = max(i for i, line in enumerate(lines) if line.startswith(b"best "))
            kept = [line for i, line in enumerate(lines) if i >= last or not line.startswith(b"best ")]
            write_file(self._path, b"".join(kept), private=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
            self.close()
            self._descriptor = descriptor
        except OSError as error:
            logger.error("the journal %s cannot be made smaller: %s", self._path.name, error)


class Journal:
    """The folder of all runs' files."""

    def __init__(
        self, folder: Path, most_bytes: int = MOST_BYTES, most_imported_bytes: int = MOST_IMPORTED_BYTES
    ) -> None:
        self.folder = folder
        self._most_bytes = {SUFFIX: most_bytes, IMPORTED: most_imported_bytes}
        self._imports: dict[str, OrderedDict[str, int]] = {}
        """Bytes of each import by address, since this server started."""
        self._gate = threading.Lock()

    def open(self, run_id: str, model: str, head: dict[str, Any]) -> RunFile | None:
        """Begin a run's file; None, and a line in the log, where the disk does not allow it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_room(SUFFIX)
            return RunFile(self._path(run_id), model, head)
        except OSError as error:
            logger.error("runs are not journaled in %s: %s", self.folder, error)
            return None

    def add(self, capsule: dict[str, Any], address: str = "") -> str:
        """Keep a capsule from elsewhere; its id, which is the same for the same capsule.

        An address has half of the room for such at most: its next one takes the place of its first. InputError where
        the disk does not allow it.
        """
        content = _line("end", {"capsule": capsule, "error": None})
        run_id = base64.urlsafe_b64encode(hashlib.sha256(content).digest()[:16]).decode().rstrip("=")
        path, head = self._path(run_id, IMPORTED), {key: capsule[key] for key in capsule if key not in PARTS_OF_THE_END}
        lines = _line("run", {"model": str(capsule["model"]["name"]), "capsule": head}) + content
        with self._gate:
            own = self._imports.setdefault(address, OrderedDict())
            own[run_id] = len(lines)
            own.move_to_end(run_id)
            while sum(own.values()) > self._most_bytes[IMPORTED] // 2 and len(own) > 1:
                self._path(own.popitem(last=False)[0], IMPORTED).unlink(missing_ok=True)
            try:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_file(path, lines, private=True)
                self._make_room(IMPORTED)
            except OSError as error:
                logger.error("a capsule is not kept in %s: %s", self.folder, error)
                raise InputError("The server cannot keep the capsule: its disk does not take it.") from None
        return run_id

    def read(self, run_id: str) -> Record | None:
        """What is known of a run; None for an id that no run has, or that is none."""
        if not RUN_ID.fullmatch(run_id):
            return None
        data = _bytes(self._path(run_id)) or _bytes(self._path(run_id, IMPORTED))
        if data is None:
            return None
        whole, _, _ = data.rpartition(b"\n")
        record = None
        for line in whole.split(b"\n"):
            try:
                record = _take(run_id, record, line.decode())
            except (ValueError, KeyError, TypeError):
                logger.warning("a line of the journal %s cannot be read", run_id)
        return record

    def rename(self, run_id: str, name: str) -> None:
        """Call a run that has ended by another name. InputError where there is none by that id, or the disk refuses."""
        paths = [self._path(run_id), self._path(run_id, IMPORTED)] if RUN_ID.fullmatch(run_id) else []
        path = next((path for path in paths if path.exists()), None)
        data = None if path is None else _bytes(path)
        if path is None or data is None:
            raise InputError("This server has no run to name so; it is too old, or was made on another server.")
        kept = [line for line in data.splitlines(keepends=True) if not line.startswith(b"name ") and line[-1:] == b"\n"]
        try:
            write_file(path, b"".join([*kept, _line("name", {"name": name})]), private=True)
        except OSError as error:
            logger.error("a run cannot be renamed in %s: %s", self.folder, error)
            raise InputError("The server cannot keep the name: its disk does not take it.") from None

    def _path(self, run_id: str, suffix: str = SUFFIX) -> Path:
        return self.folder / f"{run_id}{suffix}"

    def _make_room(self, suffix: str) -> None:
        """Delete the files written longest ago until the others stay within the limit, what is half written counted."""
        remove_leftovers(self.folder)
        files = sorted(
            (
                (status.st_mtime, status.st_size, path)
                for path in self.folder.glob(f"*{suffix}")
                if (status := _stat(path))
            ),
            reverse=True,
        )
        total = sum(status.st_size for path in leftovers(self.folder) if (status := _stat(path)))
        for _, size, path in files:
            total += size
            if total > self._most_bytes[suffix]:
                path.unlink(missing_ok=True)


def _take(run_id: str, record: Record | None, line: str) -> Record | None:
    """A journal's next line, added to what the lines before it say."""
    tag, _, content = line.partition(" ")
    if tag == "run":
        head = json.loads(content)
        return Record(run_id, head["model"], head["capsule"], name=str(head["capsule"].get("name", "")))
    if record is None:
        return None
    if tag == "step":
        record.moments.append(StepLine(**json.loads(content)))
    elif tag == "mark":
        record.moments.append(dict(json.loads(content)))
    elif tag == "live":
        record.moments += _old_line(json.loads(content), record.head["config"]["restarts"])
    elif tag == "rank":
        record.ranks.append(content)
    elif tag == "best":
        record.best = json.loads(content)
    elif tag == "name":
        record.name = str(json.loads(content)["name"])
    elif tag == "end":
        end = json.loads(content)
        record.capsule, record.error = end["capsule"], end["error"]
    return record


def _old_line(line: Any, restarts: int) -> list[StepLine | dict[str, Any]]:
    """What a line of the KL chart's stream says of a step.

    Of more restarts than it shows, the last column belongs to whichever was the best one, and so to none.
    """
    if isinstance(line, dict):
        return [] if "run" in line else [line]
    step, kls, entropies, best = line
    known = min(len(kls), restarts) - (restarts > len(kls))
    absent = [None] * (restarts - known)
    return [StepLine(step, kls[:known] + absent, entropies[:known] + absent, best, [])]


def _line(tag: str, content: dict[str, Any]) -> bytes:
    return f"{tag} {json.dumps(content, separators=(',', ':'), ensure_ascii=False)}\n".encode()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # another server let go of it
        return None
