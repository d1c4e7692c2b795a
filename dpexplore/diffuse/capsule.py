"""The record of an adapter run, kept beside the adapter, from which anyone can replay it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dpexplore.diffuse.adapter import load_adapter
from dpexplore.diffuse.metrics import outcome_fit
from dpexplore.diffuse.record import FORMAT, AdapterCapsule
from dpexplore.diffuse.report import Answers
from dpexplore.diffuse.training import AdapterRun
from dpexplore.errors import InputError
from dpexplore.files import replacing_folder, write_file
from dpexplore.models import LanguageModel
from dpexplore.targets import Strings, parse_recipe
from dpexplore.targets.recorded import changed_prompt, recorded_prompts
from dpexplore.tuning.record.capsule import library_versions
from dpexplore.tuning.record.schema import FORMAT_VERSION, capsule_json, faults_of, finite

CAPSULE_FILE = "capsule.json"
REPLAY_TOLERANCE_NATS = 1e-3


def make_capsule(run: AdapterRun, results: Sequence[Answers]) -> dict[str, Any]:
    """Everything that made an adapter and that came of it, as JSON-ready values."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": run.lm.name,
            "identity": run.lm.identity,
            "device": run.lm.device.type,
            "dtype": run.lm.dtype_name,
        },
        "libraries": {**library_versions(), "peft": version("peft")},
        "config": run.config.to_dict(),
        "targets": [
            {"name": one.name, "recipe": target.recipe, "provenance": target.provenance}
            for one, target in zip(results, run.targets, strict=True)
        ],
        "result": {
            "status": run.status,
            "passes": len(run.steps),
            "seconds": round(run.seconds, 3),
            "answers": [one.to_dict() for one in results],
        },
        "history": {"cross_entropy_nats": [[finite(nats) for nats in step.cross_entropy_nats] for step in run.steps]},
    }


def save_run(run: AdapterRun, results: Sequence[Answers], folder: Path) -> None:
    """Write the adapter in PEFT's format, and the capsule beside it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(folder) as beside:
        run.adapter.save(beside)
        text = json.dumps(make_capsule(run, results), indent=1, ensure_ascii=False, allow_nan=False)
        write_file(beside / CAPSULE_FILE, text)


def load_adapter_capsule(folder: Path) -> dict[str, Any]:
    """The capsule in an adapter's folder. InputError if there is none, or it is damaged."""
    path = folder / CAPSULE_FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no {CAPSULE_FILE}; `{AdapterCapsule.written_by}` writes one.")
    capsule = capsule_json(path)
    if faults := faults_of(str(path), capsule, AdapterCapsule):
        raise InputError(faults[0])
    return capsule


@dataclass(frozen=True)
class AdapterReplay:
    """An adapter's requests, scored again."""

    names: list[str]
    recorded_kl_nats: list[float]
    kl_nats: list[float]
    same_weights: bool
    """Whether the model below the adapter is the capsule's, by its identity."""
    note: str | None = None
    """What else differs from the day of the capsule, in a sentence."""

    @property
    def agrees(self) -> bool:
        """Whether no KL differs by more than 1e-3 nats."""
        pairs = zip(self.kl_nats, self.recorded_kl_nats, strict=True)
        return all(abs(now - then) <= REPLAY_TOLERANCE_NATS for now, then in pairs)


def replay_adapter(lm: LanguageModel, folder: Path) -> AdapterReplay:
    """Score a saved adapter on the requests of its capsule. InputError if it does not fit the model."""
    capsule = load_adapter_capsule(folder)
    adapter = load_adapter(lm, folder)
    kls: list[float] = []
    notes: list[str | None] = []
    for entry in capsule["targets"]:
        recipe = parse_recipe(entry["recipe"])
        if not isinstance(recipe, Strings):
            raise InputError(f"The capsule in {folder} has a target that is not over strings.")
        target = recipe.build(lm, recorded=recorded_prompts(recipe, entry.get("provenance") or {}))
        notes.append(changed_prompt(target.provenance))
        kls.append(outcome_fit(adapter.lm, target).kl_nats)
    recorded = [math.nan if one["kl_nats"] is None else one["kl_nats"] for one in capsule["result"]["answers"]]
    names = [entry["name"] for entry in capsule["targets"]]
    note = next(filter(None, notes), None)
    return AdapterReplay(names, recorded, kls, capsule["model"]["identity"] == lm.identity, note)
