"""The ball that each soft token stays in under a norm budget."""

from __future__ import annotations

import torch
from torch import Tensor

ON_EDGE = 1e-6
"""Relative distance to its bound at which a token counts as at its bound."""


def within(embeds: Tensor, soft: Tensor, budget: Tensor) -> Tensor:
    """Soft tokens that are longer than their row's budget, shortened to it: the nearest point of the ball.

    embeds `(rows pos hidden)`, soft `(rows pos)` bool, budget `(rows,)`, infinite where there is none.
    """
    lengths = embeds.norm(dim=-1)
    shrink = (budget[:, None] / lengths.clamp_min(1e-12)).clamp_max(1)
    return torch.where((soft & (shrink < 1))[..., None], embeds * shrink[..., None], embeds)


def inward(direction: Tensor, embeds: Tensor, budget: Tensor) -> Tensor:
    """The part of a direction that tokens at their bound can follow: what leads straight out of the ball is left out.

    direction and embeds `(rows pos hidden)`, budget `(rows,)`.
    """
    squares = embeds.square().sum(-1)
    outward = (direction * embeds).sum(-1)
    held = (squares.sqrt() >= (1 - ON_EDGE) * budget[:, None]) & (outward > 0)
    share = torch.where(held, outward / squares.clamp_min(1e-24), 0.0)
    return direction - share[..., None] * embeds
