"""What lies in a model folder, looked at before it is read: pointers, adapters, files that never end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpexplore.errors import InputError

MAX_JSON_BYTES = 64 * 2**20
"""Largest config.json or tokenizer.json read here."""
ADAPTER_CONFIG = "adapter_config.json"
_LFS = b"version https://git-lfs"


def check_pointers(folder: Path, name: str) -> None:
    """InputError if git fetched pointers in place of files that git-lfs keeps elsewhere."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.stat().st_size < 1024:
            with file.open("rb") as stream:
                if stream.read(len(_LFS)) == _LFS:
                    raise InputError(
                        f"{file.name} of {name} is a git-lfs pointer, not the file itself; run `git lfs pull` in the "
                        "folder, or download the model again."
                    )


def read_object(folder: Path, file_name: str, name: str) -> dict[str, Any]:
    """A JSON object in a model's folder. FileNotFoundError if it is not there; InputError if it is none."""
    file = folder / file_name
    damaged = InputError(f"The {file_name} of {name} is damaged; download or save the model again.")
    if file.exists() and not file.is_file():  # a pipe or a device would never end
        raise damaged
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise damaged
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise damaged from error
    if not isinstance(raw, dict):
        raise damaged
    return raw


def adapter_base(folder: Path, name: str) -> str | None:
    """The base model's name if the folder holds a PEFT adapter and no model; None if it holds a model."""
    if (folder / "config.json").exists() or not (folder / ADAPTER_CONFIG).exists():
        return None
    base = read_object(folder, ADAPTER_CONFIG, name).get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        raise InputError(f"{name} is an adapter whose {ADAPTER_CONFIG} names no base model; write its name there.")
    return base
