"""The KL microscope: which tokens a divergence comes from, both ways, and each one's way through the run."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from dpexplore.models import LanguageModel
from dpexplore.plots import TokenShare, kl_bands, kl_parts
from dpexplore.serving.frames import Frames
from dpexplore.targets import Target
from dpexplore.tuning import TuneResult

SHOWN = 10
"""Tokens of each kind."""
NOTHING_LEFT_NATS = 5e-4
"""A KL below this rounds to 0.000: shares of it would only show rounding."""
MICROSCOPE_EMPTY = "After a run: the tokens that the remaining KL comes from. Click one to follow it through the run."


def microscope_json(lm: LanguageModel, target: Target, result: TuneResult, frames: Frames | None) -> str:
    """What assets/microscope.js shows: tokens with p, q, their part of the KL (nats) and q at the recorded steps."""
    probs, log_q = target.probs.numpy(), result.log_probs.numpy()
    parts = kl_parts(probs, log_q, SHOWN)

    def row(share: TokenShare) -> dict[str, Any]:
        track = [] if frames is None else [float(f"{q:.3g}") for q in frames.follow(share.token_id)]
        numbers = {name: float(f"{value:.5g}") for name, value in asdict(share).items() if name != "token_id"}
        return {"id": share.token_id, "text": lm.token_text(share.token_id), "track": track, **numbers}

    return json.dumps(
        {
            "kl": result.kl_nats,
            "nothing_left": result.kl_nats < NOTHING_LEFT_NATS,
            "bands": [
                {name: float(f"{value:.5g}") for name, value in asdict(band).items()} for band in kl_bands(probs, log_q)
            ],
            "steps": [] if frames is None else frames.steps,
            "below": [row(share) for share in parts.below],
            "above": [row(share) for share in parts.above],
            "others": {"count": parts.other_tokens, "kl_nats": parts.other_kl_nats},
        },
        ensure_ascii=False,
        allow_nan=False,
    )
