"""Who reads the answers: a question whose reply nobody reads ends by its time of grace."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

from gradio.context import LocalContext
from starlette.types import Scope

LOOK_SECONDS = 1.0


class Readers:
    """The streams of answers that are open now, by the session or the question that they belong to."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @contextmanager
    def reading(self, scope: Scope) -> Iterator[None]:
        """While a request is answered: it may be such a stream."""
        key = _stream_of(scope)
        if key:
            self._open[key] += 1
        try:
            yield
        finally:
            if key:
                self._open[key] -= 1
                if not self._open[key]:
                    del self._open[key]

    def reads(self, *keys: str) -> bool:
        """Whether one of them is read."""
        return any(key in self._open for key in keys)


def _stream_of(scope: Scope) -> str | None:
    if scope["method"] != "GET":
        return None
    parts = scope["path"].rstrip("/").split("/")
    if parts[-2:] == ["queue", "data"]:
        return (parse_qs(scope.get("query_string", b"").decode(errors="replace")).get("session_hash") or [None])[0]
    return parts[-1] if "call" in parts[:-2] else None


def somebody_reads() -> bool:
    """Whether the client whose question this thread works on still waits for the answer; True for all other work."""
    blocks, name = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    if blocks is None or name is None:
        return True
    event = blocks._queue.event_ids_to_events.get(name)
    return event is None or event.alive  # Gradio's own mark of a client that has left


def end_unread_questions(
    queue: Any, readers: Readers, running: Callable[[], bool], grace_seconds: float
) -> threading.Thread:
    """Let go of Gradio's questions that are worked on, or wait, and whose answers nobody has read for `grace_seconds`.

    Otherwise Gradio finishes them, and a run would count as watched although nobody reads what Gradio sends.
    """
    unread_since: dict[str, float] = {}

    def look() -> None:
        now = time.monotonic()
        events = {event._id: event for event in list(queue.event_ids_to_events.values())}
        events |= {event._id: event for job in list(queue.active_jobs) for event in job or ()}
        for known in [known for known in unread_since if known not in events]:
            del unread_since[known]
        for name, event in events.items():
            if readers.reads(name, event.session_hash):
                unread_since.pop(name, None)
            elif now - unread_since.setdefault(name, now) > grace_seconds and event.alive:
                event.alive = False  # Gradio's own mark of a client that has left

    def watch() -> None:
        while running():
            time.sleep(LOOK_SECONDS)
            look()

    thread = threading.Thread(target=watch, name="unread questions", daemon=True)
    thread.start()
    return thread
