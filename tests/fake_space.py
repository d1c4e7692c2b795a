"""The calls by which a Space is made and filled, answered in this process."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.local_server import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeSpaceHub:
    """A hub that knows one account's Spaces."""

    token: str = "hf_of_the_owner"
    may_write: bool = True
    free_hardware: tuple[str, ...] = ("cpu-basic",)
    spaces: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Space -> path -> content."""
    variables: dict[str, dict[str, str]] = field(default_factory=dict)
    hardware: dict[str, str] = field(default_factory=dict)
    url: str = ""


@contextmanager
def serve(hub: FakeSpaceHub) -> Iterator[FakeSpaceHub]:
    class Handler(_Handler):
        state = hub

    with serving(Handler) as hub.url:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    state: FakeSpaceHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._route("GET")

    def do_POST(self) -> None:
        self._route("POST")

    def _route(self, verb: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {self.state.token}":
            return self._send(401, {"error": "Invalid credentials"})
        if verb == "POST" and not self.state.may_write:
            return self._send(403, {"error": "Forbidden"})
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if asked["type"] != "space" or asked["sdk"] != "gradio":
                return self._send(400, {"error": "not a Space for Gradio"})
            if repo in self.state.spaces:
                return self._send(409, {"url": f"{self.state.url}/spaces/{repo}"})
            self.state.spaces[repo] = {".gitattributes": b"", "old.py": b"print()"}
            self.state.hardware[repo] = "cpu-basic"
            return self._send(200, {"url": f"{self.state.url}/spaces/{repo}", "name": repo})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        for repo in self.state.spaces:
            if path == f"/api/spaces/{repo}" or path.startswith(f"/api/spaces/{repo}/"):
                return self._of_space(repo, path.removeprefix(f"/api/spaces/{repo}").strip("/"), body)
        return self._send(404, {"error": f"no {path}"})

    def _of_space(self, repo: str, call: str, body: bytes) -> None:
        files = self.state.spaces[repo]
        match call.split("/")[0]:
            case "" | "revision":
                listing = [{"rfilename": name} for name in files]
                self._send(200, {"id": repo, "sha": COMMIT, "siblings": listing, "tags": []})
            case "tree":
                entries = [{"type": "file", "path": n, "size": len(d), "oid": COMMIT} for n, d in files.items()]
                self._send(200, entries)
            case "preupload":
                asked = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
                self._send(200, {"files": modes, "commitOid": COMMIT})
            case "commit":
                for line in body.decode().splitlines():
                    self._apply(files, json.loads(line))
                self._send(200, {"commitUrl": f"{self.state.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})
            case "variables":
                asked = json.loads(body) if body else {}
                known = self.state.variables.setdefault(repo, {})
                if asked:
                    known[asked["key"]] = asked["value"]
                self._send(200, {key: {"key": key, "value": value} for key, value in known.items()})
            case "runtime":
                self._send(200, self._runtime(repo))
            case "hardware":
                flavour = json.loads(body)["flavor"]
                if flavour not in self.state.free_hardware:
                    return self._send(402, {"error": "Payment required"})
                self.state.hardware[repo] = flavour
                self._send(200, self._runtime(repo))
            case _:
                self._send(404, {"error": f"no call {call}"})

    @staticmethod
    def _apply(files: dict[str, bytes], operation: dict[str, Any]) -> None:
        value = operation["value"]
        if operation["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif operation["key"] == "deletedFile":
            del files[value["path"]]

    def _runtime(self, repo: str) -> dict[str, Any]:
        now = self.state.hardware[repo]
        return {"stage": "BUILDING", "hardware": {"current": None, "requested": now}, "storage": None, "gcTimeout": 1}

    def _send(self, status: int, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
