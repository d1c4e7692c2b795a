"""What every request meets first: names and origins, sizes and pace of bodies, shares of an address."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from dpexplore.ui import gate
from dpexplore.ui.gate import Gate, GateRules, end_silent_connections, own_names

FILE = 2**20


class Page:
    """Reads the whole body, and answers; logins fail."""

    def __init__(self) -> None:
        self.read = 0
        self.cut_off = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.cut_off = True
                return
            self.read += len(message.get("body", b""))
            more = message.get("more_body", False)
        status = 400 if scope["path"] == "/login" else 200
        await JSONResponse({}, status)(scope, receive, send)


@pytest.fixture(autouse=True)
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


def ask(
    app: Gate,
    path: str = "/",
    *,
    body: Sequence[bytes] = (b"",),
    headers: dict[str, str] | None = None,
    address: str = "1.2.3.4",
    silent: bool = False,
) -> int:
    """The status of the answer to one request, whose body comes in parts."""
    answers: list[Message] = []
    parts = [
        {"type": "http.request", "body": part, "more_body": silent or place < len(body) - 1}
        for place, part in enumerate(body)
    ]

    async def receive() -> Message:
        if not parts:
            await asyncio.sleep(60)
        return parts.pop(0)

    async def send(message: Message) -> None:
        answers.append(message)

    sent = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": sent, "client": (address, 1)}
    asyncio.run(app(scope, receive, send))
    return answers[0]["status"]


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:7860", None, 200),
        ("127.0.0.1:7860", "http://127.0.0.1:7860", 200),
        ("[::1]:7860", None, 200),
        ("192.168.0.7:7860", "http://192.168.0.7:7860", 200),
        ("class.example", "https://class.example", 200),
        ("evil.example", None, 421),
        ("evil.example:7860", "http://evil.example:7860", 421),
        ("localhost", "http://evil.example", 421),
        ("localhost", "null", 421),
        ("", None, 421),
        ("[", None, 421),
        ("localhost.evil.example", None, 421),
    ],
)
@pytest.mark.parametrize("path", ["/", "/gradio_api/mcp/"])
def test_only_this_machines_names_are_answered(host: str, origin: str | None, status: int, path: str) -> None:
    app = Gate(Page(), GateRules(FILE, own_names("127.0.0.1", ["class.example"])))
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    assert ask(app, path, headers=headers) == status


def test_a_server_for_everybody_answers_to_any_name() -> None:
    assert ask(Gate(Page(), GateRules(FILE)), headers={"Host": "any.example", "Origin": "https://hub.example"}) == 200


@pytest.mark.parametrize("length", ["-1", "1e9", "²", str(10**12)])
def test_a_declared_length_is_checked_before_a_byte_is_read(length: str) -> None:
    page = Page()
    assert ask(Gate(page, GateRules(FILE)), headers={"Content-Length": length}, body=[b"x"]) == 413
    assert page.read == 0


@pytest.mark.parametrize("kind", ["text/plain", "application/json"])
def test_a_body_without_a_length_is_cut_off_where_it_is_too_long(kind: str) -> None:
    page = Page()
    assert ask(Gate(page, GateRules(FILE)), headers={"Content-Type": kind}, body=[bytes(2**20)] * 100) == 413
    assert page.cut_off == (kind == "text/plain")  # of JSON the page hears when it is whole, and not at all otherwise
    assert page.read <= (gate.MESSAGE_BYTES if page.cut_off else 0)


def test_uploads_are_counted_as_they_arrive_for_each_address() -> None:
    app = Gate(Page(), GateRules(FILE))
    whole = [bytes(FILE // 2)] * 2  # no Content-Length
    ends = [ask(app, "/gradio_api/upload", body=whole) for _ in range(gate.UPLOADS_AN_HOUR + 1)]
    assert ends == [200] * gate.UPLOADS_AN_HOUR + [429]
    assert ask(app, "/gradio_api/upload", body=whole, address="5.6.7.8") == 200


def test_a_class_behind_one_address_has_a_classs_share() -> None:
    app = Gate(Page(), GateRules(FILE, visitors_per_address=2))
    ends = [ask(app, "/upload", body=[bytes(FILE)]) for _ in range(2 * gate.UPLOADS_AN_HOUR + 1)]
    assert ends == [200] * 2 * gate.UPLOADS_AN_HOUR + [429]


def test_uploads_have_a_total_and_an_end(uploads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (uploads / "kept").write_bytes(bytes(gate.UPLOADS_KEPT * FILE))
    app = Gate(Page(), GateRules(FILE))
    assert ask(app, "/upload", body=[b"x"]) == 507
    os.utime(uploads / "kept", (0, 0))
    assert ask(app, "/upload", body=[b"x"]) == 200
    assert not list(uploads.iterdir())


def test_a_silent_body_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "FIRST_BYTES_SECONDS", 0.05)
    for kind in ("text/plain", "application/json"):
        page = Page()
        assert ask(Gate(page, GateRules(FILE)), headers={"Content-Type": kind}, body=[b"x"], silent=True) == 408
        assert page.cut_off == (kind == "text/plain")


def test_guessed_passwords_wait_longer_and_longer_and_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(gate.time, "monotonic", lambda: now[0])
    app = Gate(Page(), GateRules(FILE))
    assert [ask(app, "/login") for _ in range(gate.FREE_FAILURES + 1)] == [400] * gate.FREE_FAILURES + [429]
    assert ask(app, "/login", address="5.6.7.8") == 400
    for wait in (1.5, 2.5, 4.5):
        now[0] += wait
        assert ask(app, "/login") == 400
        assert ask(app, "/login") == 429


def test_open_requests_of_one_address_are_bounded() -> None:
    app = Gate(Page(), GateRules(FILE))
    app._open["1.2.3.4"] = gate.REQUESTS_AT_ONCE
    assert ask(app) == 429
    assert ask(app, address="5.6.7.8") == 200
    assert "5.6.7.8" not in app._open


def test_connections_that_bring_no_request_are_closed() -> None:
    closed: list[str] = []

    class Connection:
        def __init__(self, name: str, *, busy: bool) -> None:
            self.cycle = SimpleNamespace(response_complete=not busy)
            self.transport = SimpleNamespace(abort=lambda: closed.append(name))
            self.loop = SimpleNamespace(call_soon_threadsafe=lambda call: call())

    connections = {Connection("silent", busy=False), Connection("streaming", busy=True)}
    server = SimpleNamespace(should_exit=False, server_state=SimpleNamespace(connections=connections))
    thread = end_silent_connections(server, lambda: 0.0)
    deadline = time.monotonic() + 30
    while not closed and time.monotonic() < deadline:
        time.sleep(0.05)
    server.should_exit = True
    thread.join()
    assert set(closed) == {"silent"}
