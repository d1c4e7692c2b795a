"""Who reads the answers: a question whose reply nobody reads ends by its time of grace.

An agent's call over MCP ends with its client: Gradio asks itself for it over HTTP, and would wait for the answer.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

from gradio.context import LocalContext
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

LOOK_SECONDS = 0.3
CALL = "x-dpexplore-call"
"""Header in which a call over MCP has its name; Gradio copies an agent's headers into what it asks itself."""


class Readers:
    """The streams of answers that are open now, by the session or the question that they belong to."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._calls: dict[str, Any] = {}
        """Who made each call over MCP that is open."""

    def recognised(self, scope: Scope) -> Scope | None:
        """The request as the agent's for whom Gradio makes it, or with a call's new name; None if that agent has left.

        Names cannot be guessed: with one, a request is Gradio's own.
        """
        name = Headers(scope=scope).get(CALL)
        if name is not None:
            return {**scope, "client": self._calls[name]} if name in self._calls else None
        if not is_call(scope):
            return scope
        return {**scope, "headers": [*scope["headers"], (CALL.encode(), uuid.uuid4().hex.encode())]}

    async def until_it_leaves(self, scope: Scope, receive: Receive) -> None:
        """Wait until the agent of a call, whose whole body has been read, is gone; then nobody reads the answer."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._close(_stream_of(scope))

    def _close(self, key: str | None) -> None:
        if key is not None and key in self._open:
            self._calls.pop(key, None)
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]

    @contextmanager
    def reading(self, scope: Scope) -> Iterator[None]:
        """While a request is answered: it may be such a stream."""
        key = _stream_of(scope)
        if key:
            self._open[key] += 1
        if key and is_call(scope):
            self._calls[key] = scope.get("client")
        try:
            yield
        finally:
            self._close(key)

    def reads(self, *keys: str) -> bool:
        """Whether one of them is read."""
        return any(key in self._open for key in keys)


def is_call(scope: Scope) -> bool:
    """Whether a request is a call over MCP."""
    return scope["method"] == "POST" and scope["path"].rstrip("/").endswith(("/mcp", "/mcp/http"))


def _stream_of(scope: Scope) -> str | None:
    if is_call(scope):
        return Headers(scope=scope).get(CALL)
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

    An agent that has left asks no second time: its questions have no grace.

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
            call = event.request.headers.get(CALL)
            if readers.reads(call) if call else readers.reads(name, event.session_hash):
                unread_since.pop(name, None)
            elif event.alive and (call or now - unread_since.setdefault(name, now) > grace_seconds):
                event.alive = False  # Gradio's own mark of a client that has left

    def watch() -> None:
        while running():
            time.sleep(LOOK_SECONDS)
            look()

    thread = threading.Thread(target=watch, name="unread questions", daemon=True)
    thread.start()
    return thread
