"""States regressed on the token at one position: which token best explains a state, all else being chance.

With the other tokens of a prompt drawn at random, the last state is y = B e(t) + noise for the embedding e(t) of the
token t, nearly: the noise is large, but it has a covariance Σ, and along the directions in which it is small the token
shows. So tokens are ranked by the Gaussian density of y, that is by (y − B e(t))ᵀ Σ⁻¹ (y − B e(t)). (The regression the
other way round, of tokens on states, drowns in the same noise; so does the gradient of KL.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

RIDGE = 1.0
"""Penalty on B's distance from its prior, in units of a feature's variance."""
SHRINK = 0.1
"""Share of the mean variance that is added to every variance of the noise."""
ROWS_AT_ONCE = 8192


@dataclass(eq=False)
class Moments:
    """Sums over samples of features x `(n features)` and states y `(n width)`, float64."""

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def none(cls, features: int, width: int, device: torch.device) -> Self:
        """Of no samples."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(
            0, zeros(features), zeros(width), zeros(features, features), zeros(features, width), zeros(width, width)
        )

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take more samples in; those with a number that is not finite are left out."""
        x, y = x.to(self.x), y.to(self.y)
        finite = torch.isfinite(y).all(1)
        x, y = x[finite], y[finite]
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.T @ y


def normal_log_densities(offsets: Tensor, covariance: Tensor) -> Tensor:
    """log N(offset; 0, covariance), up to a constant, `(n,)`; the variances are widened as those of a regression.

    offsets `(n width)`, covariance `(width width)`.
    """
    factor = _factor(covariance.double())
    return -torch.linalg.solve_triangular(factor, offsets.T.to(factor), upper=False).square().sum(0).float() / 2


def _factor(noise: Tensor) -> Tensor:
    """L of L Lᵀ, the covariance of the noise with `SHRINK` added to its variances; float64."""
    noise = (noise + noise.T) / 2
    return torch.linalg.cholesky(
        noise + SHRINK * noise.diagonal().mean().clamp_min(1e-12) * torch.eye(len(noise)).to(noise)
    )


@dataclass(frozen=True, eq=False)
class Regression:
    """y = y_mean + (x − x_mean) slope + noise, the noise of covariance L Lᵀ; float32."""

    slope: Tensor
    """`(features width)`."""
    x_mean: Tensor
    y_mean: Tensor
    factor: Tensor
    """L `(width width)`, lower triangular."""

    @classmethod
    def of(cls, moments: Moments, prior: Tensor | None = None) -> Self:
        """Ridge regression towards the slope `prior` `(features width)`, or towards none."""
        n = max(moments.count, 1)
        x_mean, y_mean = moments.x / n, moments.y / n
        xx = moments.xx / n - torch.outer(x_mean, x_mean)
        xy = moments.xy / n - torch.outer(x_mean, y_mean)
        yy = moments.yy / n - torch.outer(y_mean, y_mean)
        before = torch.zeros_like(xy) if prior is None else prior.to(xy)
        penalised = xx + RIDGE * xx.diagonal().mean().clamp_min(1e-12) * torch.eye(len(xx)).to(xx)
        slope = before + torch.linalg.solve(penalised, xy - xx @ before)
        explained = slope.T @ xy
        noise = yy - explained - explained.T + slope.T @ xx @ slope
        return cls(slope.float(), x_mean.float(), y_mean.float(), _factor(noise).float())

    def log_densities(self, features: Tensor, state: Tensor) -> Tensor:
        """log N(state; token), up to a constant that is the same for all regressions of one width; `(tokens,)`.

        features `(tokens features)`, state `(width,)`.
        """
        device = self.factor.device
        whitened = torch.linalg.solve_triangular(
            self.factor, (state.to(self.y_mean) - self.y_mean)[:, None], upper=False
        )
        effect = torch.linalg.solve_triangular(self.factor, self.slope.T, upper=False).T
        shift = self.x_mean @ effect
        squares = [
            (whitened[:, 0] + shift - part.to(device, torch.float32) @ effect).square().sum(1)
            for part in features.split(ROWS_AT_ONCE)
        ]
        return -torch.cat(squares) / 2 - self.factor.diagonal().log().sum()
