"""Targets over strings from JSON files: `request`, `response`, `targets`, `weights`, `eos`.

The format of the repository of Forcing Diffuse Distributions out of Language Models, unchanged.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpexplore import json_text
from dpexplore.errors import InputError
from dpexplore.targets.strings import Strings

logger = logging.getLogger(__name__)

FIELDS = ("request", "response", "targets", "weights", "eos")
MAX_FILE_BYTES = 8 * 2**20
MOST_JSON = json_text.JsonLimits(items=1_000_000)
_EXAMPLE = '{"request": "…", "response": "", "targets": ["{1}", "{2}"], "weights": [1, 1], "eos": true}'


@dataclass(frozen=True)
class NamedStrings:
    """A target over strings and what it is called."""

    name: str
    strings: Strings


def read_strings(path: str | Path) -> list[NamedStrings]:
    """The targets of a file, or of all `.json` files in and below a folder, in order of their names.

    A file of a folder that has no targets (a prompt to generate from) is left out. InputError, in one sentence that
    names the file, for what cannot be read.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted(path.rglob("*.json"))
        parsed = [(file, _parse(file)) for file in files]
        for file, record in parsed:
            if record.get("targets") == []:
                logger.warning("%s has no targets and is left out", file)
        found = [
            NamedStrings(file.relative_to(path).with_suffix("").as_posix(), _strings(file.name, record))
            for file, record in parsed
            if record.get("targets") != []
        ]
        if not found:
            raise InputError(f"The folder {path} holds no .json file with targets over strings.")
        return found
    return [NamedStrings(path.stem, _strings(path.name, _parse(path)))]


def parse_strings(name: str, text: str) -> Strings:
    """The target that JSON text writes; `name` is what errors call it."""
    return _strings(name, _record(name, text))


def write_strings(strings: Strings) -> str:
    """The JSON text of a target, which `parse_strings` and the paper's repository read."""
    record = {
        "request": strings.request,
        "response": list(strings.response),
        "targets": list(strings.texts),
        "weights": [weight for _, weight in strings.outcomes],
        "eos": strings.eos,
    }
    return json.dumps(record, indent=1, ensure_ascii=False)


def _parse(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise InputError(f"There is no file or folder {str(path)!r}.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path.name!r} is larger than {MAX_FILE_BYTES // 2**20} MiB, the most that is read.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path.name!r} is not UTF-8 text; a JSON file is.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name!r} cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    return _record(path.name, text)


def _record(name: str, text: str) -> dict[str, Any]:
    try:
        record = json_text.read_json(text, MOST_JSON)
    except json_text.JsonRefused as refused:
        raise InputError(f"{name!r} is not valid JSON ({refused.reason}); write it like {_EXAMPLE}.") from None
    if not isinstance(record, dict):
        raise InputError(f"{name!r} does not hold a JSON object; write it like {_EXAMPLE}.")
    unknown = sorted(set(record) - set(FIELDS))
    if unknown:
        raise InputError(f"{name!r} has the unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}.")
    return record


def _strings(name: str, record: dict[str, Any]) -> Strings:
    targets, weights = record.get("targets"), record.get("weights")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise InputError(f"`targets` of {name!r} is not a list of texts; write it like {_EXAMPLE}.")
    if not targets:
        raise InputError(f"{name!r} has no targets; at least one outcome is needed.")
    if not isinstance(record.get("request"), str):
        raise InputError(f"`request` of {name!r} is missing or not a text; write it like {_EXAMPLE}.")
    if weights is None or weights == []:  # the repository takes an empty list for none
        weights = [1.0] * len(targets)
    if not isinstance(weights, list) or len(weights) != len(targets):
        raise InputError(f"`weights` of {name!r} is not a list of {len(targets):,} numbers, one for each target.")
    response = record.get("response", "")
    response = [response] if isinstance(response, str) else response
    if not isinstance(response, list) or not response:
        raise InputError(f"`response` of {name!r} is neither text nor a list of texts.")
    eos = record.get("eos", True)
    try:
        return Strings(tuple(zip(targets, weights, strict=True)), record["request"], tuple(response), eos)
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}, in {name!r}.") from None
