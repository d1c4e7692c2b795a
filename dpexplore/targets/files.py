"""Targets from files (.npz, .npy, CSV, JSON) and to files (.npz)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.files import reason, replacing
from dpexplore.targets.arrays import read_array
from dpexplore.targets.csv_tables import decoded, read_table
from dpexplore.targets.json_tables import read_json
from dpexplore.targets.listed import Kind, Rest, TokensAre, listed_target
from dpexplore.targets.recipe import Provenance
from dpexplore.targets.target import Target

if TYPE_CHECKING:
    from dpexplore.models.language_model import LanguageModel

MAX_FILE_BYTES = 64 * 2**20
"""Largest file read; 256,000 tokens with their texts take a tenth of it."""
ARRAYS, TABLES = (".npz", ".npy"), (".csv", ".tsv", ".json")

_CURES = {
    (".xlsx", ".xls", ".ods", ".parquet", ".feather"): "save the table as CSV",
    (".txt", ".dat"): "call a table .csv, whatever separates its columns",
    (".gz", ".zip", ".xz", ".bz2", ".zst"): "unpack it first",
    (".pt", ".pth", ".bin", ".safetensors", ".pkl"): "save the tensor by numpy.save(name, tensor.float().numpy())",
    (".jsonl", ".ndjson"): "put its lines into one list, as in [{…}, {…}]",
}


def save_target(target: Target, path: str | Path, dtype: Literal["float32", "float64"] = "float64") -> None:
    """Write `probs` `(vocab,)` and the recipe text as a .npz file, which `file(path)` reads back."""
    path = Path(path)
    check_ending(path)
    try:
        with replacing(path) as beside, beside.open("wb") as stream:
            np.savez_compressed(stream, probs=target.probs.numpy().astype(dtype), recipe=np.array(target.recipe))
    except OSError as error:
        raise InputError(f"{path.name!r} cannot be written ({reason(error)}).") from error


def check_ending(path: Path) -> None:
    """InputError if a file's name is not one that a target can be written to."""
    if path.suffix.lower() != ".npz":
        raise InputError(f"A target is written to a .npz file; {path.name!r} has another ending.")


def read_target(
    path: str | Path,
    lm: LanguageModel,
    *,
    kind: Kind | None = None,
    rest: Rest | None = None,
    tokens: TokensAre | None = None,
    array: str | None = None,
) -> tuple[Tensor, Provenance]:
    """Probabilities `(vocab,)` float64 from a file, and how they came about (its digest, what was done).

    `.npz` and `.npy` hold one row over the vocabulary (`array` names one of several). CSV has a token and a number a
    line, JSON an object of them, a list, or a server's answer with its likeliest tokens. `kind` says what the numbers
    are, `tokens` whether whole numbers are ids or digits, `rest` what becomes of probability that a list does not
    account for. InputError for everything that is damaged or ambiguous.
    """
    path = Path(path)
    data = _read(path)
    provenance: Provenance = {"file": path.name, "sha256": hashlib.sha256(data).hexdigest()}
    suffix = path.suffix.lower()
    if suffix in ARRAYS:
        probs, facts = read_array(path.name, data, lm, kind, array)
        return torch.from_numpy(probs), provenance | facts
    listed = read_json(path.name, decoded(path.name, data)) if suffix == ".json" else read_table(path.name, data)
    probs, facts = listed_target(path.name, listed, lm, kind, rest, tokens)
    return probs, provenance | facts


def _read(path: Path) -> bytes:
    if path.suffix.lower() not in ARRAYS + TABLES:
        hint = next((f"; {cure}" for endings, cure in _CURES.items() if path.suffix.lower() in endings), "")
        raise InputError(f"{path.name!r} is not a target file; one ends in {', '.join(ARRAYS + TABLES)}{hint}.")
    try:
        if not path.is_file():  # a device or a pipe would never end
            raise InputError(f"There is no file {path.name!r}.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path.name!r} is larger than {MAX_FILE_BYTES // 2**20} MiB, the most that is read.")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, and InputError itself
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name!r} cannot be read ({getattr(error, 'strerror', None) or error}).") from error
