"""Moving logits along the gradient of the entropy until it is as requested (Distribution Prompting, Eq. 1 and 3).

Eq. 1 minimises (H(p(z)) − h)² over the logits z. Its gradient is 2(H − h)·∇H with
∇H_v = −p_v (log p_v + H), so the direction depends on the requested entropy h by its sign alone.
Two things differ from plain gradient descent, both in the step rule:

- Steps are Adam's (Kingma and Ba 2015), in the direction ±∇H. Plain steps are in proportion to
  p_v: whichever token leads at the start takes everything, and the result at 7 bits is one token
  of mass 0.58 over a flat rest, an outlier target (Eq. 2) and not the spread-out one of the
  paper's Fig. 3. Adam moves all tokens above the entropy level together. (The natural gradient,
  the third choice, is exactly temperature scaling: `scale_to_entropy`.)
- The step that passes h is cut where it meets h, so the result is exact and nothing oscillates.

The path from given logits is therefore the same for every entropy, which are points along it: a
slider moves along it without jumps, and a whole sweep costs one descent.

The loops are NumPy's, not PyTorch's: these are hundreds of short operations, and PyTorch splits
each over its threads, which costs a hundredfold when the cores are busy tuning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dpexplore.wanted import check_wanted

Row = NDArray[np.float64]
"""One number a token, `(vocab,)`."""

ENTROPY_TOLERANCE_NATS = 1e-7
"""How close a target's entropy comes to the request; the paper's ε is 0.01 bit."""
STEP_SIZE = 0.2
"""Adam's step in logits: a logit moves by at most about this much a step; 75 steps reach 0.1 bit at 50,000 tokens.

The paper gives none, and the shape of the target depends on it: the longer the step, the flatter its head.
"""
LEAST_STEP, LARGEST_STEP = 0.01, 10.0  # 3,000 steps of the vocabulary, a few seconds; one step
MOMENT_DECAY, SQUARE_DECAY = 0.9, 0.999  # Adam's defaults
MAX_STEPS = 150  # of `STEP_SIZE`: the path has reached 0.01 bit, or 1e-4 bit below uniform, before

_LARGEST_LOG_SCALE = 60.0  # the distribution no longer changes in float64

Groups = Sequence[tuple[slice, float]]
"""Spans of the vocabulary with the mass that each holds, whatever its logits; the masses are above 0 and sum to 1."""
WHOLE: Groups = ((slice(None), 1.0),)


class Point:
    """Logits `(vocab,)` with their distribution, a softmax within each group, and its entropy in nats."""

    def __init__(self, logits: Row, groups: Groups = WHOLE) -> None:
        self.logits = logits
        self.groups = groups
        self.log_probs = np.empty_like(logits)
        self.probs = np.empty_like(logits)
        self.group_entropies: list[float] = []
        """−Σ p log p over each group."""
        for span, mass in groups:
            log_probs, probs = self.log_probs[span], self.probs[span]
            np.subtract(logits[span], logits[span].max(), out=log_probs)
            np.exp(log_probs, out=probs)
            total = probs.sum()
            probs *= mass / total
            log_probs += math.log(mass) - math.log(total)
            self.group_entropies.append(-float((probs * log_probs).sum()))
        self.entropy = sum(self.group_entropies)

    def entropy_gradient(self) -> Row:
        """∇H by the logits, `(vocab,)`, with every group's mass held: −p (log p + the group's own level)."""
        gradient = self.log_probs.copy()
        for (span, mass), entropy in zip(self.groups, self.group_entropies, strict=True):
            gradient[span] += entropy / mass
        gradient *= self.probs
        return np.negative(gradient, out=gradient)


def follow_entropy(
    start: Point, entropies: Sequence[float], direction: float, step_size: float = STEP_SIZE
) -> Iterator[Row]:
    """Follow ±∇H from `start` and give the distribution `(vocab,)` where the path meets each entropy (nats).

    `entropies` come in the order the path meets them: falling for direction −1, rising for +1. `step_size` is Adam's.
    """
    remaining = list(reversed(entropies))
    here = start
    moment, square = np.zeros_like(here.logits), np.zeros_like(here.logits)
    work = np.empty_like(here.logits)  # fresh memory for every term would double the time
    for step in range(1, max(MAX_STEPS, math.ceil(MAX_STEPS * STEP_SIZE / step_size)) + 1):
        if not remaining:
            return
        check_wanted()
        ascent = here.entropy_gradient()
        ascent *= direction
        moment *= MOMENT_DECAY
        moment += np.multiply(ascent, 1 - MOMENT_DECAY, out=work)
        square *= SQUARE_DECAY
        np.multiply(ascent, ascent, out=work)
        work *= 1 - SQUARE_DECAY
        square += work
        # 1e-30 in place of Adam's 1e-8: at 50,000 tokens a gradient is already smaller than that.
        np.sqrt(square, out=work)
        work += 1e-30
        move = np.divide(moment, work, out=ascent)
        move *= step_size * math.sqrt(1 - SQUARE_DECAY**step) / (1 - MOMENT_DECAY**step)
        there = Point(here.logits + move, here.groups)
        while remaining and direction * (there.entropy - remaining[-1]) >= 0:
            yield _cut(here, move, there, remaining.pop())
        here = there
    # What the steps cannot reach lies next to the path's end: the rest of the way is scaling.
    while remaining:
        yield scale_to_entropy(here.logits, remaining.pop(), here.groups)


def _cut(here: Point, move: Row, there: Point, entropy: float) -> Row:
    """The distribution on the segment from `here` to `there` that has `entropy` (nats)."""
    best = there

    def miss(fraction: float) -> float:
        nonlocal best
        best = Point(here.logits + fraction * move, here.groups)
        return best.entropy - entropy

    find_root(miss, 0.0, 1.0, here.entropy - entropy, there.entropy - entropy)
    return best.probs


def scale_to_entropy(logits: Row, entropy: float, groups: Groups = WHOLE) -> Row:
    """softmax(s·logits) `(vocab,)` of the requested entropy (nats), the scale s found by bracketing and bisection.

    The entropy falls from log(vocab) at s = 0 towards 0 as s grows, so there is one such s unless
    several tokens share the largest logit, which random logits do not.
    """
    best = Point(logits, groups)

    def miss(log_scale: float) -> float:
        nonlocal best
        check_wanted()
        best = Point(logits * math.exp(log_scale), groups)
        return best.entropy - entropy

    low = high = 0.0
    low_miss = high_miss = miss(0.0)
    step = 1.0
    while low_miss < 0 and low > -_LARGEST_LOG_SCALE:
        low, high, high_miss, step = low - step, low, low_miss, 2 * step
        low_miss = miss(low)
    while high_miss > 0 and high < _LARGEST_LOG_SCALE:
        low, high, low_miss, step = high, high + step, high_miss, 2 * step
        high_miss = miss(high)
    if low_miss > 0 > high_miss:
        find_root(miss, low, high, low_miss, high_miss)
    return best.probs  # at a limit of what scaling reaches, that limit


def find_root(miss: Callable[[float], float], low: float, high: float, low_miss: float, high_miss: float) -> float:
    """Where `miss` (nats) is 0 to the entropy's tolerance, between two points where its signs differ.

    False position with the Illinois rule, which takes a few evaluations where `miss` is smooth;
    bisection where it is not. The last evaluation is at the answer.
    """
    middle = low
    low_part, high_part = low_miss, high_miss  # what the ends count; an end that stays twice running counts half
    replaced_low: bool | None = None
    for count in range(100):
        middle = (low * high_part - high * low_part) / (high_part - low_part) if count < 10 else (low + high) / 2
        value = miss(middle)
        if abs(value) <= ENTROPY_TOLERANCE_NATS or middle in (low, high):
            return middle
        if (value > 0) == (low_miss > 0):
            low, low_part = middle, value
            high_part /= 2 if replaced_low is True else 1
            replaced_low = True
        else:
            high, high_part = middle, value
            low_part /= 2 if replaced_low is False else 1
            replaced_low = False
    return middle
