"""The numbers of every step, written once for all rows of a batch; each run reads those of its own rows from them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

KL, ENTROPY, BEST_LOSS, BEST_KL, EVALUATIONS = range(5)
"""Columns: KL(p‖q) and entropy in nats as a row reports them, NaN where not finite; its best so far; prompts scored."""
WIDTH = 5

STEPS_PER_CHUNK = 64


class Chunk:
    """Consecutive steps. Chunks are chained, so that those that nobody has yet to read are freed by themselves."""

    __slots__ = ("made", "next", "numbers")

    def __init__(self, slots: int) -> None:
        self.numbers = np.full((STEPS_PER_CHUNK, slots, WIDTH), np.nan, np.float32)
        self.made = 0
        self.next: Chunk | None = None


class Bests(NamedTuple):
    """The best prompts of a batch's rows, as of its latest step; replaced as a whole and never changed."""

    slots: np.ndarray
    """`(rows,)`: whose they are."""
    best_loss: Tensor
    """`(rows,)`; infinite where none was finite."""
    best_kl: Tensor
    """`(rows,)`."""
    best_ids: Tensor
    """`(rows pos)`."""
    best_embeds: Tensor
    """`(rows pos hidden)`."""
    watched: np.ndarray
    """`(watched,)` slots of rows whose log q is kept,"""
    log_q: Tensor | None
    """`(watched vocab)`; NaN until a row improves."""


class StepLog:
    """Written by the thread that steps, read by any. A row has a slot for as long as it is in the batch."""

    def __init__(self) -> None:
        self._head = Chunk(0)
        self._free: list[int] = []
        self._slots = 0
        self.bests: Bests | None = None

    def claim(self, count: int) -> np.ndarray:
        """Slots for rows that join, `(count,)`."""
        while len(self._free) < count:
            grown = max(2 * self._slots, self._slots + count)
            self._free += range(self._slots, grown)
            self._slots = grown
        slots, self._free = self._free[:count], self._free[count:]
        if self._slots > self._head.numbers.shape[1]:
            self._roll()
        return np.array(slots, dtype=np.int64)

    def release(self, slots: np.ndarray) -> None:
        """Rows have left, and nobody reads their slots any more."""
        self._free += slots.tolist()

    def append(self, slots: np.ndarray, numbers: np.ndarray) -> None:
        """A step's numbers `(rows WIDTH)` of the rows in `slots` `(rows,)`."""
        if self._head.made == STEPS_PER_CHUNK:
            self._roll()
        self._head.numbers[self._head.made, slots] = numbers
        self._head.made += 1

    def view(self, slots: np.ndarray) -> LogView:
        """What is going to be written of some rows from now on."""
        return LogView(self, self._head, slots)

    def _roll(self) -> None:
        fresh = Chunk(self._slots)
        self._head.next = fresh
        self._head = fresh


class LogView:
    """Some rows' numbers, step by step."""

    def __init__(self, log: StepLog, chunk: Chunk, slots: np.ndarray) -> None:
        self.log, self.slots = log, slots
        self._chunk, self._seen = chunk, chunk.made

    def take(self) -> np.ndarray:
        """The steps since the last call, `(steps rows WIDTH)`."""
        parts = []
        while True:
            following, made = self._chunk.next, self._chunk.made  # in this order: a chunk with a follower is complete
            parts.append(self._chunk.numbers[self._seen : made, self.slots])
            self._seen = made
            if following is None:
                return np.concatenate(parts)
            self._chunk, self._seen = following, 0
