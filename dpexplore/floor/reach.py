"""Which words a model can say first, and which orders of its likeliest words can occur, whatever the prompt."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpexplore.errors import InputError
from dpexplore.files import reason, replacing
from dpexplore.floor.prepared import ranking_solver
from dpexplore.floor.rankings import Ranking
from dpexplore.models.language_model import LanguageModel
from dpexplore.targets.vocabulary import token_id

MODEL_SCALES = (1e2, 1e3, 1e4, 1e5, 1e6)
"""Multiples of u tried as the soft token; what the blocks add to the residual stream is bounded, so large ones win."""
MAX_WORDS = 100
SHOWN_ABOVE = 5


@dataclass(frozen=True)
class ModelCheck:
    """A prompt that does it: the single soft token `scale`·u, run through the whole model."""

    scale: float
    margin_nats: float
    """By the model's own logits."""


@dataclass(frozen=True, eq=False)
class Reach:
    """Whether words can come first, in this order, with the proof; `Ranking` says what "can" means."""

    words: list[str]
    ranking: Ranking
    above: list[str]
    """For a no: tokens of which at least one always stands at or above the last word, weightiest first."""
    on_model: ModelCheck | None
    """None: not tried, or no soft token brings this model's final norm to u."""

    @property
    def can(self) -> bool | None:
        """Whether the order can come first; None where neither was proved."""
        return self.ranking.can

    @property
    def sentence(self) -> str:
        """The answer for a person."""
        named = ", ".join(map(repr, self.words))
        what = f"{named} first" if len(self.words) == 1 else f"{named} as its likeliest tokens, in this order"
        if self.can is None:
            return f"Whether the model can say {what}, was not proved in the time given, either way."
        if not self.can:
            return f"No prompt, of any length, can make the model say {what} (certified). Above: {self.above[0]!r}, …"
        seen = "" if self.on_model is None else f"; one soft token does it, by {self.on_model.margin_nats:.2f}"
        return f"The model can say {what}: by {self.ranking.margin_nats:.2f} nats at least (certified){seen}."

    def record(self, *, with_point: bool = True) -> dict[str, Any]:
        """JSON-ready; margins in nats of logit. Without the point where a whole vocabulary is listed."""
        ranking, proof = self.ranking, self.ranking.proof
        asked = {"first": self.words[0]} if len(self.words) == 1 else {"order": self.words}
        point = {"u": ranking.point.tolist()} if with_point else {}
        return {
            **asked,
            "ids": ranking.ids,
            "can": ranking.can,
            "kind": ranking.kind,
            "margin": ranking.margin_nats,
            "margin_bound": ranking.margin_bound_nats,
            "resolution": ranking.resolution_nats,
            "above": self.above,
            "proof": None
            if proof is None or ranking.can
            else {"pairs": [list(pair) for pair in proof.pairs], "weights": proof.weights},
            "on_model": None
            if self.on_model is None
            else {"scale": self.on_model.scale, "margin": self.on_model.margin_nats},
            "seconds": ranking.seconds,
            **point,
        }


def reach(
    lm: LanguageModel, words: str | int | Sequence[str | int], *, seconds: float = 60.0, check_model: bool = True
) -> Reach:
    """Whether `words`, tokens by text or id, can be the model's likeliest next tokens in this order; one word: first.

    seconds: of wall time, after which what is not proved stays None. check_model: run the soft token that does it
    through the model. InputError for text that is not a single token and for a token named twice; NoHead, one too,
    if the model has no softmax head.
    """
    named = [words] if isinstance(words, str | int) else list(words)
    if len(named) > MAX_WORDS:
        raise InputError(f"The order has {len(named):,} words; use at most {MAX_WORDS}.")
    ids = [token_id(lm, word) for word in named]
    found = ranking_solver(lm).decide(ids, seconds=seconds)
    return _told(lm, found, on_model(lm, found) if check_model and found.can else None)


def reach_each(lm: LanguageModel, ids: Sequence[int], *, seconds: float = 60.0) -> Iterator[Reach]:
    """Whether each of the tokens can come first, in the order given. InputError and NoHead as from `reach`."""
    for found in ranking_solver(lm).decide_each(ids, seconds=seconds):
        yield _told(lm, found, None)


def words_of(text: str) -> list[str]:
    """The words of an order: ` the, a, an` holds ` the`, ` a` and ` an`. A word with a comma goes in double quotes."""
    try:
        words = next(csv.reader([text], strict=True), [])
    except csv.Error:
        raise InputError(
            f"The order {text[:60]!r} cannot be read; separate words by commas, as in ' the, a, an', and put a "
            "word that holds a comma or a quotation mark in double quotes."
        ) from None
    if not words or "" in words:
        raise InputError("The order has an empty word; separate words by single commas, as in ' the, a, an'.")
    return words


def save_head(lm: LanguageModel, path: Path) -> None:
    """Write what proofs are checked against (`dpexplore.floor.proof`) as an .npz file. InputError if it cannot be."""
    solver = ranking_solver(lm)
    try:
        with replacing(path) as beside, beside.open("wb") as stream:
            np.savez(
                stream,
                matrix=solver.products.matrix.cpu().numpy(),
                bias=solver.bias.cpu().numpy(),
                radius=solver.radius,
                zero_mean=solver.products.zero_mean,
            )
    except OSError as error:
        raise InputError(f"{path.name!r} cannot be written ({reason(error)}).") from error


@torch.no_grad()
def on_model(lm: LanguageModel, found: Ranking) -> ModelCheck | None:
    """The largest margin that a soft token in the direction of the ranking's u has on the model itself."""
    if found.point.shape[0] != lm.hidden_size:
        return None  # an input projection stands between the soft token and the residual stream
    point = found.point.to(lm.device, torch.float32)
    scales = torch.tensor(MODEL_SCALES, device=lm.device)
    log_probs = lm.log_probs((scales[:, None] * point)[:, None])
    chain = log_probs[:, found.ids]
    rest = log_probs.clone()
    rest[:, found.ids] = -torch.inf
    margins = torch.cat([chain[:, :-1] - chain[:, 1:], chain[:, -1:] - rest.amax(1, keepdim=True)], 1).amin(1)
    margins = margins.nan_to_num(-math.inf)
    best = int(margins.argmax())
    margin = float(margins[best])
    return ModelCheck(MODEL_SCALES[best], margin) if margin > 0 else None


def _told(lm: LanguageModel, found: Ranking, checked: ModelCheck | None) -> Reach:
    above: list[str] = []
    if found.can is False and found.proof is not None:
        weighed = sorted(zip(found.proof.weights, found.proof.pairs, strict=True), reverse=True)
        above = [lm.token_text(below) for _, (_, below) in weighed[:SHOWN_ABOVE]]
    return Reach([lm.token_text(index) for index in found.ids], found, above, checked)
