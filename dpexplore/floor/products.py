"""The two products that everything about a head is made of."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

# A float64 copy of the head would double its memory. A block that stays in the processor's cache is
# converted, used and overwritten instead, which costs no more than reading the float32 head once.
BLOCK_ELEMENTS = {"cpu": 2**20}
DEFAULT_BLOCK_ELEMENTS = 2**25
CERTIFIED_ROWS = 1024
"""Of a block whose rounding is bounded: 1e-2 nats of a floor at the most."""
COVARIANCE_ROWS = 8192
COVARIANCE_WORK = 2e11
"""Multiplications: some seconds."""


class HeadProducts:
    """`u -> A u` and `w -> Aᵀ w` for a head matrix A `(vocab hidden)`, float64 in and out.

    With `exact`, computed in float64 by blocks; without, in A's own dtype, in one call, which costs the same on an
    idle machine and less on a busy one.

    With `zero_mean`, A stands for A·(I − 11ᵀ/hidden): it sees only the zero-mean part of u, as LayerNorm does.
    """

    def __init__(self, matrix: Tensor, zero_mean: bool) -> None:
        self.matrix = matrix
        self.zero_mean = zero_mean
        self.vocab_size, self.hidden_size = matrix.shape
        elements = BLOCK_ELEMENTS.get(matrix.device.type, DEFAULT_BLOCK_ELEMENTS)
        self._block_rows = min(self.vocab_size, max(1, elements // self.hidden_size))

    def centre(self, u: Tensor) -> Tensor:
        """The part of u `(… hidden)` that the head sees."""
        return u - u.mean(-1, keepdim=True) if self.zero_mean else u

    def blocks(self):
        buffer = torch.empty(self._block_rows, self.hidden_size, dtype=torch.float64, device=self.matrix.device)
        for start in range(0, self.vocab_size, self._block_rows):
            stop = min(start + self._block_rows, self.vocab_size)
            block = buffer[: stop - start]
            block.copy_(self.matrix[start:stop])
            yield start, stop, block

    def forward(self, u: Tensor, *, exact: bool = True) -> Tensor:
        """u `(rows hidden)` float64 -> A u `(rows vocab)` float64."""
        u = self.centre(u)
        if not exact or self.matrix.dtype == torch.float64:
            return (u.to(self.matrix.dtype) @ self.matrix.T).double()
        out = torch.empty(u.shape[0], self.vocab_size, dtype=torch.float64, device=u.device)
        for start, stop, block in self.blocks():
            out[:, start:stop] = u @ block.T
        return out

    def backward(self, w: Tensor, *, exact: bool = True) -> Tensor:
        """w `(rows vocab)` float64 -> Aᵀ w `(rows hidden)` float64."""
        if not exact or self.matrix.dtype == torch.float64:
            return self.centre((w.to(self.matrix.dtype) @ self.matrix).double())
        out = torch.zeros(w.shape[0], self.hidden_size, dtype=torch.float64, device=w.device)
        for start, stop, block in self.blocks():
            out += w[:, start:stop] @ block
        return self.centre(out)

    def backward_certified(self, w: Tensor) -> tuple[Tensor, float]:
        """w `(rows vocab)` float64 -> Aᵀ w `(rows hidden)`, and a bound on its rounding, soon rather than exactly.

        The bound is relative to Σ|w|·‖a_v‖. Blocks in A's own precision are summed up in float64, so that only a
        block's sum is rounded coarsely: n products in any order, fused or not, are off by at most n·ε/(1 − n·ε).
        """
        if self.matrix.dtype == torch.float64:
            return self.backward(w), 0.0
        rounded = w.to(self.matrix.dtype)
        out = torch.zeros(w.shape[0], self.hidden_size, dtype=torch.float64, device=w.device)
        for start in range(0, self.vocab_size, CERTIFIED_ROWS):
            rows = slice(start, start + CERTIFIED_ROWS)
            out += rounded[:, rows] @ self.matrix[rows]
        epsilon = torch.finfo(self.matrix.dtype).eps / 2
        return self.centre(out), (CERTIFIED_ROWS + 8) * epsilon

    @cached_property
    def covariance(self) -> Tensor | None:
        """Covariance of A's rows, `(hidden hidden)` float32; None where a processor would take long over it."""
        work = self.vocab_size * self.hidden_size**2
        if self.matrix.device.type == "cpu" and work > COVARIANCE_WORK:
            return None
        mean = self.matrix.mean(0, keepdim=True)
        total = torch.zeros(self.hidden_size, self.hidden_size, device=self.matrix.device)
        for rows in self.matrix.split(COVARIANCE_ROWS):
            centred = self.centre((rows - mean).to(torch.float32))
            total += centred.T @ centred
        return total / self.vocab_size

    def row_norms(self) -> Tensor:
        """Upper bounds on the length of each row of A, `(vocab,)` float64."""
        # Centring only shortens a row, so the plain length bounds both cases.
        return torch.cat([block.norm(dim=1) for _, _, block in self.blocks()])
