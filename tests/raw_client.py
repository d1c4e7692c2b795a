"""A visitor without a page: Gradio's queue and files by plain HTTP, as an attacker would use them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]


@dataclass
class PublicServer:
    """A running `app.py --public`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def public_server(
    folder: Path, *arguments: str, prepare: Callable[[], object] | None = None, **environment: str
) -> Iterator[PublicServer]:
    """Start it, wait until its model is there, and end it. `prepare` is called in its process before it begins."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--public", "--port", str(port), *arguments],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            env=os.environ | {"GRADIO_TEMP_DIR": str(folder / "uploads")} | environment,
            preexec_fn=prepare,
        )
    server = PublicServer(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_for(server)
        yield server
    finally:
        process.kill()
        process.wait()


def _wait_for(server: PublicServer) -> None:
    deadline = time.monotonic() + 280
    with httpx.Client(base_url=server.url) as client:  # one for all: each reads the certificates of the system
        while time.monotonic() < deadline:
            assert server.process.poll() is None, server.log.read_text(encoding="utf-8")
            try:
                if client.get("/health").json()["ready"]:
                    return
            except (httpx.HTTPError, ValueError):
                pass
            time.sleep(0.2)
    raise TimeoutError(server.log.read_text(encoding="utf-8"))


class RawClient:
    """Calls handlers by number and endpoints by name, with whatever data."""

    def __init__(self, url: str) -> None:
        # Connections are given up before the server ends them, which it may while a request is on its way.
        limits = httpx.Limits(keepalive_expiry=2)
        self.http = httpx.Client(base_url=f"{url}/gradio_api", timeout=120, limits=limits)
        self.config: dict[str, Any] = httpx.get(f"{url}/config", timeout=60).json()
        self._local = threading.local()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def call(self, endpoint: str, *data: Any, most: int = 1000) -> list[tuple[str, str]]:
        """Events of a named endpoint as (name, data), at most so many; a refusal is ("http <status>", body)."""
        answer = self.http.post(f"/call/{endpoint}", json={"data": list(data)})
        if answer.status_code != 200:
            return [(f"http {answer.status_code}", answer.text)]
        events: list[tuple[str, str]] = []
        with self.http.stream("GET", f"/call/{endpoint}/{answer.json()['event_id']}") as stream:
            name = ""
            for line in stream.iter_lines():
                key, _, value = line.partition(": ")
                name = value if key == "event" else name
                if key == "data":
                    events.append((name, value))
                    if len(events) >= most:
                        break
        return events

    def refusal(self, endpoint: str, *data: Any) -> str:
        """The sentence with which an endpoint refuses."""
        name, text = self.call(endpoint, *data)[-1]
        assert name == "error", (name, text)
        return text

    def handler(self, number: int, data: list[Any], most: int = 50) -> str:
        """Everything that a handler of the page answers, as text: raw messages of the queue."""
        session = self._session()
        asked = {"fn_index": number, "data": data, "session_hash": session, "event_data": None, "trigger_id": None}
        answer = self.http.post("/queue/join", json=asked)
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text}"
        told: list[str] = []
        with self.http.stream("GET", "/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    told.append(line)
                if len(told) >= most:
                    del self._local.session  # the server ends what a session that hangs up has asked for
                    break
        return "\n".join(told)

    def _session(self) -> str:
        """One session a thread: for a new one Gradio writes the whole page's configuration, a tenth of a second."""
        if not hasattr(self._local, "session"):
            self._local.session = uuid.uuid4().hex
        return self._local.session

    def upload(self, name: str, data: bytes) -> str:
        """Path of an uploaded file on the server; of a refusal its status and body."""
        answer = self.http.post("/upload", files={"files": (name, data)})
        return answer.json()[0] if answer.status_code == 200 else f"{answer.status_code} {answer.text}"
