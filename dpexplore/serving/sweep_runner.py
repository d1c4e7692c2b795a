"""One sweep at a time in a process of its own, which the page starts, watches and stops."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dpexplore
from dpexplore.errors import InputError

KEPT_LINES = 20


@dataclass(frozen=True)
class SweepState:
    """What the page shows of the sweep."""

    name: str = ""
    running: bool = False
    progress: dict[str, Any] = field(default_factory=dict)
    """The last progress event (`dpexplore.experiments.progress.progress_event`)."""
    failed: tuple[str, ...] = ()
    end: str = ""
    """How the last sweep ended, in one sentence."""


class SweepRunner:
    """A process runs the same command that a person would; results go to the store, watched or not."""

    def __init__(self, store: Path) -> None:
        self.store = store.absolute()
        self._state = SweepState()
        self._process: subprocess.Popen[str] | None = None
        self._changed = threading.Condition()
        self._version = 0

    @property
    def state(self) -> SweepState:
        return self._state

    def start(self, spec: str, size: str | None = None) -> None:
        """Begin a sweep of a spec or a YAML file, in a size or the one that its name says. InputError if one runs."""
        name = f"{Path(spec).stem}-{size}" if size else spec
        with self._changed:
            if self._state.running:
                raise InputError(f"{self._state.name} is running; stop it first, or wait for its end.")
            command = [sys.executable, "-m", "dpexplore", "sweep", spec, "--store", str(self.store), "--json"]
            command += ["--size", size] if size else []
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=Path(dpexplore.__file__).parents[1],
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # a Ctrl-C at the page's own terminal is not meant for it
            )
            atexit.register(self._end_with_the_page, self._process)
            self._set(SweepState(name, running=True))
        threading.Thread(target=self._follow, args=(self._process, name), name=f"sweep {name}", daemon=True).start()

    def stop(self) -> None:
        """Ask the sweep to end; what it has committed stays, and it can be continued."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def wait(self, seen: int, timeout: float) -> int:
        """Sleep until the state is newer than `seen` or the time is over; the number of the state."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > seen, timeout)
            return self._version

    def _follow(self, process: subprocess.Popen[str], name: str) -> None:
        complaints: list[str] = []
        ended: dict[str, Any] = {}
        reader = threading.Thread(target=lambda: complaints.extend(process.stderr or ()), daemon=True)
        reader.start()
        with process:  # waits for its end and closes its pipes
            for line in process.stdout or ():
                event = _event(line)
                if event.get("event") == "progress":
                    self._update(progress=event)
                elif event.get("event") == "failed":
                    self._update(failed=(*self._state.failed, str(event["why"]))[-KEPT_LINES:])
                elif event.get("event") == "end":
                    ended = event
            reader.join()
        atexit.unregister(self._end_with_the_page)
        self._update(running=False, end=_how_it_ended(name, process.returncode, ended, complaints))

    def _update(self, **changes: Any) -> None:
        with self._changed:
            self._set(SweepState(**{**self._state.__dict__, **changes}))

    def _set(self, state: SweepState) -> None:
        self._state = state
        self._version += 1
        self._changed.notify_all()

    @staticmethod
    def _end_with_the_page(process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _how_it_ended(name: str, code: int, ended: dict[str, Any], complaints: list[str]) -> str:
    if not ended:
        last = complaints[-1].strip() if complaints else f"its process ended with code {code}"
        return f"{name} could not run: {last.removeprefix('dpexplore: ')}"
    counted = f"{ended['computed']:,} problem{'s' * (ended['computed'] != 1)} computed"
    if ended["stopped"]:
        return f"{name} stopped, {counted}; start it again to continue."
    failed = f", {len(ended['failed'])} could not be" if ended["failed"] else ""
    return f"{name} finished: {counted}{failed}."
