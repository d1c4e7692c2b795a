"""Targets from NumPy's files: one array over the vocabulary, of probabilities, weights, log-probabilities or logits.

Files are treated as hostile: headers are checked before anything is expanded, nothing is unpickled.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from dpexplore.errors import InputError
from dpexplore.targets.listed import Kind

if TYPE_CHECKING:
    from dpexplore.models.language_model import LanguageModel

_HEADER_BYTES = 10_000  # NumPy's own limit for an array's header
_SUFFIX = ".npy"
_BFLOAT16 = np.dtype("V2")  # NumPy has no bfloat16 and stores it as two opaque bytes
_MANTISSA_BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
_SMALLEST = {"bfloat16": 1e-40, "float16": 2.0**-24, "float32": 1e-45, "float64": 5e-324}
MOST_NAMES = 50
"""Arrays that are offered by name."""
SUM_TOLERANCE = 1e-4
"""Of any precision: programs normalise in float32 and print."""


def read_array(
    name: str, data: bytes, lm: LanguageModel, kind: Kind | None, chosen: str | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Probabilities `(vocab,)` float64 that sum to 1, and what was done to get them.

    One array under any name; `(vocab,)`, `(1, vocab)` or `(vocab, 1)`; float16, bfloat16, float32 or float64. `chosen`
    names one of several arrays; whole numbers are read as `kind` says. InputError in one sentence for everything else.
    """
    try:
        if data[:6] == b"\x93NUMPY":
            stored, precision = _array(name, "the array", io.BytesIO(data), len(data), lm, kind)
        else:
            stored, precision = _of_archive(name, data, lm, kind, chosen)
    except InputError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, KeyError) as error:
        raise InputError(f"{name!r} is no .npz file that can be read.") from error
    facts: dict[str, Any] = {} if precision in ("float32", "float64") else {"precision": precision}
    if len(stored) < lm.vocab_size:
        facts["padded_rows"] = lm.vocab_size - len(stored)
    probs = _probabilities(name, stored, kind, precision)
    return np.concatenate([probs, np.zeros(lm.vocab_size - len(probs))]), facts


def array_names(path: Path) -> list[str]:
    """Names of the arrays in an .npz file, at most `MOST_NAMES`; none for a file of another kind."""
    if not path.is_file():  # a pipe would keep its reader for ever
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return _names(archive)[:MOST_NAMES]
    except (zipfile.BadZipFile, OSError, ValueError):
        return []


def _names(archive: zipfile.ZipFile) -> list[str]:
    names = [each.removesuffix(_SUFFIX) for each in archive.namelist() if each.endswith(_SUFFIX)]
    return [each for each in names if each != "recipe"]  # what `target --out` writes beside `probs`


def _of_archive(
    name: str, data: bytes, lm: LanguageModel, kind: Kind | None, chosen: str | None
) -> tuple[np.ndarray, str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        arrays = _names(archive)
        if chosen is None:
            chosen = _only_row(name, archive, arrays, lm)
        if chosen is None or chosen not in arrays:
            held = ", ".join(map(repr, arrays[:8])) or "nothing"
            raise InputError(f"{name!r} holds {held}; say which array it is by file(…, array='name').")
        member = archive.getinfo(chosen + _SUFFIX)
        with archive.open(member) as stream:
            return _array(name, f"`{chosen}`", stream, member.file_size, lm, kind)


def _only_row(name: str, archive: zipfile.ZipFile, arrays: list[str], lm: LanguageModel) -> str | None:
    """The array that is meant where none is named: `probs`, the only one, or the only row of floats."""
    rows, orders = [], []
    for each in arrays[:MOST_NAMES] if len(arrays) > 1 else ():
        with archive.open(each + _SUFFIX) as stream:
            shape, dtype = _header(stream)
        if _is_row(shape) and int(np.prod(shape)) in (lm.vocab_size, len(lm.tokenizer)):
            (rows if dtype.kind == "f" or dtype == _BFLOAT16 else orders).append(each)
    chosen = "probs" if "probs" in arrays else arrays[0] if len(arrays) == 1 else rows[0] if len(rows) == 1 else None
    if chosen is not None and (orders := [each for each in orders if each != chosen]):
        raise InputError(
            f"{name!r} holds {chosen!r} and {orders[0]!r}, which may list the tokens in another order than the model's "
            f"ids; write file(…, array={chosen!r}) if it does not."
        )
    return chosen


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    return shape, dtype


def _is_row(shape: tuple[int, ...]) -> bool:
    return bool(shape) and sum(side != 1 for side in shape) <= 1


def _array(
    name: str, place: str, stream: IO[bytes], size: int, lm: LanguageModel, kind: Kind | None
) -> tuple[np.ndarray, str]:
    """The row of numbers in a .npy stream, its header checked before its data are expanded."""
    shape, dtype = _header(stream)
    if not _is_row(shape) or (dtype.kind not in "fiu" and dtype != _BFLOAT16):
        raise InputError(f"{place} in {name!r} has shape {shape} and type {dtype}; it is not a row of numbers.")
    if dtype.kind in "iu" and kind is None:
        raise InputError(f"{place} in {name!r} holds whole numbers; add kind='weights' if they are counts.")
    count = int(np.prod(shape))
    if count not in (lm.vocab_size, len(lm.tokenizer)) or count > lm.vocab_size:
        raise InputError(f"{name!r} has {count:,} numbers, but the model's vocabulary has {lm.vocab_size:,} tokens.")
    wanted = count * dtype.itemsize
    if size > wanted + 2 * _HEADER_BYTES:
        raise InputError(f"{place} in {name!r} is larger than its own header says.")
    raw = stream.read(wanted)
    if dtype != _BFLOAT16:
        return np.frombuffer(raw, dtype).astype(np.float64), dtype.newbyteorder("=").name
    bits = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).astype(np.float64), "bfloat16"


def _probabilities(name: str, values: np.ndarray, kind: Kind | None, precision: str) -> np.ndarray:
    logs = kind in ("logprobs", "logits")
    if np.isnan(values).any() or (values == np.inf).any() or (not logs and np.isinf(values).any()):
        raise InputError(f"{name!r} holds NaN or infinite values; only log-probabilities and logits may be −inf.")
    if logs:
        top = values.max()
        if top == -np.inf:
            raise InputError(f"Every value of {name!r} is −inf; at least one token needs a probability.")
        total = np.exp(values - top).sum()
        mass = float(np.exp(min(top, 700.0)) * total)
        if kind == "logprobs" and abs(mass - 1) > 0.02 + _lost(precision, len(values)):
            raise InputError(
                f"The log-probabilities of {name!r} add up to a probability of {mass:.4g}, not 1; they are natural "
                "logarithms, and kind='logits' normalises other scores."
            )
        return np.exp(values - top) / total
    if (values < 0).any():
        raise InputError(f"{name!r} holds negative values{'' if kind else f'; {_look(values)}'}.")
    total = float(values.sum())
    if kind == "weights" and not total > 0:
        raise InputError(f"Every number of {name!r} is 0; at least one token needs a weight.")
    if kind != "weights" and abs(total - 1) > SUM_TOLERANCE + _lost(precision, len(values)):
        hint = "" if kind else "; add kind='weights' for counts or percent, kind='logits' for logits"
        raise InputError(f"{name!r} sums to {total:.6g}, but probabilities sum to 1{hint}.")
    return values / total


def _look(values: np.ndarray) -> str:
    mass = float(np.exp(np.clip(values, None, 50)).sum())
    if (values <= 0).all() and abs(mass - 1) < 0.05:
        return "these look like log-probabilities, add kind='logprobs'"
    return "these look like logits, add kind='logits' (or kind='logprobs' for log-probabilities)"


def _lost(precision: str, count: int) -> float:
    """How far rounding to a precision can move the sum of `count` probabilities: relatively, and where they vanish."""
    return 2.0 ** -_MANTISSA_BITS.get(precision, 11) + count * _SMALLEST.get(precision, 2.0**-24) / 2
