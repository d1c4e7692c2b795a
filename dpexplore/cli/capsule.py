"""`dpexplore capsule`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dpexplore.cli.common import JsonOption, emit, say
from dpexplore.errors import InputError

Kind = Literal["tune", "lora"]


def capsule(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of capsules.")] = False,
    kind: Annotated[Kind, typer.Option(help="Of which capsules: of `tune`, or of `diffuse --method lora`.")] = "tune",
    check: Annotated[
        Path | None, typer.Option(help="Say what is wrong with this capsule, of either kind.", metavar="FILE")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Check a run's record, or print the schema of records. Exit code 1 if something is wrong."""
    import json

    from dpexplore.diffuse.record import AdapterCapsule
    from dpexplore.tuning.record.schema import Capsule, capsule_json, capsule_schema, faults_of, published_schema

    if schema == (check is not None):
        raise InputError("Give one of --schema and --check FILE.")
    if check is None:
        say(json.dumps(capsule_schema() if kind == "tune" else published_schema(AdapterCapsule), indent=1))
        return 0
    held = capsule_json(check)
    of_adapter = isinstance(held, dict) and held.get("format") == AdapterCapsule.format_name()
    faults = faults_of(str(check), held, AdapterCapsule if of_adapter else Capsule)
    if as_json:
        emit({"event": "check", "file": str(check), "valid": not faults, "faults": faults})
    else:
        for sentence in faults or [f"{check} is a capsule that can be replayed."]:
            say(sentence)
    return 1 if faults else 0
