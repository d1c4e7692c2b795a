"""`dpexplore app`: the page, the same as `python app.py` in a checkout."""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import Annotated

import typer

ACCESS = "Access"


def app(
    host: Annotated[str, typer.Option(envvar="GRADIO_SERVER_NAME", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="GRADIO_SERVER_PORT", help="Port to listen on.")] = 7860,
    model: Annotated[
        str | None, typer.Option(help="Name, Hub id, folder or .gguf file to start with; default: the default model.")
    ] = None,
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Offer models, target, floor and tune to agents over MCP.")
    ] = False,
    grace: Annotated[float, typer.Option(help="Seconds for which a run continues after its page is closed.")] = 15.0,
    public: Annotated[
        bool, typer.Option("--public", help="For strangers: only what the Spacefile allows.", rich_help_panel=ACCESS)
    ] = False,
    auth: Annotated[
        list[str] | None,
        typer.Option(metavar="USER:PASSWORD", help="Require a login; repeat it for more.", rich_help_panel=ACCESS),
    ] = None,
    root_path: Annotated[
        str | None,
        typer.Option(help="Path at which a proxy serves the page, such as /dpexplore.", rich_help_panel=ACCESS),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name that the page may be opened by.", rich_help_panel=ACCESS),
    ] = None,
    trusted_proxies: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="A proxy that tells clients' addresses truly.", rich_help_panel=ACCESS),
    ] = None,
    log_text: Annotated[
        bool, typer.Option("--log-text", help="With --public: log what users wrote, too.", rich_help_panel=ACCESS)
    ] = False,
) -> None:
    """Open the page and serve it until Ctrl-C or SIGTERM."""
    # Read when torch is imported: OpenMP's threads spin for microseconds between operations, not for 3 ms. If something
    # else uses the cores too, such as a browser, a step would be held up by threads that only spin.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    with contextlib.suppress(ImportError):
        importlib.import_module("spaces")  # ZeroGPU wants it imported before torch
    from dpexplore.ui.launch import Options, launch

    options = Options(
        host=host,
        port=port,
        model=model,
        mcp=mcp,
        grace_seconds=max(0.0, grace),
        public=public,
        auth=tuple(auth or ()),
        root_path=root_path,
        log_text=log_text,
        allowed_hosts=tuple(allowed_host or ()),
        trusted_proxies=tuple(trusted_proxies or ()),
    )
    launch(options)
