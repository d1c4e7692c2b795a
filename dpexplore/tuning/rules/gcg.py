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
        table, may = stack.lm.embedding_table, active(stack, rows)
        ranked: dict[int, Tensor] = {}
        for i in may:
            row = stack.rows[i]
            slopes = found.grad[i, row.run.layout.hard.nonzero()[:, 0]]
            scores = -(slopes.to(table.dtype) @ table.T).float()
            ranked[i] = best_tokens(row, scores, row.run.config.top)
        ids = stack.prompts.ids.tolist()
        proposals: dict[int, list[Prompt]] = {
            i: swaps(stack.lm, stack.rows[i], ids[i], ranked[i].cpu(), set(), may[i]) for i in may
        }
        scored = yield from score(stack, present, proposals)
        move(stack, present, {i: each[losses.argmin()] for i, (each, losses) in scored.items()})
