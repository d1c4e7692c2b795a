"""Results on disk: one Parquet file a shard, there whole or not at all, every problem once."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from dpexplore.errors import InputError
from dpexplore.experiments.problems import Problem, content_id
from dpexplore.files import reason, remove_leftovers, write_file

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        ("model", pa.string()),
        ("identity", pa.string()),
        ("dtype", pa.string()),
        ("recipe", pa.string()),
        ("settings", pa.string()),  # canonical JSON of the tuning's config
        ("restart", pa.int32()),
        ("target_entropy_nats", pa.float64()),
        ("kl_nats", pa.float64()),  # tune: the restart's lowest KL(p‖q); null if it was never finite
        ("entropy_nats", pa.float64()),  # tune: entropy of q there
        ("first_kl_nats", pa.float64()),  # tune: where it began
        ("reason", pa.string()),  # tune: converged, max_steps, nonfinite; floor: converged, max_iterations, no_head
        ("steps", pa.int32()),
        ("evaluations", pa.int64()),
        ("prompt_ids", pa.list_(pa.int64())),  # tune: without soft tokens
        ("floor_nats", pa.float64()),  # floor: certified lower bound
        ("head_optimum_nats", pa.float64()),  # floor: estimate
        ("unconstrained_nats", pa.float64()),  # floor: classical softmax bottleneck
        ("names", pa.list_(pa.string())),  # shape: ranks; pos_counts: tags, and why tokens have none
        ("values", pa.list_(pa.float64())),  # shape: probabilities; pos_counts: tokens
        ("seconds", pa.float64()),  # metadata from here on
        ("device", pa.string()),
        ("libraries", pa.string()),
        ("host", pa.string()),
    ]
)


@dataclass(frozen=True)
class Listing:
    """What one sweep asked of one model: the problems' ids with their groups and labels."""

    sweep: str
    figure: str
    title: str
    size: str
    model: str
    identity: str
    ids: list[str] = field(repr=False)
    groups: list[str] = field(repr=False)
    labels: list[dict[str, Any]] = field(repr=False)


class Store:
    """A folder of results. Reading needs no lock; writing needs `locked()`, which one driver at a time holds."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.results = self.folder / "results"
        self.sweeps = self.folder / "sweeps"
        self.set_aside = self.folder / "corrupt"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other drivers out. InputError if one is at work, or the folder cannot be written to."""
        try:
            for folder in (self.results, self.sweeps):
                folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "lock").acquire(blocking=False)
        except Timeout:
            raise InputError(
                f"Another sweep is writing to {self.folder}; wait for it, or give another --store."
            ) from None
        except OSError as error:
            raise InputError(f"The store {self.folder} cannot be written to ({error.strerror}).") from error
        with lock:
            for folder in (self.results, self.sweeps):
                remove_leftovers(folder)
            yield

    def commit(self, rows: Sequence[dict[str, Any]]) -> Path:
        """Add results as one shard. InputError, and nothing written, if the disk is full."""
        table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
        path = self.results / f"{content_id(sorted(row['id'] for row in rows))}.parquet"
        _write_whole(path, table)
        return path

    def read(self, ids: Iterable[str] | None = None, columns: list[str] | None = None) -> pa.Table:
        """All results, or those of some ids, each problem once; shards that cannot be read are left out."""
        wanted = None if columns is None else list(dict.fromkeys(["id", *columns]))
        tables = [table for path in self._shards() if (table := _read_shard(path, wanted)) is not None]
        schema = SCHEMA if wanted is None else pa.schema([SCHEMA.field(name) for name in wanted])
        table = pa.concat_tables(tables).cast(schema) if tables else schema.empty_table()
        chosen = None if ids is None else set(ids)
        seen: set[str] = set()
        keep = []
        for place, name in enumerate(table["id"].to_pylist()):
            if name not in seen and (chosen is None or name in chosen):
                seen.add(name)
                keep.append(place)
        return table.take(pa.array(keep, pa.int64()))

    def done(self) -> set[str]:
        """Ids of all problems that have results."""
        return set(self.read(columns=["id"])["id"].to_pylist())

    def put_corrupt_aside(self) -> list[Path]:
        """Move shards that cannot be read out of the way, so that their problems are computed again; where to."""
        moved = []
        for path in self._shards():
            if _read_shard(path, None) is None:
                self.set_aside.mkdir(exist_ok=True)
                place = self.set_aside / f"{path.stem}-{uuid.uuid4().hex[:8]}.parquet"
                shutil.move(path, place)
                moved.append(place)
        return moved

    def write_listing(self, listing: Listing) -> None:
        """Remember what a sweep is made of, so that figures know which results are theirs."""
        about = {key: getattr(listing, key) for key in ("sweep", "figure", "title", "size", "model", "identity")}
        table = pa.table(
            {
                "id": listing.ids,
                "group": listing.groups,
                "labels": [json.dumps(labels, sort_keys=True) for labels in listing.labels],
            }
        ).replace_schema_metadata({"about": json.dumps(about)})
        _write_whole(self.sweeps / f"{listing.sweep}.{content_id(listing.model)[:8]}.parquet", table)

    def listings(self) -> list[Listing]:
        """Every sweep that was begun here, one entry a model."""
        found = []
        for path in sorted(self.sweeps.glob("*.parquet")):
            with suppress(OSError, pa.ArrowInvalid, KeyError, ValueError):  # the next sweep writes it again
                table = pq.read_table(path)
                about = json.loads((table.schema.metadata or {})[b"about"])
                labels = [json.loads(text) for text in table["labels"].to_pylist()]
                found.append(Listing(**about, ids=table["id"].to_pylist(), groups=table["group"].to_pylist(),
                                     labels=labels))  # fmt: skip
        return found

    def _shards(self) -> list[Path]:
        return sorted(self.results.glob("*.parquet"))


def result_row(problem: Problem, **numbers: Any) -> dict[str, Any]:
    """A row of the store: the problem, and what came of it."""
    return {
        "id": problem.id,
        "kind": problem.kind,
        "model": problem.model.name,
        "identity": problem.model.identity,
        "dtype": problem.model.dtype,
        "recipe": problem.recipe,
        "settings": problem.settings,
        "restart": problem.restart,
        **numbers,
    }


def _read_shard(path: Path, columns: list[str] | None) -> pa.Table | None:
    try:
        return pq.ParquetFile(path).read(columns=columns)
    except FileNotFoundError:  # set aside by the driver while we read
        return None
    except (OSError, pa.ArrowException):
        return None


def _write_whole(path: Path, table: pa.Table) -> None:
    """After a crash the file is there whole, or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    try:
        write_file(path, memoryview(sink.getvalue()))
    except OSError as error:
        raise InputError(
            f"Results could not be written to {path.parent} ({reason(error)}); what was committed before is kept, and "
            "the same command continues from there."
        ) from error
