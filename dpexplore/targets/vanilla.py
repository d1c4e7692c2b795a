"""Vanilla targets: a requested entropy, reached from random logits (Distribution Prompting, Eq. 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dpexplore.checks import check_number
from dpexplore.errors import InputError
from dpexplore.targets.descent import LARGEST_STEP, LEAST_STEP, STEP_SIZE, Point, follow_entropy, scale_to_entropy
from dpexplore.targets.target import NATS_PER_BIT

Method = Literal["gradient", "temperature"]
METHODS: tuple[str, ...] = ("gradient", "temperature")
"""The two vanilla families. Eq. 1 has many solutions, and which one is found depends on the descent, of which the paper
says no more than its name; so every comparison with vanilla targets is made with both."""


def check_family(method: object, step: object) -> float:
    """The step of a vanilla family. InputError for a method that is none, or a step that it does not have."""
    if method not in METHODS:
        raise InputError(f"`method` is {method!r}; use 'gradient' or 'temperature'.")
    span = f"a number from {LEAST_STEP:g} to {LARGEST_STEP:g}"
    number = check_number("step", step, span, lambda x: LEAST_STEP <= x <= LARGEST_STEP)
    if method == "temperature" and number != STEP_SIZE:
        raise InputError("`step` belongs to method 'gradient'; 'temperature' takes no steps, so leave it out.")
    return number


def family_text(method: str, step: float) -> dict[str, object]:
    """What a recipe's text says of its family: nothing of what is not chosen."""
    chosen: dict[str, object] = {} if method == "gradient" else {"method": method}
    return chosen if step == STEP_SIZE else {**chosen, "step": step}


_END_SLACK_BITS = 1e-9  # a request this close to 0 or log2(vocab) is a request for it, rounded


def check_bits(bits: float, vocab_size: int) -> None:
    """InputError unless a distribution over `vocab_size` tokens can have this entropy."""
    limit = math.log2(vocab_size)
    if not 0 <= bits <= limit + _END_SLACK_BITS:
        raise InputError(
            f"The entropy of a distribution over {vocab_size:,} tokens lies from 0 to {limit:.4f} bits; "
            f"{bits:g} was asked for."
        )


def is_uniform(bits: float, vocab_size: int) -> bool:
    """Whether this entropy is log2(vocab)."""
    return bits >= math.log2(vocab_size) - _END_SLACK_BITS


def is_certain(bits: float) -> bool:
    """Whether this entropy is 0."""
    return bits <= _END_SLACK_BITS


def random_logits(vocab_size: int, seed: int) -> Tensor:
    """Standard normal logits `(vocab,)`, float64, from their own CPU generator."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(vocab_size, generator=generator, dtype=torch.float64)


def vanilla_target(
    vocab_size: int, bits: float, seed: int, method: Method = "gradient", step: float = STEP_SIZE
) -> Tensor:
    """Probabilities `(vocab,)` float64 of entropy `bits`; see `vanilla_targets`."""
    return vanilla_targets(vocab_size, [bits], seed, method, step)[0]


def vanilla_targets(
    vocab_size: int, bits: Sequence[float], seed: int, method: Method = "gradient", step: float = STEP_SIZE
) -> Tensor:
    """Probabilities `(len(bits) vocab)` float64, one row an entropy, all from the logits of one seed (Eq. 1).

    `gradient` follows the gradient of the entropy by Adam with steps of `step` (`descent`), once for
    all rows; `temperature` scales the logits. Every row is what `vanilla_target` gives for it. 0 bits is the limit, all
    mass on the leading token; log2(vocab) bits is the uniform distribution. InputError for an
    entropy out of range.
    """
    for value in bits:
        check_bits(value, vocab_size)
    logits = random_logits(vocab_size, seed).numpy()
    rows = np.empty((len(bits), vocab_size))
    wanted: list[tuple[float, int]] = []
    for row, value in enumerate(bits):
        if is_certain(value):
            rows[row] = np.arange(vocab_size) == logits.argmax()
        elif is_uniform(value, vocab_size):
            rows[row] = 1 / vocab_size
        else:
            wanted.append((value * NATS_PER_BIT, row))
    if method == "temperature":
        for entropy, row in wanted:
            rows[row] = scale_to_entropy(logits, entropy)
        return torch.from_numpy(rows)
    start = Point(logits)
    below = sorted((pair for pair in wanted if pair[0] <= start.entropy), reverse=True)
    above = sorted(pair for pair in wanted if pair[0] > start.entropy)
    for pairs, direction in ((below, -1.0), (above, 1.0)):
        for (_, row), probs in zip(pairs, follow_entropy(start, [h for h, _ in pairs], direction, step), strict=True):
            rows[row] = probs
    return torch.from_numpy(rows)
