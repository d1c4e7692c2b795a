"""Builds and launches the demo: `python app.py`, then open the address it prints."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import socket
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

# Read when torch is imported: OpenMP's threads spin for microseconds between operations, not for 3 ms. Where something
# else uses the cores too, a browser say, a step would be held up by threads that only spin.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
with contextlib.suppress(ImportError):
    importlib.import_module("spaces")  # ZeroGPU asks for it before torch

from dpexplore.errors import InputError
from dpexplore.models import DEFAULT_MODEL, load_model
from dpexplore.models.memory import share_heaps
from dpexplore.serving.model_pool import ModelPool
from dpexplore.space import VisitorRules, running_on_a_space
from dpexplore.space.zero import SlicedServer, slice_on_zero
from dpexplore.ui.context import AppContext
from dpexplore.ui.server import log_as_json, serve


def main() -> int:
    parser = argparse.ArgumentParser(description="The dpexplore page.")
    host, port = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), os.environ.get("GRADIO_SERVER_PORT", "7860")
    parser.add_argument("--host", default=host, help=f"address to listen on (default: {host})")
    parser.add_argument("--port", type=int, default=port, help=f"port to listen on (default: {port})")
    parser.add_argument("--model", help=f"name, Hub id, folder or .gguf file to begin with (default: {DEFAULT_MODEL})")
    parser.add_argument("--public", action="store_true", help="for strangers: what the Spacefile allows, and no more")
    parser.add_argument("--auth", metavar="USER:PASSWORD", action="append", help="ask for a login; may be repeated")
    parser.add_argument("--root-path", help="path under which a proxy serves the page, such as /dpexplore")
    parser.add_argument("--log-text", action="store_true", help="with --public: log what users wrote, too")
    parser.add_argument("--mcp", action="store_true", help="offer /target, /floor, /tune, /models to agents over MCP")
    parser.add_argument(
        "--grace",
        type=float,
        default=AppContext.grace_seconds,
        metavar="SECONDS",
        help=f"how long a run goes on when its page is closed (default: {AppContext.grace_seconds:.0f})",
    )
    options = parser.parse_args()
    share_heaps()
    trouble = why_not(options.host, options.port) or bad_login(options.auth) or (options.mcp and no_mcp())
    try:
        app = context(options.model, public=options.public or running_on_a_space())
        app = replace(app, grace_seconds=max(0.0, options.grace))
    except InputError as error:
        trouble = str(error)
    if trouble:
        print(trouble, file=sys.stderr)
        return 2
    if app.rules:
        log_as_json(with_text=options.log_text)
    app.pool.start_loading(app.model)
    print(f"dpexplore is at http://{options.host}:{options.port}", flush=True)
    logins = [tuple(login.split(":", 1)) for login in options.auth or []]
    if options.mcp:
        print(f"MCP is at http://{options.host}:{options.port}/gradio_api/mcp/", flush=True)
    settings = {"auth": logins or None, "root_path": options.root_path, "mcp_server": options.mcp}
    serve(app, options.host, options.port, **settings)
    return 0


def context(model: str | None, *, public: bool) -> AppContext:
    """What the page runs on. InputError if the manifest is wrong, or does not offer the model."""
    if not public:
        return AppContext(model=model or DEFAULT_MODEL)
    rules = VisitorRules.of_this_machine()
    wanted = model or rules.manifest.models.default
    rules.check_model(wanted)
    if rules.machine != "zero":
        return AppContext(pool=ModelPool(permit=rules.check_model), model=wanted, rules=rules)
    seconds = rules.limits.slice_seconds
    server = partial(SlicedServer, slice_of=slice_on_zero(seconds), seconds=seconds)
    pool = ModelPool(partial(load_model, device="cpu"), rules.check_model, server)
    return AppContext(pool=pool, model=wanted, rules=rules)


def bad_login(logins: list[str] | None) -> str:
    """What is wrong with the logins; empty if nothing is."""
    wrong = [login for login in logins or [] if not all(login.partition(":"))]
    return "--auth takes USER:PASSWORD, such as ada:secret." if wrong else ""


def no_mcp() -> str:
    """What an MCP server lacks here; empty if it lacks nothing."""
    return "" if find_spec("mcp") else "--mcp needs one more library: pip install 'gradio[mcp]'."


def why_not(host: str, port: int) -> str:
    """Why nothing can listen at that address; empty if something can."""
    if not 1 <= port <= 65535:
        return f"Port {port} is out of range; ports go from 1 to 65535."
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return f"Cannot listen on {host}:{port} ({error.strerror or error}); choose another with --host and --port."
    return ""


if __name__ == "__main__":
    sys.exit(main())
