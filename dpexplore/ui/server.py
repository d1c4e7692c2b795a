"""The page as a server: what every request meets before the page does, its health, its logs, its end."""

from __future__ import annotations

import io
import json
import logging
import re
import signal
import sys
import threading
import time
import traceback
from collections import OrderedDict
from typing import Any

import gradio as gr
from fastapi import Request
from fastapi.responses import JSONResponse
from gradio.route_utils import FnIndexInferError
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dpexplore.serving.app_context import AppContext
from dpexplore.ui.page import build, launch_settings

MESSAGE_BYTES = 4 * 2**20
"""Largest body of a request that uploads no file; the page's own stay far below."""
UPLOAD_MEGABYTES = 20
"""Largest file where no manifest says otherwise."""
UPLOADS_AN_HOUR = 10
"""So many of the largest files, or as many bytes in smaller ones, are taken from one address in an hour."""
REMEMBERED = 10_000
"""Addresses whose uploads are counted."""
_HOUR = 3600.0
_FRAMES_LOGGED = 8
_ERROR_LINE = re.compile(r"([A-Za-z_][\w.]*(?:Error|Exception|Warning))\b")

logger = logging.getLogger(__name__)


class BodyLimits:
    """Refuses bodies that are too large before they are read, and addresses that fill the disk."""

    def __init__(self, app: ASGIApp, upload_bytes: int) -> None:
        self.app = app
        self.upload_bytes = upload_bytes
        self._uploaded: OrderedDict[str, tuple[float, int]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        uploads = scope["path"].rstrip("/").endswith("/upload")
        most = self.upload_bytes + MESSAGE_BYTES if uploads else MESSAGE_BYTES
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > most:
            return await _refuse(413, f"At most {most // 2**20} MiB are accepted.")(scope, receive, send)
        address = scope["client"][0] if scope.get("client") else ""
        if uploads and not self._may_upload(address, int(declared)):
            return await _refuse(429, "Too much was uploaded from here within an hour.")(scope, receive, send)
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            # A body without a declared length is cut off where it becomes too long: its reader sees a closed client.
            return message if taken <= most else {"type": "http.disconnect"}

        await self.app(scope, bounded, send)

    def _may_upload(self, address: str, size: int) -> bool:
        began, total = self._uploaded.pop(address, (0.0, 0))
        if time.monotonic() - began > _HOUR:
            began, total = time.monotonic(), 0
        allowed = total + size <= UPLOADS_AN_HOUR * self.upload_bytes
        self._uploaded[address] = began, total + size * allowed
        while len(self._uploaded) > REMEMBERED:
            self._uploaded.popitem(last=False)
        return allowed


def _refuse(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status)


class JsonLines(logging.Formatter):
    """One JSON object a record: what happened and where. What users wrote stays out unless `with_text`."""

    def __init__(self, *, with_text: bool) -> None:
        super().__init__()
        self.with_text = with_text

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            # A message's arguments may hold what somebody typed; its template does not.
            "event": record.getMessage() if self.with_text else str(record.msg),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            frames = traceback.extract_tb(error.__traceback__)[-_FRAMES_LOGGED:]
            line["error"] = type(error).__name__
            line["at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
            if self.with_text:
                line["text"] = str(error)
        return json.dumps(line, ensure_ascii=False)


class Printed(io.TextIOBase):
    """Standard error for those who print there: Gradio prints whole tracebacks, with what visitors wrote."""

    def __init__(self, *, with_text: bool) -> None:
        self.with_text = with_text

    def write(self, text: str, /) -> int:
        for line in text.splitlines():
            if self.with_text and line.strip():
                logger.warning("printed: %s", line)
            elif kind := _ERROR_LINE.match(line):
                logger.warning("printed: " + kind[1])
        return len(text)


def log_as_json(*, with_text: bool) -> None:
    """Let every logger of the process, and who prints to standard error, write JSON lines there."""
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(JsonLines(with_text=with_text))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it writes a line for every request, with its address
    sys.stderr = Printed(with_text=with_text)


def start(app: AppContext, host: str, port: int, **settings: Any) -> gr.Blocks:
    """Serve the page; returns once it answers. `settings` are further arguments of Gradio's `launch`."""
    megabytes = app.rules.manifest.server.upload_megabytes if app.rules else UPLOAD_MEGABYTES

    def health(_request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "runs": app.pool.running, "models": app.pool.ready})

    arguments = launch_settings()
    arguments["app_kwargs"]["routes"].append(Route("/health", health))
    arguments["app_kwargs"]["middleware"] = [Middleware(BodyLimits, upload_bytes=megabytes * 2**20)]  # type: ignore[arg-type]
    arguments["app_kwargs"]["exception_handlers"] = {FnIndexInferError: _no_such_endpoint}
    arguments["max_file_size"] = f"{megabytes}mb"
    demo = build(app)
    demo.launch(server_name=host, server_port=port, prevent_thread_lock=True, **arguments | settings)
    return demo


async def _no_such_endpoint(_request: Request, _error: Exception) -> JSONResponse:
    return _refuse(404, "There is no such endpoint; /gradio_api/info lists those that there are.")


def serve(app: AppContext, host: str, port: int, **settings: Any) -> None:
    """Serve the page until the process is told to end; runs then stop and keep their best so far."""
    told = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda _sign, _frame: told.set())
    demo = start(app, host, port, **settings)
    told.wait()
    app.close()
    demo.close(verbose=False)
