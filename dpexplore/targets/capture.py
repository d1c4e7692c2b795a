"""Targets a model itself says: prompts to ids, ids to probabilities."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.models.chat import chat_text
from dpexplore.models.interruption import interruptible
from dpexplore.targets.recipe import BuildContext, Provenance

if TYPE_CHECKING:
    from dpexplore.models.language_model import LanguageModel


@contextmanager
def source_model(context: BuildContext, name: str | None) -> Iterator[LanguageModel]:
    """The model to capture from: the tuning model for None or its own name, else another.

    One that was loaded here is released on the way out; one that `context.load` gave stays its giver's.
    """
    if name is None or name == context.lm.name:
        yield context.lm
    elif context.load is not None:
        yield context.load(name)
    else:
        from dpexplore.models import load_model

        source = load_model(name)
        try:
            yield source
        finally:
            del source
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def prompt_ids(lm: LanguageModel, text: str, *, chat: bool = False, bos: bool = True) -> list[int]:
    """The ids of a prompt. With `chat` the text is a user's message in the model's chat template.

    A template writes its own beginning; `bos=False` takes the BOS away there too. InputError for
    an empty or over-long prompt and for a model without a template.
    """
    if not chat:
        return lm.encode(text, bos=bos)
    ids = lm.text_ids(chat_text(lm, text))
    begin = lm.bos_ids
    if not bos and begin and ids[: len(begin)] == begin:
        ids = ids[len(begin) :]
    lm.check_length(ids)
    return ids


def random_ids(lm: LanguageModel, length: int, seed: int, *, bos: bool = True) -> list[int]:
    """`length` ids drawn evenly from the model's ordinary tokens by their own generator, behind the BOS if asked."""
    begin = lm.bos_ids if bos else []
    if lm.max_positions is not None and len(begin) + length > lm.max_positions:
        raise InputError(
            f"{length:,} random tokens are more than {lm.name} accepts ({lm.max_positions:,} in a prompt)."
        )
    ordinary = lm.ordinary_ids.cpu()
    generator = torch.Generator().manual_seed(seed)
    return begin + ordinary[torch.randint(len(ordinary), (length,), generator=generator)].tolist()


def capture_ids(lm: LanguageModel, ids: list[int], recorded: list[int] | None = None) -> tuple[Tensor, Provenance]:
    """The model's next-token probabilities `(vocab,)` float64 on the CPU after `ids`, and where they come from.

    After `recorded` instead where a record names other ids; the provenance says so.
    """
    changed = {} if recorded in (None, ids) else {"prompt_changed": True}
    ids = recorded or ids
    with interruptible():
        log_probs = lm.log_probs_of_ids(torch.tensor([ids], device=lm.device))[0]
    probs = log_probs.double().cpu().softmax(0)  # float32 rounding leaves a sum of 1 ± 1e-6
    if not torch.isfinite(probs).all():
        raise InputError(f"{lm.name} answered this prompt with NaN; try another prompt or another precision.")
    return probs, {"model": lm.name, "identity": lm.identity, "prompt_ids": list(ids), **changed}
