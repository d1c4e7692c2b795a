"""Outlier targets: most of the mass on k chosen tokens, at a requested entropy.

Distribution Prompting, Eq. 2, 3 and App. A.

Eq. 3 minimises α·(H − h)² − β·M, with M the outliers' mass, and stops once M ≥ m − δ (Eq. 2). Run as
one descent with α = β = 1 it fails at low entropies whenever the chosen tokens start low: the
first term, 100 times stronger, gives the mass to whichever tokens lead, and the gradient of M is in
proportion to the mass that the outliers then lack. Here the two terms take turns:

1. The mass term. Adam's direction for −∇M is +1 on every outlier and −1 on every other token: one
   common shift of the outliers' logits. It goes on until H = h, or to m − δ if that comes later; with the
   paper's m it stops at m − δ, once Eq. 2 is satisfied.
2. The entropy term, with M held (what the mass term would restore at once): `follow_entropy` up to h.

Both end exactly: H is h to 1e-7 nats and M ≥ m − δ, for every h from 0 to log(vocab).

m has two readings. App. A solves for one outlier, the most restrictive case, and uses that m whatever k is (`paper`);
Eq. 2's own words, the most mass that k tokens can hold, give a larger m for k > 1 (`own`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.targets.descent import Point, Row, find_root, follow_entropy
from dpexplore.targets.target import NATS_PER_BIT
from dpexplore.targets.vanilla import check_bits, is_certain, is_uniform, random_logits

Mass = Literal["own", "paper"]
MASSES: tuple[str, ...] = ("own", "paper")

DELTA = 0.01
"""The paper's margin δ in Eq. 2."""
_MOST_SPLIT = 0.9  # share of the entropy that may lie in the choice between outliers and rest
_ROUNDING = 1e-9  # so that the sum of the outliers' probabilities, rounded, is not below m − δ


def _binary_entropy(share: float) -> float:
    """−x log x − (1−x) log(1−x), nats."""
    return sum(-x * math.log(x) for x in (share, 1 - share) if x > 0)


def _largest_entropy(vocab_size: int, k: int, mass: float) -> float:
    """The most entropy (nats) a distribution can have with `mass` on `k` tokens: both parts uniform (App. A)."""
    return _binary_entropy(mass) + mass * math.log(k) + (1 - mass) * math.log(vocab_size - k)


def _bisect(rises_past: float, low: float, high: float, vocab_size: int, k: int) -> float:
    """The mass in [low, high], where the largest entropy falls, at which it is `rises_past` (nats)."""
    for _ in range(80):
        middle = (low + high) / 2
        if _largest_entropy(vocab_size, k, middle) >= rises_past:
            low = middle
        else:
            high = middle
    return low


def exact_outlier_mass(vocab_size: int, k: int, bits: float) -> float:
    """The most mass that `k` tokens can hold at this entropy; App. A's equation for this k."""
    check_outliers(vocab_size, k)
    check_bits(bits, vocab_size)
    if bits * NATS_PER_BIT <= math.log(k):
        return 1.0
    return _bisect(bits * NATS_PER_BIT, k / vocab_size, 1.0, vocab_size, k)


def outlier_mass(vocab_size: int, k: int, bits: float, mass: Mass = "own") -> float:
    """m of Eq. 2, rounded down to 0.01 (App. A): the most mass that `k` tokens, or one, can hold at this entropy."""
    check_outliers(vocab_size, k)
    return math.floor(exact_outlier_mass(vocab_size, 1 if mass == "paper" else k, bits) * 100 + 1e-9) / 100


@dataclass(frozen=True)
class OutlierRange:
    """What can be asked of an outlier target."""

    max_k: int
    """Most outlier tokens: at least one token is left for the rest."""
    max_bits: float
    """Above this entropy (bits) Eq. 2 asks for no more mass than k tokens of a uniform distribution hold."""


def outlier_range(vocab_size: int, k: int) -> OutlierRange:
    """The range of k and of the entropy (from 0 bits) in which k outliers stand out of `vocab_size` tokens.

    `build` accepts entropies up to log2(vocab); between `max_bits` and that, Eq. 2 holds but says nothing.
    """
    check_outliers(vocab_size, k)
    least = min(math.floor(100 * k / vocab_size) / 100 + 2 * DELTA, 1.0)
    return OutlierRange(vocab_size - 1, _largest_entropy(vocab_size, k, least) / NATS_PER_BIT)


def check_outliers(vocab_size: int, k: int) -> None:
    """InputError unless k outliers leave a rest."""
    if not 1 <= k < vocab_size:
        raise InputError(f"The number of outliers is {k:,}; use 1 to {vocab_size - 1:,}.")


def random_outliers(candidates: Tensor, k: int, seed: int) -> list[int]:
    """`k` of the ids in `candidates` `(n,)`, drawn without replacement by their own generator."""
    if k > len(candidates):
        raise InputError(f"The number of outliers is {k:,}; use 1 to {len(candidates):,}.")
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    return candidates[order[:k]].tolist()


def outlier_target(vocab_size: int, bits: float, outlier_ids: Sequence[int], seed: int, mass: Mass = "own") -> Tensor:
    """Probabilities `(vocab,)` float64 of entropy `bits` with mass ≥ m − δ on the outliers (Eq. 2, 3).

    Starts from the logits that the vanilla target of the same seed starts from. 0 bits is the
    limit, all mass on the outlier that leads. InputError for an entropy or a k out of range.
    """
    k = len(outlier_ids)
    check_outliers(vocab_size, k)
    check_bits(bits, vocab_size)
    logits = random_logits(vocab_size, seed)
    if is_uniform(bits, vocab_size):
        return torch.full((vocab_size,), 1 / vocab_size, dtype=torch.float64)
    outliers = torch.tensor(outlier_ids)
    is_rest = torch.ones(vocab_size, dtype=torch.bool)
    is_rest[outliers] = False
    order = torch.cat([outliers, is_rest.nonzero()[:, 0]])
    probs = torch.zeros(vocab_size, dtype=torch.float64)
    if is_certain(bits):
        probs[outliers[logits[outliers].argmax()]] = 1.0
    else:
        probs[order] = torch.from_numpy(_outliers_first(logits[order].numpy(), bits, k, mass))
    return probs


def _outliers_first(logits: Row, bits: float, k: int, mass_of: Mass) -> Row:
    """The target `(vocab,)` for logits whose first `k` are the outliers'."""
    vocab_size, entropy = len(logits), bits * NATS_PER_BIT
    required = outlier_mass(vocab_size, k, bits, mass_of) - DELTA + _ROUNDING
    wanted = max(required, k / vocab_size)
    if mass_of == "own" or k == 1:
        shifted = _shifted_mass(Point(logits[:k]).entropy, Point(logits[k:]).entropy, entropy)
        wanted = None if shifted is None else max(wanted, shifted)
    elif _binary_entropy(wanted) > _MOST_SPLIT * entropy:
        wanted = None
    if wanted is None:  # the tokens of each part must differ more than a share of this size leaves room for
        mass = _bisect_small_rest(vocab_size, k, entropy)
    else:
        mass = min(wanted, exact_outlier_mass(vocab_size, k, bits))
    start = Point(logits, ((slice(0, k), mass), (slice(k, None), 1 - mass)))
    return next(iter(follow_entropy(start, [entropy], -1.0 if start.entropy > entropy else 1.0)))


def _shifted_mass(outliers_entropy: float, rest_entropy: float, entropy: float) -> float | None:
    """The outliers' mass at which a common shift of their logits gives `entropy` (nats).

    With both parts' own entropies fixed, H = h₂(M) + M·Hₒ + (1 − M)·Hᵣ rises up to the mass at
    which the parts are in proportion to e^H, and falls after it. None if it never falls so far;
    the mass at the top if it never rises so far.
    """

    def miss(mass: float) -> float:
        return _binary_entropy(mass) + mass * outliers_entropy + (1 - mass) * rest_entropy - entropy

    top = 1 / (1 + math.exp(rest_entropy - outliers_entropy))
    if miss(1.0) >= 0:
        return None
    return top if miss(top) <= 0 else find_root(miss, top, 1.0, miss(top), miss(1.0))


def _bisect_small_rest(vocab_size: int, k: int, entropy: float) -> float:
    """An outlier mass so large that the rest takes at most half of `entropy` (nats), and at most δ of the mass."""
    rest = DELTA / 2
    while _binary_entropy(rest) + rest * math.log(vocab_size - k) > entropy / 2:
        rest /= 2
    return 1 - rest
