"""Part-of-speech tags by word, kept in tables so that spaCy is seldom needed.

One table ships in `assets/`; words outside it are tagged once and kept in the cache folder. A table
serves every tokenizer, since it is keyed by word, and no other pipeline, pipeline version or
version of the rules, since its name and first line say which made it.

`python -m dpexplore.targets.make_pos_table` rebuilds the shipped table.
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from dpexplore.files import write_file
from dpexplore.shipped import ASSETS
from dpexplore.targets.pos_tagger import WordTags, chosen_pipeline, load_tagger, table_key

SHIPPED_TABLE = ASSETS / "pos_words.tsv.gz"
_MAX_TABLE_CHARACTERS = 50_000_000

_tables: dict[str, dict[str, WordTags]] = {}
_lock = threading.RLock()


def tags_of(words: Iterable[str]) -> tuple[dict[str, WordTags], str]:
    """Tags of each word by the pipeline in use, and what names that pipeline and the rules.

    Words in no table are tagged here, about 1,000 a second, and remembered. InputError without a pipeline.
    """
    pipeline, version = chosen_pipeline()
    key = table_key(pipeline, version)
    with _lock:
        table = _tables.get(key)
        if table is None:
            table = _tables[key] = read_table(SHIPPED_TABLE, key) | read_table(_cached_table(key), key)
        wanted = list(dict.fromkeys(words))
        missing = [word for word in wanted if word not in table]
        if missing:
            table |= load_tagger(pipeline).tag(missing)
            shipped = read_table(SHIPPED_TABLE, key)
            _keep({word: tags for word, tags in table.items() if word not in shipped}, key)
        return {word: table[word] for word in wanted}, key


def read_table(path: Path, key: str) -> dict[str, WordTags]:
    """The table in a file; empty if there is none, or if it was made by something other than `key`."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            first, *lines = stream.read(_MAX_TABLE_CHARACTERS).splitlines()
        if first != f"# {key}":
            return {}
        rows = (line.split("\t") for line in lines)
        return {word: WordTags(paper, strict) for word, paper, strict in rows}
    except (OSError, EOFError, ValueError):  # absent, cut short, or not a table: it is only a cache
        return {}


def write_table(path: Path, table: Mapping[str, WordTags], key: str) -> None:
    """Write a table, the same bytes for the same tags."""
    lines = [f"# {key}", *(f"{word}\t{tags.paper}\t{tags.strict}" for word, tags in sorted(table.items()))]
    write_file(path, gzip.compress("\n".join(lines).encode(), mtime=0))


def _cached_table(key: str) -> Path:
    from dpexplore.models.default_model import cache_folder

    return cache_folder() / f"pos_{key}.tsv.gz"


def _keep(table: Mapping[str, WordTags], key: str) -> None:
    path = _cached_table(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, table, key)
    except OSError:
        pass  # a cache that cannot be written does not stop the tags
