"""What every request meets before the page does: its name and origin, its body's size and pace, its address's share.

Works on ASGI messages alone, and knows nothing of what the page does with them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dpexplore.json_text import JsonLimits, JsonRefused, read_json
from dpexplore.serving.uploads import folder_bytes, remove_old_files, upload_folder
from dpexplore.ui.readers import Readers, is_call

MESSAGE_BYTES = 4 * 2**20
"""Largest body of a request that uploads no file; the page's own stay far below."""
MESSAGE_JSON = JsonLimits(items=100_000, depth=50)
"""Values in a message, and lists within one another."""
UPLOADS_AN_HOUR = 10
"""The largest files, or as many bytes in smaller ones, that are taken from one visitor in an hour."""
UPLOADS_KEPT = 50
"""The largest files, or as many bytes in smaller ones, that lie on the disk at a time, of everybody."""
REMEMBERED = 10_000
"""Addresses whose uploads and failed logins are counted."""
FIRST_BYTES_SECONDS = 20.0
"""For a request's headers, and for a body to begin,"""
SLOWEST_BYTES = 16 * 2**10
"""and bytes a second that it must bring from then on."""
REQUESTS_AT_ONCE = 16
"""Open requests and streams of one visitor, of which a page holds three; and questions that wait for an answer."""
FREE_FAILURES = 5
"""Wrong passwords from one address before it must wait."""
LONGEST_WAIT = 300.0
_HOUR = 3600.0


@dataclass(frozen=True)
class GateRules:
    """What the gate lets through."""

    upload_bytes: int
    """Of one file."""
    names: Collection[str] | None = None
    """Host names that the server answers to, besides addresses written as numbers; None: to any."""
    visitors_per_address: int = 1
    """People who may sit behind one address: each share of an address is this many visitors' shares."""
    message_bytes: int = MESSAGE_BYTES
    """Of a request that uploads no file."""


class Gate:
    """ASGI middleware; refuses in one sentence, and as early as what it refuses for is known."""

    def __init__(self, app: ASGIApp, rules: GateRules, readers: Readers | None = None) -> None:
        self.app, self.rules, self.readers = app, rules, readers or Readers()
        self._uploaded = _Recent()
        self._failures = _Recent()
        self._open: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # the page uses none
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        recognised = self.readers.recognised(scope)
        if recognised is None:
            return await _refuse(410, "The agent that asked this has left.")(scope, receive, send)
        scope = recognised
        address, headers = scope["client"][0] if scope.get("client") else "", Headers(scope=scope)
        refusal = self._refusal(scope, headers, address)
        if refusal is not None:
            return await refusal(scope, receive, send)
        self._open[address] += 1
        try:
            with self.readers.reading(scope):
                await self._pass_on(scope, receive, send, address, headers)
        finally:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]

    def _refusal(self, scope: Scope, headers: Headers, address: str) -> JSONResponse | None:
        if not self._is_ours(headers):
            return _refuse(
                421,
                "This server does not answer to this name; open it by its address, or start it with --allowed-host.",
            )
        if self._open[address] >= REQUESTS_AT_ONCE * self.rules.visitors_per_address:
            return _refuse(429, "Too many requests are open from here; close some pages and try again.")
        wait = self._failures.get(address)[0] - time.monotonic() if _is_login(scope) else 0.0
        if wait > 0:
            return _refuse(429, f"Too many wrong passwords; try again in {wait:.0f} seconds.")
        declared = headers.get("content-length", "0")
        most = self._most_bytes(scope)
        if not (declared.isascii() and declared.isdigit()) or int(declared) > most:
            return _refuse(413, f"At most {_size(most)} can be sent at once; send less.")
        return None

    def _is_ours(self, headers: Headers) -> bool:
        """Whether host and origin are this machine's, and not a stranger's page whose name was made to point here."""
        names = self.rules.names
        if names is None:
            return True
        host, origin = _host_name(headers.get("host", "")), headers.get("origin")
        if not (_is_number(host) or host in names):
            return False
        if origin is None:
            return True
        name = urlsplit(origin).hostname or ""
        return name == host or name in names

    def _most_bytes(self, scope: Scope) -> int:
        return self.rules.upload_bytes + MESSAGE_BYTES if _is_upload(scope) else self.rules.message_bytes

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, address: str, headers: Headers) -> None:
        """Count and time the body as it arrives. A refusal in its middle is a closed client for who reads it."""
        began, taken, whole, answered = time.monotonic(), 0, False, False
        refused: JSONResponse | None = None
        upload, most = _is_upload(scope), self._most_bytes(scope)
        if upload and not await asyncio.to_thread(self._has_room):
            return await _refuse(507, "The server holds as many uploads as it can; try again in an hour.")(
                scope, receive, send
            )

        held: list[Message] = []

        async def bounded() -> Message:
            return held.pop() if held else await part()

        async def whole_json() -> Message:
            """A whole message, once its text has shown what it holds; no parser sees it before."""
            nonlocal refused
            parts: list[bytes] = []
            while not whole:
                message = await part()
                if message["type"] != "http.request":
                    return message
                parts.append(message.get("body", b""))
            body = b"".join(parts)
            try:
                if body:
                    read_json(body, MESSAGE_JSON)
            except JsonRefused as error:
                refused = _refuse(400, str(error))
            return {"type": "http.request", "body": body, "more_body": False}

        async def part() -> Message:
            nonlocal taken, whole, refused
            if whole:
                return await receive()
            try:
                left = began + FIRST_BYTES_SECONDS + taken / SLOWEST_BYTES - time.monotonic()
                message = await asyncio.wait_for(receive(), max(left, 0.01))
            except TimeoutError:
                refused = _refuse(408, "The request took too long to arrive; try again.")
                return {"type": "http.disconnect"}
            size = len(message.get("body", b""))
            taken, whole = taken + size, not message.get("more_body", False)
            if taken > most:
                refused = _refuse(413, f"At most {_size(most)} can be sent at once; send less.")
            elif upload and not self._may_upload(address, size):
                refused = _refuse(429, "Too much was uploaded from here within an hour; try again later.")
            return message if refused is None else {"type": "http.disconnect"}

        async def told(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                if refused is not None:
                    return
                answered = True
                if _is_login(scope):
                    self._note_login(address, message["status"])
            if refused is None or answered:
                await send(message)

        if _is_json(scope, headers):
            held.append(await whole_json())
            if refused is not None:  # the page has not heard of it
                return await refused(scope, receive, send)
            if held[0]["type"] == "http.disconnect":
                return None
        agent = asyncio.create_task(self.readers.until_it_leaves(scope, receive)) if is_call(scope) and whole else None
        try:
            await self.app(scope, bounded, told)
        except Exception:
            if refused is None:  # else it is how a reader takes a closed client
                raise
        finally:
            if agent is not None:
                agent.cancel()
        if refused is not None and not answered:
            await refused(scope, receive, send)

    def _may_upload(self, address: str, size: int) -> bool:
        until, total = self._uploaded.get(address)
        if time.monotonic() > until:
            until, total = time.monotonic() + _HOUR, 0
        allowed = total + size <= UPLOADS_AN_HOUR * self.rules.upload_bytes * self.rules.visitors_per_address
        self._uploaded.put(address, until, total + size * allowed)
        return allowed

    def _has_room(self) -> bool:
        remove_old_files(upload_folder())
        return folder_bytes(upload_folder()) < UPLOADS_KEPT * self.rules.upload_bytes

    def _note_login(self, address: str, status: int) -> None:
        failures = self._failures.get(address)[1] + 1 if status >= 400 else 0
        over = failures - FREE_FAILURES
        wait = min(2.0**over, LONGEST_WAIT) if over >= 0 else 0.0
        self._failures.put(address, time.monotonic() + wait, failures)


class _Recent:
    """A time and a number for each of the latest addresses."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def get(self, address: str) -> tuple[float, int]:
        return self._kept.get(address, (0.0, 0))

    def put(self, address: str, when: float, number: int) -> None:
        self._kept.pop(address, None)
        self._kept[address] = when, number
        while len(self._kept) > REMEMBERED:
            self._kept.popitem(last=False)


def _is_upload(scope: Scope) -> bool:
    return scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload")


def _is_json(scope: Scope, headers: Headers) -> bool:
    kind = headers.get("content-type", "json")
    return scope["method"] in ("POST", "PUT", "PATCH", "DELETE") and "json" in kind.lower() and not _is_upload(scope)


def _size(count: int) -> str:
    return f"{count // 2**20} MiB" if count >= 2**20 else f"{count // 2**10} KiB"


def _is_login(scope: Scope) -> bool:
    return scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/login")


def _refuse(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status, headers={"Connection": "close"})


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def own_names(host: str, more: Collection[str] = ()) -> frozenset[str]:
    """What this machine is called: no name that somebody else could let point here."""
    return frozenset(name.lower() for name in ("localhost", host, socket.gethostname(), *more) if name)


def end_silent_connections(server: Any, seconds: Callable[[], float] = lambda: FIRST_BYTES_SECONDS) -> threading.Thread:
    """Close a uvicorn server's connections on which no whole request has come for long, for as long as it runs.

    uvicorn has a time-out between requests only, and none for headers that arrive a byte at a time.
    """
    silent_since: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    def watch() -> None:
        while not server.should_exit:
            time.sleep(1.0)
            now = time.monotonic()
            for connection in list(server.server_state.connections):
                if connection.cycle is not None and not connection.cycle.response_complete:
                    silent_since.pop(connection, None)
                elif now - silent_since.setdefault(connection, now) > seconds():
                    connection.loop.call_soon_threadsafe(connection.transport.abort)

    thread = threading.Thread(target=watch, name="silent connections", daemon=True)
    thread.start()
    return thread
