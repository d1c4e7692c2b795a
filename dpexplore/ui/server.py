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
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import gradio as gr
from fastapi import Request
from fastapi.responses import JSONResponse
from gradio.route_utils import FnIndexInferError
from starlette.middleware import Middleware
from starlette.routing import Route

from dpexplore.serving.app_context import AppContext
from dpexplore.serving.pauses import spare_what_stays, take_short_turns
from dpexplore.ui.gate import REQUESTS_AT_ONCE, Gate, GateRules, end_silent_connections
from dpexplore.ui.page import build, launch_settings
from dpexplore.ui.readers import Readers, end_unread_questions, somebody_reads
from dpexplore.ui.shares import share_questions
from dpexplore.wanted import ask_everywhere

UPLOAD_MEGABYTES = 20
"""Largest file where no manifest says otherwise."""
LOCAL_VISITORS = 40
"""People behind one address where no manifest says otherwise: a class that uses one machine."""
LOOK_SECONDS = 0.2
"""How soon a server that still loads its model notices that it must end."""
_FRAMES_LOGGED = 8
_ERROR_LINE = re.compile(r"([A-Za-z_][\w.]*(?:Error|Exception|Warning))\b")

logger = logging.getLogger(__name__)


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


def start(app: AppContext, host: str, port: int, names: Collection[str] | None = None, **settings: Any) -> gr.Blocks:
    """Serve the page; returns once it answers.

    It answers to `names` alone, or to any name if there are none; `settings` are further arguments of Gradio's
    `launch`.
    """
    server = app.rules.manifest.server if app.rules else None
    megabytes = server.upload_megabytes if server else UPLOAD_MEGABYTES
    gate_rules = GateRules(megabytes * 2**20, names, server.visitors_per_address if server else LOCAL_VISITORS)
    if server:
        gate_rules = replace(gate_rules, message_bytes=server.message_kilobytes * 2**10)
    readers = Readers()

    async def health(_request: Request) -> JSONResponse:  # needs no thread: there may be none
        # A stranger learns whether it lives and has a model to answer with, not which one, nor where it lies.
        return JSONResponse({"status": "ok", "runs": app.pool.running, "ready": bool(app.pool.ready)})

    arguments = launch_settings()
    arguments["app_kwargs"]["routes"].append(Route("/health", health))
    arguments["app_kwargs"]["middleware"] = [Middleware(Gate, rules=gate_rules, readers=readers)]  # type: ignore[arg-type]
    arguments["app_kwargs"]["exception_handlers"] = {
        FnIndexInferError: _no_such_endpoint,
        **dict.fromkeys((KeyError, TypeError, ValueError), _no_such_arguments),
    }
    arguments["max_file_size"] = f"{megabytes}mb"
    ask_everywhere(somebody_reads)
    demo = build(app)
    share_questions(demo, REQUESTS_AT_ONCE * gate_rules.visitors_per_address)
    demo.launch(server_name=host, server_port=port, prevent_thread_lock=True, **arguments | settings)
    end_silent_connections(demo.server)
    end_unread_questions(demo._queue, readers, lambda: not demo.server.should_exit, app.grace_seconds)
    return demo


async def _no_such_arguments(request: Request, error: Exception) -> JSONResponse:
    """What Gradio raises for a number that no handler has, and for names that an endpoint does not take or lacks.

    What handlers raise never comes here.
    """
    if not any(part in request.url.path for part in ("/call/", "/run/", "/api/", "/queue/join")):
        raise error
    sentence = "There is no such endpoint, or these are not its arguments; /gradio_api/info lists them."
    return JSONResponse({"detail": sentence}, 422)


async def _no_such_endpoint(_request: Request, _error: Exception) -> JSONResponse:
    sentence = "There is no such endpoint; /gradio_api/info lists those that there are."
    return JSONResponse({"detail": sentence}, 404)


def serve(app: AppContext, host: str, port: int, names: Collection[str] | None = None, **settings: Any) -> None:
    """Serve the page until the process is asked to stop; runs then stop and keep their best so far."""
    stop = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda _sign, _frame: stop.set())
    take_short_turns()
    loading = app.pool.start_loading(app.model)
    demo = start(app, host, port, names, **settings)
    while not (stop.is_set() or loading.done.wait(LOOK_SECONDS)):
        pass
    spare_what_stays()
    stop.wait()
    app.close()
    demo.close(verbose=False)
