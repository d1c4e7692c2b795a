"""The capsule: a run's JSON record, from which anyone can replay it."""

from __future__ import annotations

import base64
import math
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpexplore.tuning.init.layout import NO_TOKEN
from dpexplore.tuning.record.outcome import RecordedRun
from dpexplore.tuning.record.schema import FORMAT, FORMAT_VERSION, ResultRecord
from dpexplore.tuning.record.steps import TuneResult


def describe_run(run: RecordedRun) -> dict[str, Any]:
    """The part of a capsule that is known when a run begins: what was asked for, of which model."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "name": "",
        "model": {
            "name": run.lm.name,
            "identity": run.lm.identity,
            "device": run.lm.device.type,
            "dtype": run.lm.dtype_name,
            "dtype_reason": run.lm.dtype_reason,
        },
        "libraries": library_versions(),
        "resumed_from": run.resumed_from,
        "target": {
            "recipe": run.target.recipe,
            "provenance": run.target.provenance,
            "entropy_nats": run.target.entropy_nats,
        },
        "config": run.config.to_dict(),
    }


def make_capsule(run: RecordedRun, result: TuneResult) -> dict[str, Any]:
    """Everything that made a result and that came of it, as JSON-ready values; KL and entropy in nats."""
    return {
        **describe_run(run),
        "result": {
            **ResultRecord.of(result).model_dump(),
            "prompt_embeds": None if result.prompt_ids is not None else encode_array(result.prompt_embeds),
        },
        "restarts": [_restart(run, i, kl) for i, kl in enumerate(result.kl_nats_per_restart)],
        "history": {
            "kl_nats": [[_rounded(kl) for kl in step.kl_nats] for step in run.steps],
            "entropy_nats": [[_rounded(nats) for nats in step.entropy_nats] for step in run.steps],
            "evaluations": run.steps[-1].evaluations if run.steps else [],
        },
    }


def describe_best(run: RecordedRun) -> dict[str, Any] | None:
    """The best prompt of a run that is still moving, as one of a capsule's `restarts`; None before the first step."""
    best = run.best_prompt()
    if best is None or not math.isfinite(best.loss):
        return None
    return {
        "restart": best.restart,
        "reason": "cancelled",
        "steps": len(run.steps),
        "evaluations": sum(run.steps[-1].evaluations) if run.steps else 0,
        "seconds": round(time.monotonic() - run.started, 3),
        "loss": best.loss,
        "kl_nats": best.kl_nats,
        "ids": best.ids.tolist(),
        "embeds": encode_array(best.embeds) if bool((best.ids == NO_TOKEN).any()) else None,
    }


def interrupted_capsule(
    head: dict[str, Any],
    best: dict[str, Any],
    kl_nats: list[list[float | None]],
    entropy_nats: list[list[float | None]],
) -> dict[str, Any]:
    """The capsule of a run that was cut off, from what was kept of it: `describe_run`, `describe_best`, its steps.

    What only the end of a run measures is missing; `replay.restore` measures it.
    """
    restarts = head["config"]["restarts"]
    columns = [[row[i] for row in kl_nats if i < len(row)] for i in range(restarts)]
    reached = [min((kl for kl in column if kl is not None), default=None) for column in columns]
    soft = best["embeds"] is not None
    record = {key: value for key, value in best.items() if key != "restart"}
    return {
        **head,
        "result": {
            "status": "cancelled",
            "kl_nats": best["kl_nats"],
            "kl_nats_per_restart": reached,
            "best_restart": best["restart"],
            "prompt_ids": None if soft else best["ids"],
            "prompt_embeds": best["embeds"],
            "scored_in": head["model"]["dtype"],
            "kl_search_nats": None,
            "steps": best["steps"],
            "evaluations": best["evaluations"],
            "seconds": best["seconds"],
        },
        "restarts": [record if i == best["restart"] else None for i in range(restarts)],
        "history": {"kl_nats": kl_nats, "entropy_nats": entropy_nats, "evaluations": []},
    }


def library_versions() -> dict[str, str]:
    """What a result may depend on beside the weights."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def encode_array(array: Tensor) -> dict[str, Any]:
    """A float32 tensor as JSON: its shape, and its little-endian bytes in base64."""
    data = array.detach().cpu().float().contiguous().numpy().astype("<f4")
    return {
        "dtype": "float32",
        "shape": list(data.shape),
        "base64": base64.b64encode(data.tobytes()).decode(),
    }


def decode_array(record: dict[str, Any]) -> Tensor:
    """The tensor of `encode_array`."""
    data = np.frombuffer(base64.b64decode(record["base64"]), dtype="<f4")
    return torch.from_numpy(data.reshape(record["shape"]).astype(np.float32))


def _restart(run: RecordedRun, restart: int, kl_nats: float | None) -> dict[str, Any] | None:
    """Where a restart's best prompt stands, so that it can go on from there; None if it has none."""
    outcome = run.outcomes.get(restart)
    if outcome is None or outcome.loss == math.inf:
        return None
    has_soft = bool((outcome.ids == NO_TOKEN).any())
    return {
        "reason": outcome.reason,
        "steps": outcome.steps,
        "evaluations": outcome.evaluations,
        "loss": outcome.loss,
        "kl_nats": kl_nats,
        "ids": outcome.ids.tolist(),
        "embeds": encode_array(outcome.embeds) if has_soft else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
