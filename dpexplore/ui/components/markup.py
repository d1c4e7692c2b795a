"""Small pieces of HTML. Whatever comes from a model, a file or a person is escaped here."""

from __future__ import annotations

import json
import math
from html import escape
from typing import Literal

from dpexplore.plots import NATS_PER_BIT


def quantity(nats: float | None, kind: Literal["kl", "h"], digits: int = 2) -> str:
    """A divergence (`kl`) or an entropy (`h`) in both units; the page's unit switch shows one of them."""
    if nats is None or not math.isfinite(nats):
        return "<span class='dpx-none'>none</span>"
    return (
        f"<span class='dpx-{kind}-q'><span class='u-nats'>{nats:.{digits}f} nats</span>"
        f"<span class='u-bits'>{nats / NATS_PER_BIT:.{digits}f} bits</span></span>"
    )


def token(text: str) -> str:
    """A token as a person reads it: spaces and line breaks made visible."""
    visible = json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return f"<code class='dpx-token'>{escape(visible).replace(' ', '<i>␣</i>')}</code>"


def probability(value: float) -> str:
    """A probability with three significant digits."""
    if value >= 0.0995:
        return f"{value:.3f}"
    if value >= 0.000995:
        return f"{value:.5f}".rstrip("0")
    return f"{value:.1e}".replace("e-0", "e-") if value > 0 else "0"


def message(text: str, kind: Literal["info", "error", "busy", "ready"] = "info") -> str:
    """One sentence for the person at the page."""
    return f"<p class='dpx-message is-{kind}'>{escape(text)}</p>" if text else ""


def progress_bar(text: str, fraction: float | None) -> str:
    """What is being waited for, and how far it is; an unknown share moves without end."""
    share = (
        "" if fraction is None else f" aria-valuenow='{round(100 * fraction)}' aria-valuemin='0' aria-valuemax='100'"
    )
    width = "" if fraction is None else f" style='width:{max(0.0, min(1.0, fraction)) * 100:.1f}%'"
    percent = "" if fraction is None else f" <b>{fraction:.0%}</b>"
    kind = "dpx-bar is-unknown" if fraction is None else "dpx-bar"
    return (
        f"<div class='dpx-progress'><span>{escape(text)}{percent}</span>"
        f"<div class='{kind}' role='progressbar' aria-label='{escape(text)}'{share}>"
        f"<div{width}></div></div></div>"
    )


def table(headers: list[tuple[str, str]], rows: list[list[str]], caption: str) -> str:
    """A table of ready HTML cells; `headers` are (text, CSS class of the column)."""
    return grouped_table(headers, [("", rows)], caption)


def grouped_table(headers: list[tuple[str, str]], groups: list[tuple[str, list[list[str]]]], caption: str) -> str:
    """The same, each group of rows under a heading of its own, where it has one."""
    head = "".join(f"<th scope='col' class='{css}'>{escape(text)}</th>" for text, css in headers)
    body = "".join(
        f"<tbody>{_group_heading(heading, len(headers))}{''.join(_table_row(headers, row) for row in rows)}</tbody>"
        for heading, rows in groups
    )
    return (
        f"<div class='dpx-table' tabindex='0' role='region' aria-label='{escape(caption)}'><table>"
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead>{body}</table></div>"
    )


def _group_heading(heading: str, columns: int) -> str:
    if not heading:
        return ""
    return f"<tr class='dpx-group'><th scope='rowgroup' colspan='{columns}'><span>{escape(heading)}</span></th></tr>"


def _table_row(headers: list[tuple[str, str]], row: list[str]) -> str:
    cells = "".join(f"<td class='{css}'>{cell}</td>" for (_, css), cell in zip(headers, row, strict=True))
    return f"<tr>{cells}</tr>"


def bar(share: float, role: str) -> str:
    """A bar of a share from 0 to 1 in a role's colour, read by its number beside it."""
    width = 100 * max(0.0, min(1.0, share))
    return (
        f"<span class='dpx-share' aria-hidden='true'><span class='is-{role}' style='width:{width:.1f}%'></span></span>"
    )
