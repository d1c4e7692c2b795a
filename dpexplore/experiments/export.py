"""Figures and claims as files: HTML, PNG, SVG and the CSV beneath, and one page that shows them all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from dpexplore.errors import InputError
from dpexplore.experiments.claim import claims_markdown, claims_table
from dpexplore.experiments.figures import DrawnFigure, draw_all
from dpexplore.experiments.store import Store
from dpexplore.extras import extra
from dpexplore.files import reason, why_unwritable, write_file
from dpexplore.plots import figure_json

WIDTH, HEIGHT, TALL = 900, 520, 760
SCALE = 2
"""Pixels of a PNG for each of the figure's."""
FORMATS = ("html", "png", "svg", "json")
"""Files of each figure; the CSV is always there. json: Plotly's own, for pages that draw it themselves."""
RECORD = "figures.json"
"""What the figures of a folder are, with captions and claims."""
NO_BROWSER = (
    "PNG and SVG were left out: they are drawn by a Chromium or Chrome, and none was found; install one, or name it in "
    "BROWSER_PATH or DPEXPLORE_CHROMIUM."
)


@dataclass
class Written:
    """What `write_figures` has written."""

    figures: list[dict[str, Any]] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""
    """What could not be written, and why."""


def write_figures(store: Store, out: Path, formats: Sequence[str] = FORMATS) -> Written:
    """Draw everything there is data for, with its CSV and its claims.

    InputError for an unknown format, if there is no data, or if the folder cannot be written to.
    """
    if unknown := sorted(set(formats) - set(FORMATS)):
        raise InputError(f"{unknown[0]!r} is not a figure format; use {', '.join(FORMATS)}.")
    drawn = list(draw_all(store)) if store.results.is_dir() else []
    if not drawn:
        raise InputError(
            f"The store {store.folder} has no results to draw; `python -m dpexplore sweep fig1 --store {store.folder}` "
            "makes some."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = _write_all(drawn, out, formats)
    except OSError as error:
        raise InputError(f"The folder {out} cannot be written to ({error.strerror}).") from error
    return written


def _write_all(drawn: Sequence[DrawnFigure], out: Path, formats: Sequence[str]) -> Written:
    written = Written()
    for figure in drawn:
        write_file(out / f"{figure.name}.csv", figure.drawn.table.to_csv(index=False, float_format="%.6g"))
        if "html" in formats:
            page = on_white(figure.drawn.figure).to_html(include_plotlyjs="directory", full_html=True)
            write_file(out / f"{figure.name}.html", page)
        if "json" in formats:
            write_file(out / f"{figure.name}.json", figure_json(figure.drawn.figure))
        written.figures.append(describe(figure))
        written.claims += written.figures[-1]["claims"]
    pictures = [kind for kind in ("png", "svg") if kind in formats]
    if pictures:
        written.note = write_pictures({each.name: on_white(each.drawn.figure) for each in drawn}, out, pictures)
    claims = [claim for figure in drawn for claim in figure.claims]
    write_file(out / "claims.csv", claims_table(claims).to_csv(index=False, float_format="%.6g"))
    write_file(out / "claims.md", claims_markdown(claims))
    record = {"figures": written.figures}
    write_file(out / RECORD, json.dumps(record, indent=1, ensure_ascii=False))
    if "html" in formats:
        shown = "svg" in formats and not written.note
        write_file(out / "index.html", _index(written, pictures=shown))
    return written


def describe(figure: DrawnFigure) -> dict[str, Any]:
    """A figure without its picture, JSON-ready."""
    return {
        "name": figure.name,
        "title": figure.title,
        "headline": figure.drawn.figure.layout.title.text,
        "coverage": figure.coverage,
        "caption": figure.drawn.caption,
        "claims": [claim.to_dict() for claim in figure.claims],
    }


def on_white(figure: go.Figure) -> go.Figure:
    """The figure as it is printed: on white, at its size."""
    tall = figure.layout.yaxis.domain not in (None, (0, 1))  # one panel above another
    return go.Figure(figure).update_layout(
        template="none", paper_bgcolor="white", plot_bgcolor="white", width=WIDTH, height=TALL if tall else HEIGHT
    )


def write_pictures(figures: dict[str, go.Figure], out: Path, kinds: Sequence[str] = ("png", "svg")) -> str:
    """PNG and SVG of each, by kaleido and the browser that is installed; empty, or the sentence why there are none."""
    with extra("figures", "A figure as PNG or SVG"):
        import kaleido
        from kaleido.errors import ChromeNotFoundError

    named = os.environ.get("DPEXPLORE_CHROMIUM")
    settings = {"path": named} if named else {}
    try:
        kaleido.start_sync_server(silence_warnings=True, **settings)
        try:
            for name, figure in figures.items():
                for kind in kinds:
                    options = {"format": kind, "scale": SCALE if kind == "png" else 1}
                    write_file(out / f"{name}.{kind}", kaleido.calc_fig_sync(figure, opts=options))
        finally:
            kaleido.stop_sync_server(silence_warnings=True)
    except ChromeNotFoundError:
        return NO_BROWSER
    return ""


def figure_kind(file: Path) -> str:
    """html, png or svg. InputError for another ending, and for a folder that is not there: to be asked before work."""
    kind = file.suffix.removeprefix(".").lower()
    if kind not in ("html", "png", "svg"):
        raise InputError(f"A figure cannot be written as {file.name}; give a name that ends in .html, .png or .svg.")
    if why := why_unwritable(file):
        raise InputError(why)
    return kind


def write_figure(figure: go.Figure, file: Path) -> None:
    """One figure as HTML, PNG or SVG, by the name's ending (`figure_kind`). InputError where it cannot be written."""
    kind = figure_kind(file)
    try:
        if kind == "html":
            return write_file(file, on_white(figure).to_html(include_plotlyjs="cdn", full_html=True))
        if note := write_pictures({file.stem: on_white(figure)}, file.parent, [kind]):
            raise InputError(note)
    except OSError as error:
        raise InputError(f"The figure could not be written to {file} ({reason(error)}).") from error


_STYLE = """
:root { color-scheme: light; } body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1a; margin: 2rem auto;
max-width: 980px; padding: 0 1rem; } h1 { font-size: 1.6rem; } figure { margin: 2.5rem 0; } img { max-width: 100%; }
figcaption, .coverage { color: #55534e; font-size: .9rem; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .5rem .75rem .5rem 0; border-bottom: 1px solid #e3e2dd; }
.supported { color: #00735a; font-weight: 600; } .not { color: #bf4a00; font-weight: 600; }
.undecided { color: #55534e; font-weight: 600; } .wide { overflow-x: auto; }
"""


def _index(written: Written, *, pictures: bool) -> str:
    rows = "".join(
        f"<tr><td>{escape(claim['claim'])}</td><td class='{claim['verdict'].split()[0]}'>{claim['verdict']}</td>"
        f"<td>{escape(claim['finding'])}</td></tr>"
        for claim in written.claims
    )
    figures = "".join(_figure(figure, pictures) for figure in written.figures)
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>dpexplore figures</title><style>{_STYLE}</style><h1>What the data here say</h1>"
        "<p>Each of the paper's claims, with effect size and 95 % interval. Supported: the interval lies on the "
        "claim's side; not supported: on the other side; undecided: across.</p><div class='wide'><table><thead><tr>"
        f"<th>claim</th><th>here</th><th>finding</th></tr></thead><tbody>{rows}</tbody></table></div>{figures}</html>"
    )


def _figure(figure: dict[str, Any], pictures: bool) -> str:
    name = escape(figure["name"])
    body = (
        f"<img src='{name}.svg' alt='{escape(figure['headline'])}'>"
        if pictures
        else f"<iframe src='{name}.html' title='{escape(figure['headline'])}' width='100%' height='540'></iframe>"
    )
    return (
        f"<figure id='{name}'>{body}<figcaption>{escape(figure['caption'])} <span class='coverage'>"
        f"{escape(figure['coverage'])}.</span> <a href='{name}.csv'>CSV</a> · <a href='{name}.html'>interactive</a>"
        "</figcaption></figure>"
    )
