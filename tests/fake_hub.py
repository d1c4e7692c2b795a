"""A model hub in this process: serves folders by the same HTTP calls as the real one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.local_server import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the server answers from."""

    folders: dict[str, Path] = field(default_factory=dict)
    """Repository id -> folder of its files."""
    gated: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    """Repositories for which the server answers 500."""
    served: list[str] = field(default_factory=list)
    """Names of the files whose contents were sent."""
    url: str = ""


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    class Handler(_Handler):
        state = hub

    with serving(Handler) as hub.url:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def _answer(self, *, send_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix("/")
        is_api = path.startswith("api/models/")
        path = path.removeprefix("api/models/")
        repo = next((repo for repo in self.state.folders if path == repo or path.startswith(repo + "/")), None)
        if repo is None:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        if repo in self.state.broken:
            return self._send(500, b"")
        rest = path.removeprefix(repo).strip("/").split("/")
        if is_api:
            return self._send(200, json.dumps(self._listing(repo, rest)).encode(), send_body=send_body)
        if repo in self.state.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        file = self.state.folders[repo] / rest[-1]
        if not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        if send_body:
            self.state.served.append(file.name)
        data = file.read_bytes()
        etag = hashlib.sha1(data).hexdigest()
        self._send(200, data, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}, send_body=send_body)

    def _listing(self, repo: str, rest: list[str]) -> object:
        files = sorted(self.state.folders[repo].iterdir())
        if rest[0] == "tree":
            return [
                {
                    "type": "file",
                    "path": f.name,
                    "size": f.stat().st_size,
                    "oid": hashlib.sha1(f.name.encode()).hexdigest(),
                }
                for f in files
            ]
        siblings = [{"rfilename": file.name, "size": file.stat().st_size} for file in files]
        return {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0}

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, send_body: bool = True) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send_body:
            self.wfile.write(body)
