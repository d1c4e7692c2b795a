"""The runs that a browser keeps: their ids in its own store, what they came to from their journals."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr

from dpexplore.errors import InputError
from dpexplore.serving.app_context import AppContext
from dpexplore.ui.components.compare_runs import KeptRun

MOST_RUNS = 24
"""Most runs that a page keeps; the oldest are dropped first."""
KEPT_IN_MEMORY = 256
STORAGE_KEY = "dpexplore-compare"
STORAGE_SECRET = "which runs a browser compares"  # no secret: it keeps the browser's own list in one piece


class Library:
    """Runs to compare, by their ids, read from their journals once."""

    def __init__(self, app: AppContext) -> None:
        self._app = app
        self._read: OrderedDict[str, KeptRun] = OrderedDict()
        self._gate = Lock()

    def runs(self, run_ids: Sequence[str]) -> list[KeptRun]:
        """Those of the runs that there are, in the same order."""
        return [run for run_id in run_ids if (run := self._run(run_id)) is not None]

    def is_under_way(self, run_id: str) -> bool:
        """Whether a run waits or moves, so that there will be something to read."""
        return self._app.workspace.find(run_id) is not None or self._app.sessions.find(run_id) is not None

    def forget(self, run_id: str) -> None:
        """Read a run again: it has another name."""
        with self._gate:
            self._read.pop(run_id, None)

    def add_capsule(self, path: Path, session: str = "") -> str:
        """Keep an uploaded capsule beside the runs of this server; its id. InputError if it is none."""
        capsule = self._app.capsule(path)
        KeptRun.of("", capsule)  # refuses what could not be compared
        return self._app.journal.add(capsule, self._app.sessions.address(session))

    def _run(self, run_id: str) -> KeptRun | None:
        with self._gate:
            if run_id in self._read:
                self._read.move_to_end(run_id)
                return self._read[run_id]
        record = self._app.journal.read(run_id)
        try:
            run = None if record is None else KeptRun.of_record(record)
        except InputError:  # a journal of another version
            run = None
        if run is not None:
            with self._gate:
                self._read[run_id] = run
                while len(self._read) > KEPT_IN_MEMORY:
                    self._read.popitem(last=False)
        return run


@dataclass(frozen=True)
class Choice:
    """What a browser compares, as it keeps it."""

    run_ids: tuple[str, ...] = ()
    hidden: frozenset[str] = frozenset()

    @classmethod
    def read(cls, stored: Any) -> Choice:
        """From the browser's store, which may hold anything."""
        stored = stored if isinstance(stored, dict) else {}
        lists = [stored.get(name) if isinstance(stored.get(name), list) else [] for name in ("runs", "hidden")]
        ids, hidden = ([item for item in items or [] if isinstance(item, str)] for items in lists)
        return cls(tuple(dict.fromkeys(ids))[-MOST_RUNS:], frozenset(hidden))

    def stored(self) -> dict[str, list[str]]:
        return {"runs": list(self.run_ids), "hidden": sorted(self.hidden & set(self.run_ids))}

    def with_runs(self, run_ids: Sequence[str]) -> Choice:
        return Choice(tuple(dict.fromkeys([*self.run_ids, *run_ids]))[-MOST_RUNS:], self.hidden)

    def changed(self, told: dict[str, Any]) -> Choice:
        """After a click in the table."""
        if (dropped := told.get("drop")) is not None:
            return Choice(tuple(run_id for run_id in self.run_ids if run_id != dropped), self.hidden)
        return Choice(self.run_ids, self.hidden ^ {str(told.get("toggle"))})


def choice_of(app: AppContext, session: str, stored: Any) -> Choice:
    """What a browser keeps and what its page has run: of two handlers that write at once, one forgets the other's."""
    own = [*app.sessions.finished(session), *(asked.run_id for asked in app.workspace.of(session))]
    return Choice.read(stored).with_runs(own)


def kept_runs() -> gr.BrowserState:
    """What this browser compares, here and when the page is opened again."""
    return gr.BrowserState(Choice().stored(), storage_key=STORAGE_KEY, secret=STORAGE_SECRET)
