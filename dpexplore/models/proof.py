"""What a loaded model proves to be, by trying: finite, left to right, and a function of its input embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from dpexplore.errors import InputError, in_short
from dpexplore.models.language_model import LanguageModel

POSITIONS = 4
"""Tokens of the prompts that are tried."""
NOISE_NATS = {torch.float32: 1e-5, torch.float64: 1e-9}
LOW_PRECISION_NOISE_NATS = 0.02
SHARE = 1e-4
"""Two answers are the same where they differ by less than this share of what another last token would change."""
_STILL = (
    "its next-token distributions can be captured, and their floor computed if its head has one, but no prompt can be "
    "tuned on it"
)


def prove(lm: LanguageModel) -> str | None:
    """Why no prompt can be tuned on the model, in a sentence; None if one can.

    InputError if it does not predict the next token from those before it at all: it fails, answers NaN, or looks ahead.
    Four passes over a few tokens and one gradient.
    """
    ids = _sample(lm)
    try:
        with torch.no_grad():
            by_ids = _log_probs(lm, ids)
            other = _log_probs(lm, torch.cat([ids[:, :-1], ids[:, :1]], 1))
    except Exception as error:  # as many kinds as there are architectures
        raise InputError(f"{lm.name} cannot score a plain prompt ({in_short(error)}); choose another model.") from error
    if not torch.isfinite(by_ids).all():
        raise InputError(f"{lm.name} answers NaN or infinite values; choose another precision (dtype) or model.")
    noise = NOISE_NATS.get(lm.dtype, LOW_PRECISION_NOISE_NATS)
    allowed = noise + SHARE * float((by_ids[:, -1] - other[:, -1]).abs().max())
    if by_ids.shape[1] > 1 and _differ(by_ids[:, :-1], other[:, :-1], allowed):
        raise InputError(f"{lm.name} is not a left-to-right model: a later token changes what it says before it.")
    return _why_untunable(lm, ids, by_ids[:, -1], allowed)


def _why_untunable(lm: LanguageModel, ids: Tensor, expected: Tensor, allowed: float) -> str | None:
    with torch.enable_grad():
        try:
            embeds = lm.embed(ids).detach().requires_grad_()
            log_probs = lm.log_probs(embeds)
            (grad,) = torch.autograd.grad(log_probs[0].max(), embeds)
            lm.log_probs(embeds.detach() * 1.01)  # Gemma 4 looks ids up by their embeddings, and has none for others
        except Exception as error:
            return f"{lm.name} does not take input embeddings ({in_short(error)}): {_STILL}."
    if _differ(log_probs.detach(), expected, allowed):
        return f"{lm.name} reads more of its ids than their input embeddings: {_STILL}."
    if not torch.isfinite(grad).all() or not grad[:, -1].any():
        return f"No finite gradient reaches the input embeddings of {lm.name}: {_STILL}."
    return None


def _sample(lm: LanguageModel) -> Tensor:
    """A prompt of different ordinary tokens spread over the vocabulary, `(1, pos)`."""
    try:
        ordinary = lm.ordinary_ids
    except (AssertionError, AttributeError, NotImplementedError) as error:
        raise InputError(f"{lm.name} has no plain table of input embeddings; choose another model.") from error
    if not len(ordinary):
        raise InputError(f"No token of the tokenizer of {lm.name} has an embedding; save the model's own tokenizer.")
    count = min(POSITIONS, lm.max_positions or POSITIONS)
    places = torch.linspace(0, len(ordinary) - 1, count + 2).long()[1:-1]
    return ordinary[places][None].to(lm.device)


def _log_probs(lm: LanguageModel, ids: Tensor) -> Tensor:
    """By the model's own way from ids, `(1, pos, vocab)` float32."""
    return lm.model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)


def _differ(first: Tensor, second: Tensor, allowed: float) -> bool:
    return first.shape != second.shape or bool((first - second).abs().max() > allowed)
