"""The hard floor of length 1: the best prompt of one token, by scoring every token of the vocabulary.

Exact, as the model scores it: the table of last states (`dpexplore.tuning.init.lookup`) bounds the KL of every token
from below, and those whose bound is under the best one are run through the model again for this target.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning.init.lookup import (
    BATCH,
    is_measured,
    measure_more,
    prompts,
    token_states,
    tolerance,
    unembedding_of,
)
from dpexplore.wanted import check_wanted, while_asking


@dataclass(frozen=True)
class SingleToken:
    """The prompt of one token that comes closest to a target; no other token of the vocabulary comes closer."""

    kl_nats: float
    token_id: int
    token: str
    prompt_ids: list[int]
    """With what the tokenizer puts in front (BOS), as a tuned hard prompt has it."""


@dataclass(frozen=True)
class Scoring:
    """How far the scoring of a vocabulary is."""

    share: float
    seconds_left: float
    """By the pace so far."""


def is_known(lm: LanguageModel) -> bool:
    """Whether `best_single_token` answers at once: every token has been run through this model before."""
    return is_measured(lm, tuple(lm.bos_ids))


def score_tokens(lm: LanguageModel) -> Iterator[Scoring]:
    """Run every token through the model, once: the first report, after one batch, prices the rest."""
    before = tuple(lm.bos_ids)
    if is_measured(lm, before):
        return
    began, first = time.monotonic(), None
    while (share := measure_more(lm, before)) < 1:
        check_wanted()
        now = time.monotonic()
        # The first batch also wakes the model up, and another table may have been begun by somebody else.
        if first is None:
            pace, first = (now - began) / min(1.0, BATCH / lm.vocab_size), (now, share)
        else:
            pace = (now - first[0]) / (share - first[1])
        yield Scoring(share, pace * (1 - share))


def best_single_token(lm: LanguageModel, target: Target) -> SingleToken:
    """The best prompt of one token for a target; runs `score_tokens` to its end first where that has not been done.

    InputError if the target is over another vocabulary.
    """
    if target.vocab_size != lm.vocab_size:
        raise InputError(
            f"The target has {target.vocab_size:,} tokens and the model {lm.vocab_size:,}; "
            "use a target over the model's own vocabulary."
        )
    for _ in score_tokens(lm):
        pass
    before, probs = tuple(lm.bos_ids), target.probs
    table = token_states(lm, before)
    if table is None:  # logits that are no plain product of the last state: nothing rules a token out
        candidates = torch.arange(lm.vocab_size)
    else:
        weight = unembedding_of(lm)
        losses = table.losses(weight, probs)
        errors = table.half_errors(weight, probs) + tolerance(lm)
        candidates = (~(losses - errors > (losses + errors).min())).nonzero()[:, 0]
    kls = torch.cat([_kl(lm, probs, prompts(before, ids)) for ids in while_asking(candidates.split(BATCH), 1)])
    place = int(kls.argmin())
    token_id = int(candidates[place])
    return SingleToken(float(kls[place]), token_id, lm.token_text(token_id), [*before, token_id])


def _kl(lm: LanguageModel, probs: Tensor, ids: Tensor) -> Tensor:
    """KL(p‖q) in nats after each prompt, `(rows pos)` -> `(rows,)` float64; prompts without one get ∞."""
    log_q = lm.log_probs_of_ids(ids).double().cpu()
    p = probs.double().cpu()
    cross = -torch.where(p > 0, p * log_q, 0.0).sum(1)
    return (cross - torch.special.entr(p).sum()).clamp_min(0).nan_to_num(torch.inf, posinf=torch.inf)
