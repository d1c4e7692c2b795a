"""Builds and launches the demo: `python app.py`, then open the address it prints."""

from __future__ import annotations

import argparse
import socket
import sys

from dpexplore.models import DEFAULT_MODEL
from dpexplore.ui.context import AppContext
from dpexplore.ui.page import build, launch_settings


def main() -> int:
    parser = argparse.ArgumentParser(description="The dpexplore page.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="registry name, Hub id, folder or .gguf file to begin with"
    )
    options = parser.parse_args()
    trouble = why_not(options.host, options.port)
    if trouble:
        print(trouble, file=sys.stderr)
        return 2
    app = AppContext(model=options.model)
    app.pool.start_loading(options.model)
    print(f"dpexplore is at http://{options.host}:{options.port}", flush=True)
    build(app).launch(server_name=options.host, server_port=options.port, **launch_settings())
    return 0


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
