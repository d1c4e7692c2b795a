"""`dpexplore figures`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpexplore.cli.common import JsonOption, check_writable, emit, say, warn


def figures(
    store: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="Folder for the figures; created if it does not exist.")] = Path("figures"),
    formats: Annotated[str, typer.Option(help="Any of html, png, svg, json; CSV is always written.")] = "html,png,svg",
    as_json: JsonOption = False,
) -> None:
    """Draw every figure there is data for (HTML, PNG, SVG, CSV), and a table of the paper's claims."""
    check_writable(out, folder=True)
    from dpexplore.experiments import Store
    from dpexplore.experiments.export import write_figures

    written = write_figures(Store(store), out, [each.strip() for each in formats.split(",") if each.strip()])
    for figure in written.figures:
        if as_json:
            emit({"event": "figure", **figure})
        else:
            say(f"{figure['name']}: {figure['title']} ({figure['coverage']})")
    for claim in written.claims:
        if as_json:
            emit({"event": "claim", **claim})
        else:
            say(f"{claim['verdict']:13} {claim['claim']}: {claim['finding']}")
    if written.note:
        warn(written.note)
    if not as_json:
        say(f"Written to {out}.")
