"""Capsules restored: the prompt scored again, or the restarts resumed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target, parse_recipe
from dpexplore.targets.recorded import changed_prompt, recorded_prompts
from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.engine.engine import Engine
from dpexplore.tuning.engine.server import EngineServer
from dpexplore.tuning.init.layout import NO_TOKEN, Layout, Start
from dpexplore.tuning.objectives.next_token import all_divergences, entropy_of, top_overlap
from dpexplore.tuning.objectives.sequences import objective_for
from dpexplore.tuning.record.bounds import Bounds
from dpexplore.tuning.record.build import encode_again, nearest_to_soft
from dpexplore.tuning.record.capsule import decode_array, library_versions
from dpexplore.tuning.record.precision import final_scores, final_scores_of_ids
from dpexplore.tuning.record.schema import finite
from dpexplore.tuning.record.steps import TuneResult
from dpexplore.tuning.run import Run
from dpexplore.wanted import NotWanted, check_wanted

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
    note: str | None = None
    """What else differs from the day of the capsule, in a sentence."""

    @property
    def agrees(self) -> bool:
        """Whether the two KL differ by no more than 1e-3 nats."""
        return abs(self.kl_nats - self.recorded_kl_nats) <= REPLAY_TOLERANCE_NATS


def target_of(lm: LanguageModel, capsule: dict[str, Any]) -> Target:
    """The target a capsule was tuned towards, built again from its recipe and the prompts that it records."""
    recipe = parse_recipe(capsule["target"]["recipe"])
    return recipe.build(lm, recorded=recorded_prompts(recipe, capsule["target"].get("provenance") or {}))


def same_prompts(target: Target, capsule: dict[str, Any]) -> bool:
    """Whether a target was captured from the very prompts that a capsule records of its model, if it records any."""
    recipe, provenance = parse_recipe(capsule["target"]["recipe"]), capsule["target"].get("provenance") or {}
    recorded = recorded_prompts(recipe, provenance)
    today = recorded_prompts(recipe, target.provenance)
    pairs = [(prompt, today[source]) for source, prompt in recorded.items() if source in today]
    return all(then.ids == now.ids for then, now in pairs if then.identity == now.identity)


def replay(lm: LanguageModel, capsule: dict[str, Any], target: Target | None = None) -> Replay:
    """Score a capsule's best prompt on `lm`, without any cache.

    `target` spares building it again. InputError if the prompt does not fit the model.
    """
    target = target or target_of(lm, capsule)
    objective = objective_for(lm, target)
    result = _result_record(capsule)
    kl = float(final_scores(lm, [objective], [_prompt(lm, result)]).kl)
    libraries = capsule["libraries"]
    same = all(libraries.get(name) == now for name, now in library_versions().items())
    same_weights = capsule["model"]["identity"] == lm.identity
    return Replay(result["kl_nats"], kl, same_weights, same, changed_since(lm, capsule, target))


def changed_since(lm: LanguageModel, capsule: dict[str, Any], target: Target) -> str | None:
    """What a chat template says otherwise today than in a capsule, in a sentence; None if nothing.

    target: the capsule's, as `target_of` builds it.
    """
    config, best = TuneConfig.from_dict(capsule["config"]), capsule["restarts"][capsule["result"]["best_restart"]]
    notes = [changed_prompt(target.provenance)]
    if config.chat and capsule["model"]["identity"] == lm.identity:
        today, recorded = Layout.of(lm, config).ids, torch.tensor(best["ids"])
        same = len(today) == len(recorded) and torch.equal(recorded[today >= 0], today[today >= 0])
        notes += [] if same else [_OTHER_TEMPLATE]
    return " ".join(filter(None, notes)) or None


_OTHER_TEMPLATE = (
    "The tokens around the prompt that was found are the recorded ones; the chat template gives others today (it may "
    "write the date)."
)


def restore(lm: LanguageModel, capsule: dict[str, Any], target: Target | None = None) -> TuneResult:
    """The result that a capsule records; what it leaves out, q above all, is measured again on `lm`.

    `target` spares building it again. InputError if the capsule is damaged or does not fit the model.
    """
    try:
        return _restore(lm, capsule, target or target_of(lm, capsule))
    except NotWanted:
        raise
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"The capsule is damaged ({type(error).__name__}: {error}); use an unchanged one.") from error


def _restore(lm: LanguageModel, capsule: dict[str, Any], target: Target) -> TuneResult:
    config, record = TuneConfig.from_dict(capsule["config"]), _result_record(capsule)
    best = capsule["restarts"][record["best_restart"]]
    objective, layout_ids, ids = (
        objective_for(lm, target, config.objective),
        torch.tensor(best["ids"]),
        record["prompt_ids"],
    )
    check_wanted()
    prompt = _prompt(lm, record)
    log_q = final_scores(lm, [objective], [prompt]).log_q[0]
    distances = all_divergences(target.probs, log_q)
    text = None if ids is None else lm.decode(ids[len(Layout.of(lm, config).bos_ids) :])
    check_wanted()
    again = None if text is None else encode_again(lm, text, config.bos)
    measured = {
        "entropy_nats": float(entropy_of(log_q)),
        "slots": str(config.parsed_slots()),
        "prompt_text": text,
        "kl_reencoded_nats": None if again is None else float(final_scores_of_ids(lm, objective, _known(lm, again)).kl),
        "distances": {kind: finite(value) for kind, value in distances.items()},
        "top_overlap": top_overlap(target.probs, log_q),
    }
    check_wanted()
    result = {**record, **{key: value for key, value in measured.items() if key not in record}}
    return TuneResult(
        status=result["status"],
        kl_nats=float(result["kl_nats"]),
        scored_in=result["scored_in"],
        kl_search_nats=result["kl_search_nats"],
        kl_nats_per_restart=result["kl_nats_per_restart"],
        best_restart=result["best_restart"],
        entropy_nats=result["entropy_nats"],
        target_entropy_nats=target.entropy_nats,
        slots=result["slots"],
        prompt_ids=ids,
        prompt_text=text,
        kl_reencoded_nats=result["kl_reencoded_nats"],
        reencoded_ids=again,
        prompt_embeds=prompt[1].cpu(),
        log_probs=log_q,
        nearest=nearest_to_soft(lm, prompt[1].cpu(), layout_ids),
        objective=config.objective,
        distances=distances,
        top_overlap=result["top_overlap"],
        bounds=Bounds(
            result.get("floor_nats"),
            result.get("head_optimum_nats"),
            note=result.get("direct_note"),
            captured=result.get("captured", False),
        ),
        steps=result["steps"],
        evaluations=result["evaluations"],
        seconds=result["seconds"],
        capsule={**capsule, "result": result},
    )


def _result_record(capsule: dict[str, Any]) -> dict[str, Any]:
    """A capsule's `result`; capsules of before say in other words what their KL was scored in."""
    result = dict(capsule["result"])
    if "scored_in" not in result:
        exact, own = result.pop("kl_float32_nats", None), capsule["model"]["dtype"]
        result |= {"scored_in": own, "kl_search_nats": None}
        if exact is not None:
            result |= {"kl_nats": exact, "scored_in": "float32", "kl_search_nats": result["kl_nats"]}
    numbers = [name for name in ("kl_nats", "entropy_nats") if name in result]
    return result | {name: math.nan for name in numbers if result[name] is None}  # JSON has no NaN


def _prompt(lm: LanguageModel, record: dict[str, Any]) -> Start:
    """The prompt of a capsule's `result`: its ids, and its embeddings `(pos hidden)` float32."""
    ids = record["prompt_ids"]
    if ids is not None:
        lm.check_length(ids)
        return torch.tensor(ids), _embedded(lm, ids)
    embeds = _fitting(lm, decode_array(record["prompt_embeds"]))
    return torch.full((len(embeds),), NO_TOKEN), embeds


def _embedded(lm: LanguageModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return lm.embed(torch.tensor([_known(lm, ids)]))[0].float()


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
        raise InputError("The capsule holds no prompt to continue from: none of its restarts stayed finite.")
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
    return ids, _embedded(lm, record["ids"])


def _known(lm: LanguageModel, ids: list[int]) -> list[int]:
    strange = next((each for each in ids if not 0 <= each < lm.embedding_table.shape[0]), None)
    if strange is not None:
        raise InputError(f"The capsule's prompt holds the id {strange:,}, which {lm.name} does not have.")
    return ids


def _fitting(lm: LanguageModel, embeds: torch.Tensor) -> torch.Tensor:
    lm.check_length(range(len(embeds)))
    if not embeds.isfinite().all():
        raise InputError("The capsule's soft tokens hold numbers that are not finite; use an unchanged one.")
    if embeds.shape[-1] != lm.hidden_size:
        raise InputError(
            f"The capsule's soft tokens have {embeds.shape[-1]:,} numbers each, but {lm.name} takes "
            f"{lm.hidden_size:,}; soft prompts belong to one model."
        )
    return embeds
