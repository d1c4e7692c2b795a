"""The cells of a generalisation matrix as JSON lines that outlive a run, and as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpexplore.diffuse.generalise import Cell, Place
from dpexplore.errors import InputError
from dpexplore.files import write_file

ROWS = {"untuned": "nothing (untuned)", "leave-one-out": "all the others"}


def cell_record(cell: Cell, settings: dict[str, Any]) -> dict[str, Any]:
    """A cell as JSON-ready values; `settings` are what it depends on besides its place."""
    fields = {"mode": cell.mode, "trained": list(cell.trained), "tested": cell.tested, "requests": len(cell.results)}
    return {"event": "cell", **fields, "kl_nats": cell.kl_nats, "valid_mass": cell.valid_mass, "settings": settings}


def place_of(record: dict[str, Any]) -> Place:
    """Where a record's cell stands."""
    return record["mode"], tuple(record["trained"]), record["tested"]


def read_cells(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a file that were made under these settings; none if there is no file yet.

    A last line that a killed run left unfinished is cut off. InputError for a file that holds anything else.
    """
    try:
        whole, _, torn = path.read_text(encoding="utf-8").rpartition("\n") if path.exists() else ("", "", "")
        if torn:
            write_file(path, whole + "\n" if whole else "")
        records = [json.loads(line) for line in whole.splitlines()]
        found = [record for record in records if record["settings"] == settings]
        matrix_table(found)  # refuses what is not a cell
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read or written ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(path)!r} holds no cells of `generalise`; give another file.") from error
    return found


def matrix_table(records: Sequence[dict[str, Any]]) -> str:
    """KL in nats with its interval as a Markdown table: a row for what was trained on, a column for each family."""
    tested = list(dict.fromkeys(record["tested"] for record in records))
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        label = ROWS.get(record["mode"]) or ", ".join(record["trained"])
        rows.setdefault(label, {})[record["tested"]] = _figure(record)
    head = f"| trained on | {' | '.join(tested)} |\n|---|{'---|' * len(tested)}"
    lines = (f"| {name} | {' | '.join(row.get(to, '') for to in tested)} |" for name, row in rows.items())
    return "\n".join([head, *lines])


def _figure(record: dict[str, Any]) -> str:
    mean, low, high = record["kl_nats"]
    return f"{mean:.2f} ({low:.2f} to {high:.2f})" if record["requests"] > 1 else f"{mean:.2f}"
