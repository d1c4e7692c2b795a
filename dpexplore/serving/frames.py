"""What a run said at recorded steps, over the whole vocabulary, so that any token can be followed afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np

MOST_FRAMES = 32
"""Most frames that a run keeps: 3 MB at 49,152 tokens."""


class Frames:
    """log q at evenly spread steps; when it is full every second one is dropped and the gaps double."""

    def __init__(self, vocab_size: int, most: int = MOST_FRAMES) -> None:
        # Half precision: 1 % of a probability of 1e-5, finer than a line chart; one block, which goes back as one.
        self._log_q = np.empty((most, vocab_size), np.float16)
        self._stride = 1
        self._offered = 0
        self._gate = Lock()
        self.steps: list[int] = []

    def add(self, step: int, log_q: np.ndarray, *, last: bool = False) -> None:
        """log q `(vocab,)` after a step; the `last` one of a run is always kept."""
        due = self._offered % self._stride == 0
        self._offered += 1
        if not due and not last:
            return
        with self._gate:
            if len(self.steps) == len(self._log_q):
                self.steps = self.steps[::2]
                self._log_q[: len(self.steps)] = self._log_q[::2].copy()
                self._stride *= 2
            self._log_q[len(self.steps)] = log_q
            self.steps.append(step)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, however many frames there are."""
        return self._log_q.nbytes

    def snapshot(self) -> tuple[list[int], np.ndarray]:
        """`steps` and log q at each of them, `(len(steps) vocab)` float16, while the run may add others."""
        with self._gate:
            return list(self.steps), self._log_q[: len(self.steps)].copy()

    def follow(self, token_id: int) -> Sequence[float]:
        """A token's probability at each of `steps`."""
        return np.exp(self._log_q[: len(self.steps), token_id].astype(np.float64)).tolist()
