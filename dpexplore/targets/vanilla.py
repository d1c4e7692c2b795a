"""Vanilla targets: a distribution of a requested entropy, reached from random logits (Distribution Prompting, Eq. 1).

Eq. 1 minimises (H(p(z)) − h)² by gradient descent on random logits z. Its gradient is
2(H − h)·∇H with ∇H_v = −p_v (log p_v + H), so the direction depends on the requested entropy h by
its sign alone. Two things differ from plain gradient descent, both in the step rule:

- Steps are Adam's (Kingma and Ba 2015), in the direction ±∇H. Plain steps are in proportion to
  p_v: whichever token leads at the start takes everything, and the result at 7 bits is one token
  of mass 0.58 over a flat rest, an outlier target (Eq. 2) and not the spread-out one of the
  paper's Fig. 3. Adam moves all tokens above the entropy level together. (The natural gradient,
  the third choice, is exactly temperature scaling: `method="temperature"`.)
- The step that passes h is cut where it meets h, so the result is exact and nothing oscillates.

The path from one seed is therefore the same for every entropy, which are points along it: a slider
moves along it without jumps, and a whole sweep costs one descent (`vanilla_targets`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.targets.target import NATS_PER_BIT

Method = Literal["gradient", "temperature"]
METHODS: tuple[str, ...] = ("gradient", "temperature")

ENTROPY_TOLERANCE_NATS = 1e-7
"""How close a target's entropy comes to the request; the paper's ε is 0.01 bit."""
STEP_SIZE = 0.2
"""Adam's step in logits: a logit moves by at most about this much a step; 75 steps reach 0.1 bit at 50,000 tokens."""
MOMENT_DECAY, SQUARE_DECAY = 0.9, 0.999  # Adam's defaults
MAX_STEPS = 400  # the path has reached 0.01 bit, or 1e-4 bit below uniform, long before


def check_bits(bits: float, vocab_size: int) -> None:
    """InputError unless a distribution over `vocab_size` tokens can have this entropy."""
    limit = math.log2(vocab_size)
    if not 0 <= bits <= limit + 1e-9:
        raise InputError(
            f"The entropy of a distribution over {vocab_size:,} tokens lies from 0 to {limit:.4f} bits; "
            f"{bits:g} was asked for."
        )


def random_logits(vocab_size: int, seed: int) -> Tensor:
    """Standard normal logits `(vocab,)`, float64, from their own CPU generator."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(vocab_size, generator=generator, dtype=torch.float64)


def vanilla_target(vocab_size: int, bits: float, seed: int, method: Method = "gradient") -> Tensor:
    """Probabilities `(vocab,)` float64 of entropy `bits`; see `vanilla_targets`."""
    return vanilla_targets(vocab_size, [bits], seed, method)[0]


def vanilla_targets(vocab_size: int, bits: Sequence[float], seed: int, method: Method = "gradient") -> Tensor:
    """Probabilities `(len(bits) vocab)` float64, one row an entropy, all from the logits of one seed.

    Every row is what `vanilla_target` gives for it. 0 bits is the limit, all mass on the leading
    token; log2(vocab) bits is the uniform distribution. InputError for an entropy out of range.
    """
    for value in bits:
        check_bits(value, vocab_size)
    logits = random_logits(vocab_size, seed)
    rows = torch.empty(len(bits), vocab_size, dtype=torch.float64)
    wanted: list[tuple[float, int]] = []
    for row, value in enumerate(bits):
        if value <= 0:
            rows[row] = torch.nn.functional.one_hot(logits.argmax(), vocab_size)
        elif value >= math.log2(vocab_size) - 1e-9:
            rows[row] = 1 / vocab_size
        else:
            wanted.append((value * NATS_PER_BIT, row))
    if method == "temperature":
        for entropy, row in wanted:
            rows[row] = scale_to_entropy(logits, entropy)
        return rows
    start = _Point(logits).entropy
    below = sorted((pair for pair in wanted if pair[0] <= start), reverse=True)
    above = sorted(pair for pair in wanted if pair[0] > start)
    for pairs, direction in ((below, -1.0), (above, 1.0)):
        for (_, row), probs in zip(pairs, _path_points(logits, [h for h, _ in pairs], direction), strict=True):
            rows[row] = probs
    return rows


class _Point:
    """Logits with their distribution and its entropy in nats."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.log_probs = logits - logits.logsumexp(0)
        self.probs = self.log_probs.exp()
        self.entropy = -float(self.probs @ self.log_probs)


def _path_points(logits: Tensor, entropies: Sequence[float], direction: float) -> Iterator[Tensor]:
    """Follow ±∇H from `logits` `(vocab,)` and give the distribution where the path meets each entropy (nats).

    `entropies` come in the order the path meets them: falling for direction −1, rising for +1.
    """
    remaining = list(reversed(entropies))
    here = _Point(logits)
    moment, square = torch.zeros_like(logits), torch.zeros_like(logits)
    for step in range(1, MAX_STEPS + 1):
        if not remaining:
            return
        gradient = (here.log_probs + here.entropy).mul_(here.probs).mul_(-direction)  # −direction · −∇H
        moment.lerp_(gradient, 1 - MOMENT_DECAY)
        square.mul_(SQUARE_DECAY).addcmul_(gradient, gradient, value=1 - SQUARE_DECAY)
        # 1e-30 in place of Adam's 1e-8: at 50,000 tokens a gradient is already smaller than that.
        scale = (square / (1 - SQUARE_DECAY**step)).sqrt_().add_(1e-30)
        move = (moment / scale).mul_(STEP_SIZE / (1 - MOMENT_DECAY**step))
        there = _Point(here.logits + move)
        while remaining and direction * (there.entropy - remaining[-1]) >= 0:
            yield _cut(here, move, there, remaining.pop())
        here = there
    # What the steps cannot reach lies next to 0 bits or to uniform: the rest of the way is scaling.
    while remaining:
        yield scale_to_entropy(here.logits, remaining.pop())


def _cut(here: _Point, move: Tensor, there: _Point, entropy: float) -> Tensor:
    """The distribution on the segment from `here` to `there` that has `entropy` (nats)."""
    best = there

    def miss(fraction: float) -> float:
        nonlocal best
        best = _Point(torch.add(here.logits, move, alpha=fraction))
        return best.entropy - entropy

    _find_root(miss, 0.0, 1.0, here.entropy - entropy, there.entropy - entropy)
    return best.probs


def scale_to_entropy(logits: Tensor, entropy: float) -> Tensor:
    """softmax(s·logits) `(vocab,)` of the requested entropy (nats); s is found by bracketing and bisection.

    The entropy falls from log(vocab) at s = 0 towards 0 as s grows, so there is one such s unless
    several tokens share the largest logit, which random logits do not.
    """
    best = _Point(torch.zeros_like(logits))

    def miss(log_scale: float) -> float:
        nonlocal best
        best = _Point(logits * math.exp(log_scale))
        return best.entropy - entropy

    low = high = 0.0
    low_miss = high_miss = miss(0.0)
    while low_miss < 0:
        low -= 1
        low_miss = miss(low)
    while high_miss > 0:
        high += 1
        high_miss = miss(high)
    _find_root(miss, low, high, low_miss, high_miss)
    return best.probs


def _find_root(miss: Callable[[float], float], low: float, high: float, low_miss: float, high_miss: float) -> float:
    """Where `miss` is 0 to the entropy's tolerance, between two points where its signs differ.

    False position with the Illinois rule, each third step a bisection: a few evaluations where
    `miss` is smooth, never worse than bisection's rate. The last evaluation is at the answer.
    """
    for count in range(200):
        if count % 3 == 2:
            middle = (low + high) / 2
        else:
            middle = (low * high_miss - high * low_miss) / (high_miss - low_miss)
            if not min(low, high) <= middle <= max(low, high):
                middle = (low + high) / 2
        value = miss(middle)
        if abs(value) <= ENTROPY_TOLERANCE_NATS or middle in (low, high):
            return middle
        if (value > 0) == (low_miss > 0):
            low, low_miss, high_miss = middle, value, high_miss / 2
        else:
            high, high_miss, low_miss = middle, value, low_miss / 2
    return middle
