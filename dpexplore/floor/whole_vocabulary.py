"""Which tokens of a whole vocabulary can ever come first: decided one after the other, kept in a file, resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dpexplore.errors import InputError
from dpexplore.floor.prepared import ranking_solver
from dpexplore.floor.reach import reach_each
from dpexplore.models.default_model import cache_folder
from dpexplore.models.language_model import LanguageModel

Record = dict[str, Any]
NEEDLESS_IN_A_YES = ("margin_bound", "resolution", "above", "proof", "on_model", "seconds")


def reach_all(lm: LanguageModel, out: Path | None = None, *, seconds: float = 60.0) -> Generator[Record]:
    """`Reach.record`s of every token id in order, without their points; a yes is kept short.

    out: a file of JSON lines, one for each token. What it already holds is read instead of decided, the rest is
    appended as it comes, so that a stopped listing goes on where it was. seconds: for each token that is not easy.
    InputError if the file belongs to another model; NoHead if the model has no softmax head.
    """
    head = {"model": lm.identity, "dtype": str(lm.dtype), "resolution": ranking_solver(lm).resolution_nats}
    if out is None:
        yield from _decide(lm, 0, seconds)
        return
    with _opened(out) as file:
        first = file.readline()
        if not first:
            file.write(_line({"head": head}))
        elif json.loads(first).get("head") != head:
            raise InputError(f"{out} lists another model's tokens; name another file, or remove it to begin again.")
        known = 0
        for line in file:
            yield json.loads(line)
            known += 1
        for record in _decide(lm, known, seconds):
            file.write(_line(record))
            yield record


def listing_file(lm: LanguageModel) -> Path:
    """Where the page keeps a model's listing."""
    key = json.dumps([lm.identity, str(lm.dtype)])
    return cache_folder() / "reach" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.jsonl"


def _decide(lm: LanguageModel, first: int, seconds: float) -> Iterator[Record]:
    for found in reach_each(lm, range(first, lm.vocab_size), seconds=seconds):
        record = found.record(with_point=False)
        yield {name: value for name, value in record.items() if not found.can or name not in NEEDLESS_IN_A_YES}


def _opened(path: Path) -> BinaryIO:
    """The file at its beginning, without a last line that was cut off by a kill."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise InputError(f"{path} cannot be written to: {error.strerror}.") from None
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    file.truncate(whole)
    file.seek(0)
    return file


def _line(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
