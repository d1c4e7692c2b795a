"""How many dials a head has: floors of random distributions over ever more tokens.

A head turns u, `hidden` numbers, into the odds of the whole vocabulary. A distribution over n tokens is n − 1 free
numbers. While these are no more than u has, some u says exactly what was asked for (if the final norm lets it be as
long as it must be); beyond, hardly any random distribution can be said: the softmax bottleneck (Yang et al. 2018,
arXiv 1711.03953), seen where it begins.

What is measured: n tokens drawn at random, log-odds drawn from a standard normal, and the certified floor of that
distribution among these n alone. Among all tokens KL(p‖q) is larger still, by −log of what q leaves to the n, so the
floor holds there too. Draws are nested: more tokens are the same ones and others.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.floor.prepared import floor_solver
from dpexplore.floor.solver import FloorSolver
from dpexplore.models.language_model import LanguageModel

MOST_TOKENS = 2**15
"""More are not drawn: their rows are copied, and the curve has levelled off long before."""
STEPS_TO_DOUBLE = 2
"""Sizes of the curve between a number of tokens and its double."""


@dataclass(frozen=True)
class Dial:
    """The floor of one random distribution."""

    tokens: int
    """n, the tokens it is over."""
    lower_bound_nats: float
    """Certified: KL(p‖q) of no prompt is smaller."""
    kl_nats: float
    """At the best u found."""
    alike_nats: float
    """KL(p‖q) of a q that says all n alike."""


class Dials:
    """A head's floors over ever more of its tokens, each computed once. Safe to use from several threads."""

    def __init__(self, solver: FloorSolver, ids: Tensor, seed: int = 0) -> None:
        """ids `(n,)`: the tokens to draw from."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(ids), generator=generator)[:MOST_TOKENS]
        self._solver, self._ids = solver, ids[drawn].to(solver.device)
        self._log_odds = torch.randn(len(drawn), generator=generator, dtype=torch.float64).to(solver.device)
        self._known: dict[int, Dial] = {}
        self._gate = threading.Lock()
        self.dials = solver.hidden_size - solver.products.zero_mean
        """Numbers that u is free to choose: `hidden`, one less where the final norm takes the mean off."""

    @property
    def most_tokens(self) -> int:
        return len(self._ids)

    def sizes(self) -> list[int]:
        """Numbers of tokens for a curve: powers of two and what lies between, and one more than there are dials."""
        steps = range(STEPS_TO_DOUBLE, STEPS_TO_DOUBLE * int(math.log2(self.most_tokens)) + 1)
        sizes = {round(2 ** (step / STEPS_TO_DOUBLE)) for step in steps} | {self.dials + 1, self.most_tokens}
        return sorted(size for size in sizes if size <= self.most_tokens)

    def at(self, tokens: int) -> Dial:
        """The floor over this many tokens. InputError unless there are as many, two at least."""
        if not 2 <= tokens <= self.most_tokens:
            raise InputError(f"{tokens:,} tokens cannot be drawn here; use 2 to {self.most_tokens:,}.")
        with self._gate:
            if tokens not in self._known:
                self._known[tokens] = self._measure(tokens)
            return self._known[tokens]

    def _measure(self, tokens: int) -> Dial:
        whole, ids = self._solver, self._ids[:tokens]
        part = FloorSolver(
            whole.products.matrix[ids],
            whole.bias[ids],
            whole.radius,
            zero_mean=whole.products.zero_mean,
            rounding=whole.rounding,
        )
        probs = self._log_odds[:tokens].softmax(0)
        found = part.solve(probs, ladder=False)[0]
        alike = math.log(tokens) - float(torch.special.entr(probs).sum())
        return Dial(tokens, found.lower_bound_nats, found.kl_nats, alike)


_prepared: WeakKeyDictionary[LanguageModel, Dials] = WeakKeyDictionary()
_preparing = threading.Lock()


def dials_of(lm: LanguageModel) -> Dials:
    """A model's, kept as long as the model. NoHead (an InputError) if it has no softmax head."""
    with _preparing:
        if lm not in _prepared:
            _prepared[lm] = Dials(floor_solver(lm), lm.ordinary_ids)
        return _prepared[lm]
