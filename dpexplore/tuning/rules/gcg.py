"""Greedy Coordinate Gradient."""

from __future__ import annotations

from torch import Tensor

from dpexplore.tuning.engine.passes import Evaluation
from dpexplore.tuning.rules.hard import HardRows, Turn, active, best_tokens, move, score, swaps
from dpexplore.tuning.rules.memory import Prompt


class GCG:
    """Greedy Coordinate Gradient (Zou et al., 2023): random swaps among each position's best-ranked tokens, scored.

    The best of them is taken, better than before or not.
    """

    def turn(self, stack: HardRows, present: Tensor, found: Evaluation, rows: Tensor) -> Turn:
        assert found.grad is not None
        table = stack.lm.embedding_table
        proposals: dict[int, list[Prompt]] = {}
        for i in active(stack, rows):
            row = stack.rows[i]
            slopes = found.grad[i, row.run.layout.hard.nonzero()[:, 0]]
            scores = -(slopes.to(table.dtype) @ table.T).float()
            proposals[i] = swaps(stack, i, best_tokens(row, scores, row.run.config.top), set())
        scored = yield from score(stack, present, proposals)
        for i, (ids, losses) in scored.items():
            move(stack, i, present, ids[losses.argmin()])
