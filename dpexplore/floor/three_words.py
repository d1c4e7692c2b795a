"""What a model can ever say about three words relative to each other, in closed form.

Logits are Au + b with ‖u‖ ≤ R, so the two differences of three words' logits are D u + d with D `(2 hidden)` the
differences of their rows: over the ball that is a filled ellipse with centre d and matrix R²DDᵀ, and as `hidden` is
more than 2, the sphere, where the final norm puts u, fills it too. Softmax carries it into the triangle of the three
probabilities, divided by their sum. Whatever the prompt, the model's three words lie in there; and each point
of it comes from some u.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.floor.products import HeadProducts
from dpexplore.floor.solver import FloorSolver

OUTLINE_POINTS = 181
FLATTEST, SMALLEST = 1e-14, 1e-18
"""Of an ellipse's squared axes: rounding, relative and absolute."""
NEIGHBOURS = 24
BLOCK_ROWS = 2048


@dataclass(frozen=True, eq=False)
class ThreeWords:
    """The region of three words."""

    ids: tuple[int, int, int]
    outline: Tensor
    """Of the region: probabilities of the three, `(OUTLINE_POINTS 3)` float64, rows sum to 1; the last is the first."""
    centre: Tensor
    """d: log q1 − log q3 and log q2 − log q3 at u = 0, `(2,)` float64."""
    shape: Tensor
    """R²DDᵀ `(2 2)` float64: a pair x of log-odds can be said if (x − d)ᵀ shape⁻¹ (x − d) ≤ 1."""

    def can_say(self, weights: Sequence[float]) -> bool:
        """Whether three positive weights, relative to each other, lie in the region."""
        logs = torch.log(torch.tensor(list(weights), dtype=torch.float64))
        off = logs[:2] - logs[2] - self.centre
        values, vectors = torch.linalg.eigh(self.shape)
        widths = values.clamp_min(FLATTEST * float(values[-1]) + SMALLEST)  # equal rows leave no width at all
        return bool(((off @ vectors).square() / widths).sum() <= 1 + 1e-9)

    def most_log_odds(self, first: int, second: int) -> float:
        """The largest log(q_first / q_second) in nats that any prompt reaches; the words by their place, 0 to 2."""
        signs = torch.zeros(2, dtype=torch.float64)
        for place, sign in ((first, 1.0), (second, -1.0)):
            if place < 2:
                signs[place] += sign
        return float(signs @ self.centre + (signs @ self.shape @ signs).clamp_min(0).sqrt())


def three_words(solver: FloorSolver, ids: Sequence[int]) -> ThreeWords:
    """The region of three tokens. InputError unless there are three different ones."""
    if len(ids) != 3 or len(set(ids)) != 3:
        raise InputError("Choose three different words.")
    rows = solver.products.centre(solver.products.matrix[list(ids)].double())
    differences = rows[:2] - rows[2]
    biases = solver.bias[list(ids)]
    centre, shape = (biases[:2] - biases[2]).cpu(), (solver.radius**2 * differences @ differences.T).cpu()
    values, vectors = torch.linalg.eigh(shape)
    turn = torch.linspace(0, 2 * math.pi, OUTLINE_POINTS, dtype=torch.float64)
    circle = torch.stack([turn.cos(), turn.sin()], 1)
    edge = centre + (circle * values.clamp_min(0).sqrt()) @ vectors.T
    outline = torch.cat([edge, torch.zeros(len(edge), 1, dtype=torch.float64)], 1).softmax(1)
    first, second, third = ids
    return ThreeWords((first, second, third), outline, centre, shape)


def closest_two(products: HeadProducts) -> tuple[int, int]:
    """Two tokens whose rows of A are equal or nearly so, if there are any: the closest among neighbours along a line.

    Equal rows are neighbours along any line, nearly equal ones nearly always. InputError with fewer than two tokens.
    """
    if products.vocab_size < 2:
        raise InputError("This model has fewer than two tokens.")
    generator = torch.Generator().manual_seed(0)
    line = torch.randn(products.hidden_size, generator=generator).to(products.matrix)
    order = (products.matrix @ line).argsort()
    window = min(NEIGHBOURS, products.vocab_size - 1)
    closest, found = math.inf, order[:2].tolist()
    for start in range(0, products.vocab_size - 1, BLOCK_ROWS):
        rows = products.matrix[order[start : start + BLOCK_ROWS + window]]
        for ahead in range(1, min(window, len(rows) - 1) + 1):
            apart = (rows[ahead:] - rows[:-ahead])[:BLOCK_ROWS].norm(dim=1)
            place = int(apart.argmin())
            if float(apart[place]) < closest:
                closest = float(apart[place])
                found = order[[start + place, start + place + ahead]].tolist()
    return min(found), max(found)
