"""`dpexplore capsule`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpexplore.cli.common import JsonOption, emit, say
from dpexplore.errors import InputError


def capsule(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of capsules.")] = False,
    check: Annotated[Path | None, typer.Option(help="Say what is wrong with this capsule.", metavar="FILE")] = None,
    as_json: JsonOption = False,
) -> int:
    """Check a run's record, or print the schema of records. Exit code 1 if something is wrong."""
    import json

    from dpexplore.tuning.record.schema import capsule_json, capsule_schema, faults_of

    if schema == (check is not None):
        raise InputError("Give one of --schema and --check FILE.")
    if check is None:
        say(json.dumps(capsule_schema(), indent=1))
        return 0
    faults = faults_of(str(check), capsule_json(check))
    if as_json:
        emit({"event": "check", "file": str(check), "valid": not faults, "faults": faults})
    else:
        for sentence in faults or [f"{check} is a capsule that can be replayed."]:
            say(sentence)
    return 1 if faults else 0
