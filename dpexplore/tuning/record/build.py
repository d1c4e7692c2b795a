"""From a finished run to its result: the best prompt re-scored, read as tokens and text, and encoded again."""

from __future__ import annotations

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.tuning.init.layout import NO_TOKEN
from dpexplore.tuning.init.nearest import by_direction
from dpexplore.tuning.objectives.next_token import all_divergences, entropy_of, top_overlap
from dpexplore.tuning.record.capsule import make_capsule
from dpexplore.tuning.record.outcome import RecordedRun, RowOutcome
from dpexplore.tuning.record.precision import final_scores, final_scores_of_ids
from dpexplore.tuning.record.steps import NearestToken, TuneResult

NEAREST_SHOWN = 5


def build_result(run: RecordedRun) -> TuneResult:
    """The result of a finished run. InputError if it never completed a step or never stayed finite."""
    outcomes = {restart: outcome for restart, outcome in run.outcomes.items() if outcome.loss < torch.inf}
    if not outcomes:
        if run.status == "cancelled":
            raise InputError("The run was stopped before its first step; there is no prompt to show.")
        raise InputError(
            "No restart gave a finite KL, so there is no prompt to show; try a smaller learning rate "
            "or another initialisation."
        )
    losses, kls = _per_restart(run, outcomes)
    best = min(losses, key=lambda restart: losses[restart])
    outcome = outcomes[best]
    ids = None if (outcome.ids == NO_TOKEN).any() else outcome.ids.tolist()
    scores = final_scores(run.lm, [run.objective], [(outcome.ids, outcome.embeds)])
    log_q = scores.log_q[0]
    text = None if ids is None else run.lm.decode(ids[len(run.layout.bos_ids) :])
    reencoded = None if text is None else encode_again(run.lm, text, run.config.bos)
    result = TuneResult(
        status=run.status or "cancelled",
        kl_nats=float(scores.kl),
        scored_in=scores.scored_in,
        kl_search_nats=None if scores.scored_in == run.lm.dtype_name else outcome.kl_nats,
        kl_nats_per_restart=[kls.get(i) for i in range(run.config.restarts)],
        best_restart=best,
        entropy_nats=float(entropy_of(log_q)),
        target_entropy_nats=run.target.entropy_nats,
        slots=str(run.config.parsed_slots()),
        prompt_ids=ids,
        prompt_text=text,
        kl_reencoded_nats=None if reencoded is None else _kl_of_ids(run, reencoded),
        reencoded_ids=reencoded,
        prompt_embeds=outcome.embeds,
        log_probs=log_q,
        nearest=nearest_to_soft(run.lm, outcome.embeds, outcome.ids),
        objective=run.config.objective,
        distances=all_divergences(run.target.probs, log_q),
        top_overlap=top_overlap(run.target.probs, log_q),
        bounds=run.bounds,
        steps=max(outcome.steps for outcome in run.outcomes.values()),
        evaluations=sum(outcome.evaluations for outcome in run.outcomes.values()),
        seconds=run.seconds,
        capsule={},
    )
    result.capsule.update(make_capsule(run, result))
    return result


def _per_restart(run: RecordedRun, outcomes: dict[int, RowOutcome]) -> tuple[dict[int, float], dict[int, float]]:
    """Loss and KL of each restart's best prompt; what a search in low precision made of them is not kept."""
    if run.lm.dtype == torch.float32:
        return {i: each.loss for i, each in outcomes.items()}, {i: each.kl_nats for i, each in outcomes.items()}
    prompts = [(each.ids, each.embeds) for each in outcomes.values()]
    scores = final_scores(run.lm, [run.objective] * len(prompts), prompts)
    return (
        dict(zip(outcomes, scores.loss.tolist(), strict=True)),
        dict(zip(outcomes, scores.kl.tolist(), strict=True)),
    )


def _kl_of_ids(run: RecordedRun, ids: list[int]) -> float:
    return float(final_scores_of_ids(run.lm, run.objective, ids).kl)


def nearest_tokens(lm: LanguageModel, embeds: Tensor, count: int = NEAREST_SHOWN) -> list[list[NearestToken]]:
    """For each embedding `(pos hidden)` the ordinary tokens of highest cosine, best first."""
    ids = lm.ordinary_ids.to(lm.device)
    with torch.no_grad():
        soft = torch.nn.functional.normalize(embeds.to(lm.device).float(), dim=-1)
        cosines = by_direction(lm, soft)[:, ids]
        top = cosines.topk(min(count, len(ids)), dim=-1)
    return [
        [
            NearestToken(token_id, lm.token_text(token_id), cosine)
            for token_id, cosine in zip(ids[index].tolist(), values.tolist(), strict=True)
        ]
        for index, values in zip(top.indices, top.values, strict=True)
    ]


def encode_again(lm: LanguageModel, text: str, bos: bool) -> list[int] | None:
    """The ids a reader of the text would feed; None where the text cannot be encoded (empty, say)."""
    try:
        return lm.encode(text, bos=bos)
    except InputError:
        return None


def nearest_to_soft(lm: LanguageModel, embeds: Tensor, ids: Tensor) -> list[list[NearestToken] | None]:
    """For each position `(pos,)` the nearest tokens of a soft token; None where `ids` names a token."""
    soft = ids == NO_TOKEN
    found = iter(nearest_tokens(lm, embeds[soft])) if soft.any() else iter(())
    return [next(found) if is_soft else None for is_soft in soft.tolist()]
