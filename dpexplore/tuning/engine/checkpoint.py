"""A run carried from one engine to another, in another process or on another device, as if it had never stopped."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import torch

from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.engine.engine import Engine
from dpexplore.tuning.engine.preparation import SoftPart
from dpexplore.tuning.run import Run


class Checkpoint(NamedTuple):
    """All that a run knows between two steps; for processes that trust each other, being pickled."""

    record: bytes
    """Its settings and its `RunSnapshot`."""
    rows: bytes
    """The state of its rows, on the model's device."""


def checkpoint(engine: Engine, run: Run) -> Checkpoint:
    """Save a run that `engine` steps. Call between two steps; the run goes on at the next one."""
    engine.pause(run)
    record = {
        "target": run.target,
        "config": run.config.to_dict(),
        "starts": run.starts,
        "resumed_from": run.resumed_from,
        "owner": run.owner,
        "snapshot": run.snapshot,
        "soft": checkpoint(engine, run.preparation.soft) if isinstance(run.preparation, SoftPart) else None,
    }
    return Checkpoint(pack(record), pack(run.parked))


def restore(engine: Engine, saved: Checkpoint) -> Run:
    """A run that has been elsewhere, prepared for `engine`: once queued, it makes the step that it would have made."""
    record = unpack(saved.record, torch.device("cpu"))
    rows = unpack(saved.rows, engine.lm.device)
    config = TuneConfig.from_dict(record["config"])
    run = engine.prepare(record["target"], config, record["starts"], record["resumed_from"], record["owner"])
    if isinstance(run.preparation, SoftPart):
        run.preparation.go_on(restore(engine, record["soft"]))
    run.snapshot, run.parked = record["snapshot"], rows
    return run


def resume(engine: Engine, saved: Checkpoint) -> Run:
    """Restore a run and queue it in `engine`."""
    run = restore(engine, saved)
    engine.queue(run)
    return run


def pack(value: Any) -> bytes:
    """Tensors and what holds them, as bytes that carry no handle of this process."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpack(data: bytes, device: torch.device) -> Any:
    """What was packed, its tensors on `device`. Only for what a process of ours has packed: it is unpickled."""
    return torch.load(io.BytesIO(data), map_location=device, weights_only=False)
