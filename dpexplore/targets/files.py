"""Targets from files (.npz, CSV, JSON of token and probability) and to files (.npz).

Files are treated as hostile: sizes are checked before anything is expanded, nothing is unpickled.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.targets.recipe import Provenance
from dpexplore.targets.target import Target
from dpexplore.targets.weights import spread_weights

if TYPE_CHECKING:
    from dpexplore.models.language_model import LanguageModel

MAX_FILE_BYTES = 64 * 2**20
"""Largest file read; 256,000 tokens with their texts take a tenth of it."""
_HEADER_BYTES = 10_000  # NumPy's own limit for an array's header

Weights = list[tuple[str | int, float]]


def save_target(target: Target, path: str | Path, dtype: Literal["float32", "float64"] = "float64") -> None:
    """Write `probs` `(vocab,)` and the recipe text as a .npz file, which `file(path)` reads back."""
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise InputError(f"A target is written to a .npz file; {path.name!r} has another ending.")
    try:
        with path.open("wb") as stream:
            np.savez_compressed(stream, probs=target.probs.numpy().astype(dtype), recipe=np.array(target.recipe))
    except OSError as error:
        raise InputError(f"{path.name!r} cannot be written ({error.strerror or error}).") from error


def read_target(path: str | Path, lm: LanguageModel) -> tuple[Tensor, Provenance]:
    """Probabilities `(vocab,)` float64 from a file, and its digest.

    `.npz` holds `probs` `(vocab,)`. CSV has lines `token,probability`, JSON an object of them, a list
    of such pairs, or a list of objects with `token` (or `id`) and `p`; these are normalised. A CSV
    whose header begins with `id` gives ids in place of texts. InputError for everything else.
    """
    path = Path(path)
    data = _read(path)
    provenance: Provenance = {"file": path.name, "sha256": hashlib.sha256(data).hexdigest()}
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _from_npz(path.name, data, lm), provenance
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path.name!r} is no UTF-8 text; CSV and JSON files are.") from None
    weights = _from_csv(path.name, text) if suffix == ".csv" else _from_json(path.name, text)
    for token, weight in weights:
        if not math.isfinite(weight) or weight < 0:
            raise InputError(f"{path.name!r} gives {token!r} the probability {weight}; 0 or more is accepted.")
    return spread_weights(lm, weights), provenance | {"sum": sum(weight for _, weight in weights)}


def _read(path: Path) -> bytes:
    if path.suffix.lower() not in (".npz", ".csv", ".json"):
        raise InputError(f"{path.name!r} is no target file; .npz, .csv and .json are accepted.")
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


def _from_npz(name: str, data: bytes, lm: LanguageModel) -> Tensor:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            member = archive.getinfo("probs.npy")
            with archive.open(member) as stream:
                values = _array(name, stream, member.file_size, lm.vocab_size)
    except KeyError:
        raise InputError(f"{name!r} holds no array `probs`.") from None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name!r} is no .npz file that can be read.") from error
    if not np.isfinite(values).all() or (values < 0).any():
        raise InputError(f"{name!r} holds NaN, infinite or negative values; probabilities are numbers from 0 to 1.")
    return torch.from_numpy(values)


def _array(name: str, stream: Any, size: int, vocab_size: int) -> np.ndarray:
    """The float array in a .npy stream, its header checked before its data are expanded."""
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype.kind != "f" or len(shape) != 1:
        raise InputError(f"`probs` in {name!r} is no row of floating-point numbers.")
    if shape[0] != vocab_size:
        raise InputError(
            f"{name!r} has {shape[0]:,} probabilities, but the model's vocabulary has {vocab_size:,} tokens."
        )
    wanted = shape[0] * dtype.itemsize
    if size > wanted + 2 * _HEADER_BYTES:
        raise InputError(f"`probs` in {name!r} is larger than its own header says.")
    return np.frombuffer(stream.read(wanted), dtype).astype(np.float64)


def _number(name: str, place: str, value: object) -> float:
    try:
        return float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else float("x")
    except (ValueError, OverflowError):
        raise InputError(f"{place} of {name!r} has {str(value)[:40]!r} where a probability should be.") from None


def _from_csv(name: str, text: str) -> Weights:
    weights: Weights = []
    by_id = False
    try:
        for line, row in enumerate(csv.reader(io.StringIO(text), strict=True), start=1):
            if not row:
                continue
            if len(row) != 2:
                raise InputError(
                    f"Line {line} of {name!r} has {len(row)} columns; a token and its probability are two."
                )
            if line == 1 and row[1].strip().lower() in ("p", "prob", "probability", "probs", "weight"):
                by_id = row[0].strip().lower() in ("id", "token_id")
                continue
            weights.append(
                (_token_id(name, f"Line {line}", row[0]) if by_id else row[0], _number(name, f"Line {line}", row[1]))
            )
    except csv.Error as error:
        raise InputError(f"{name!r} is no CSV file that can be read ({error}).") from None
    return weights


def _token_id(name: str, place: str, value: object) -> int:
    try:
        if isinstance(value, str | int) and not isinstance(value, bool):
            return int(value)
    except ValueError:
        pass
    raise InputError(f"{place} of {name!r} has {str(value)[:40]!r} where a token id should be.")


def _from_json(name: str, text: str) -> Weights:
    try:
        # Pairs in place of a dict: a token given twice must be seen.
        parsed = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deep")
        raise InputError(f"{name!r} is no JSON file that can be read ({reason}).") from None
    if isinstance(parsed, _Pairs):
        return [(token, _number(name, f"{token!r}", p)) for token, p in parsed]
    if not isinstance(parsed, list):
        raise InputError(
            f"{name!r} holds no tokens; an object `{{token: probability}}` or a list of pairs is accepted."
        )
    weights: Weights = []
    for index, entry in enumerate(parsed, start=1):
        place = f"Entry {index}"
        fields: dict[str, Any] = {}
        if isinstance(entry, _Pairs):
            fields = dict(entry)
        elif isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str):
            fields = {"token": entry[0], "p": entry[1]}
        token = fields.get("token")
        if "p" not in fields or not (isinstance(token, str) or "id" in fields):
            raise InputError(f'{place} of {name!r} has no token and p; `{{"token": …, "p": …}}` is accepted.')
        # The id goes first: `target --json` writes both, and the text of a lone byte is no token's text.
        chosen = _token_id(name, place, fields["id"]) if "id" in fields else str(token)
        weights.append((chosen, _number(name, place, fields["p"])))
    return weights


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as the pairs it was written in."""
