"""A capsule taken up again: its prompt scored anew, or its restarts carried on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target, parse_recipe
from dpexplore.tuning.capsule import FORMAT, FORMAT_VERSION, decode_array, library_versions
from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.engine import Engine
from dpexplore.tuning.run import Run, Start
from dpexplore.tuning.sequence import objective_for
from dpexplore.tuning.server import EngineServer

REPLAY_TOLERANCE_NATS = 1e-3


@dataclass(frozen=True)
class Replay:
    """A capsule's prompt, scored again."""

    recorded_kl_nats: float
    kl_nats: float
    same_weights: bool
    """Whether the model's weights are those of the capsule, by their identity."""
    same_libraries: bool
    """Whether Python, torch and transformers have the versions of the capsule."""

    @property
    def agrees(self) -> bool:
        """Whether the two KL differ by no more than 1e-3 nats."""
        return abs(self.kl_nats - self.recorded_kl_nats) <= REPLAY_TOLERANCE_NATS


def load_capsule(path: Path) -> dict[str, Any]:
    """Read a capsule's file. InputError if it is missing or no capsule."""
    try:
        capsule = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The capsule {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is no capsule: a capsule is a JSON file that `tune --out` writes.") from error
    if not isinstance(capsule, dict) or capsule.get("format") != FORMAT:
        raise InputError(f"{path} is no capsule: a capsule is a JSON file that `tune --out` writes.")
    if capsule.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"The capsule {path} has the format {capsule.get('format_version')!r}; this version reads {FORMAT_VERSION}."
        )
    return capsule


def target_of(lm: LanguageModel, capsule: dict[str, Any]) -> Target:
    """The target a capsule was tuned towards, built again from its recipe."""
    return parse_recipe(capsule["target"]["recipe"]).build(lm)


def replay(lm: LanguageModel, capsule: dict[str, Any], target: Target | None = None) -> Replay:
    """Score a capsule's best prompt on `lm`, without any cache.

    `target` spares building it again. InputError if the prompt does not fit the model.
    """
    objective = objective_for(lm, target or target_of(lm, capsule))
    result = capsule["result"]
    with torch.no_grad():
        if result["prompt_ids"] is not None:
            embeds = lm.embed(torch.tensor([_known(lm, result["prompt_ids"])]))
        else:
            embeds = _fitting(lm, decode_array(result["prompt_embeds"]))[None].to(lm.device)
        kl = float(objective.score(lm, embeds.float(), [objective]).kl)
    libraries = capsule["libraries"]
    same = all(libraries.get(name) == now for name, now in library_versions().items())
    return Replay(result["kl_nats"], kl, capsule["model"]["identity"] == lm.identity, same)


def resume(
    lm: LanguageModel,
    capsule: dict[str, Any],
    target: Target | None = None,
    engine: Engine | EngineServer | None = None,
    **changes: Any,
) -> Run:
    """Carry a capsule's restarts on, each from its best prompt, by the capsule's config with `changes`.

    What is carried over is the prompts and the count of the steps behind them; the optimiser begins afresh, so the run
    goes on from where it stood, and not as it would have gone on. InputError if no restart has a prompt.
    """
    config = TuneConfig.from_dict({**capsule["config"], **changes})
    records = [record for record in capsule["restarts"] if record is not None]
    if not records:
        raise InputError("The capsule holds no prompt to go on from: no restart of it stayed finite.")
    config = TuneConfig.from_dict({**config.to_dict(), "restarts": len(records), "screen": 1})
    starts = [_start(lm, record) for record in records]
    return (engine or Engine(lm)).submit(
        target or target_of(lm, capsule), config, starts, resumed_from=_behind(capsule)
    )


def _behind(capsule: dict[str, Any]) -> dict[str, Any]:
    """What has been spent before: over all the runs that a capsule carries on."""
    before = capsule.get("resumed_from") or {"steps": 0, "evaluations": 0}
    result = capsule["result"]
    return {
        "steps": before["steps"] + result["steps"],
        "evaluations": before["evaluations"] + result["evaluations"],
        "kl_nats": result["kl_nats"],
    }


def _start(lm: LanguageModel, record: dict[str, Any]) -> Start:
    """A restart's best prompt as ids and embeddings."""
    ids = torch.tensor(record["ids"])
    if record["embeds"] is not None:
        return ids, _fitting(lm, decode_array(record["embeds"]))
    with torch.no_grad():
        return ids, lm.embed(torch.tensor([_known(lm, record["ids"])]))[0].float()


def _known(lm: LanguageModel, ids: list[int]) -> list[int]:
    if max(ids) >= lm.embedding_table.shape[0]:
        raise InputError(f"The capsule's prompt holds the id {max(ids):,}, which {lm.name} does not have.")
    return ids


def _fitting(lm: LanguageModel, embeds: torch.Tensor) -> torch.Tensor:
    if embeds.shape[-1] != lm.hidden_size:
        raise InputError(
            f"The capsule's soft tokens have {embeds.shape[-1]:,} numbers each, but {lm.name} takes "
            f"{lm.hidden_size:,}; soft prompts belong to one model."
        )
    return embeds
