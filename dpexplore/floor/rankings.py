"""Which tokens a head can rank first, and in which order: a linear feasibility problem over the ball of its states.

A head's logits are Au + b with ‖u‖ ≤ R. Tokens i₁ … i_k come first, in this order, at margin m if

    (a_w − a_l)·u + b_w − b_l ≥ m

for the pairs (w, l) = (i₁, i₂), …, (i_{k−1}, i_k) and (i_k, j) for every other token j. The largest m over the ball is
a concave maximum, so a point u and multipliers λ ≥ 0, Σλ = 1 on the pairs hold it from both sides:

    margin(u) ≤ max margin ≤ R‖Σ λ(a_w − a_l)‖ + Σ λ(b_w − b_l).

A token whose bound is nothing can never be first: without a bias, its row of A then lies in the convex hull of other
rows (Demeter, Kimmel and Downey 2020; Grivas, Bogoychev and Lopez 2022). The multipliers prove it to anyone:
`dpexplore.floor.proof` checks them with NumPy alone.

**What "can" means.** A model that computes in float32 cannot tell margins below its rounding from a tie, so a token
counts as first only if its margin exceeds `resolution_nats` = 4·R·max‖a_v‖·2⁻²⁴ (about 1e-4 nats): twice the most
that storing A in float32 can move a margin. `can` is True if some u on the sphere ‖u‖ = R, where the final norm puts
its output, has a margin proved to be larger; False if no u of the whole ball has; None if neither was proved. The
proofs pay for float64 arithmetic and for the rounding of A's entries, as `dpexplore.floor.certificate` does.

**How it is decided.** First the direction Σ⁻¹(a_i − mean), Σ the covariance of A's rows, which lifts a row above the
cloud of the others (99.9 % of a vocabulary). Where it fails, cutting planes: the multipliers for the pairs met so far
are the point of their convex hull closest to the origin, a non-negative least-squares problem; the point they prove
best is tried on the whole vocabulary, and the tokens that stand in the way join the pairs.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.floor.certificate import EPSILON
from dpexplore.floor.hull import closest_to_origin, largest_margin_biased
from dpexplore.floor.search import sampled_hessian
from dpexplore.floor.solver import FloorSolver
from dpexplore.wanted import check_wanted

FLOAT32_ROUNDING = 2.0**-24
ADDED_RIVALS = 64
"""Tokens that join the pairs after each point tried."""
MAX_ROUNDS = 200
TOKENS_AT_ONCE = 512
ROUNDS_TOGETHER = 16
"""Rounds for many tokens at once: enough for nearly all that can be first."""
RIDGE = 1e-6
"""Added to the covariance's eigenvalues, as a share of their mean: rows may not span every direction."""
LOGITS_AT_ONCE = 2**25
WALKS = 32
WALK_STEPS = 30

Pair = tuple[int, int]
"""(the token that is above, the token that is below)."""


@dataclass(frozen=True)
class Proof:
    """Multipliers on pairs: they sum to 1 and bound the margin of every u in the ball."""

    pairs: list[Pair]
    weights: list[float]
    """Same length, each above 0."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Whether tokens can come first, in this order, strictly (by more than `resolution_nats`)."""

    ids: list[int]
    can: bool | None
    """None: neither was proved."""
    kind: Literal["ball", "sphere"]
    """Where the answer was proved: a yes on the sphere; a no for the whole ball, so for the sphere too."""
    margin_nats: float
    """At least this, at `point`: the smallest lead of a token over the one that should come after it."""
    margin_bound_nats: float | None
    """No u of the ball has a larger margin; None where a yes came without one."""
    resolution_nats: float
    point: Tensor = field(repr=False)
    """The best u found, `(hidden,)` float64."""
    probs: Tensor | None = field(repr=False)
    """softmax(Au + b) there, `(vocab,)` float64; None where many tokens are decided at once."""
    proof: Proof | None
    """The multipliers that `margin_bound_nats` rests on."""
    seconds: float


class RankingSolver:
    """The same prepared head that floors come from, asked for rankings."""

    def __init__(self, head: FloorSolver) -> None:
        self.products = head.products
        self.bias = head.bias
        self.radius = head.radius
        self.rounding = head.rounding
        self.row_norms = head.row_norms
        self.device = head.device
        self.biased = bool(head.bias.any())
        largest = float(head.row_norms.max())
        self.resolution_nats = 4 * head.radius * largest * FLOAT32_ROUNDING
        self.size = head.radius * largest + float(head.bias.abs().max())
        """No logit is larger."""
        terms = head.hidden_size + 8
        self.arithmetic = 4 * terms * EPSILON * self.size
        """Bounds the float64 error of one margin: two sums of `hidden` terms, their difference and the bias."""
        self.float32_error = 2 * terms * FLOAT32_ROUNDING * self.size
        """Bounds the float32 error of one margin: a sum of n products is off by n·2⁻²⁴ times the sum of their sizes."""

    def decide(
        self,
        ids: Sequence[int],
        *,
        gap_nats: float | None = None,
        seconds: float = 60.0,
        start: Tensor | None = None,
    ) -> Ranking:
        """Whether `ids` can be the first tokens, in this order.

        gap_nats: go on after a yes until its margin is known to be this close to the largest there is. seconds: of
        wall time, after which what is not proved stays None. start: a u `(hidden,)` to try first. InputError for ids
        that repeat or that the vocabulary does not have.
        """
        ids = self._checked(ids)
        began = time.monotonic()
        others = torch.ones(self.products.vocab_size, dtype=torch.bool, device=self.device)
        others[ids] = False
        pairs: list[Pair] = [*itertools.pairwise(ids)]
        rivals: set[int] = set()
        best, best_point = -math.inf, torch.zeros(self.products.hidden_size, dtype=torch.float64, device=self.device)
        bound, proof = math.inf, None
        point = self._first_points([ids])[0] if start is None else self._to_sphere(start)
        for _ in range(MAX_ROUNDS):
            check_wanted()
            logits = self._logits(point, exact=False)
            margin = self._margin(logits, ids, others)
            if margin > best - self.float32_error:
                margin = self._margin(self._logits(point, exact=True), ids, others) - self._cost(ids)
                if margin > best:
                    best, best_point = margin, point
            yes, no = best > self.resolution_nats, bound <= self.resolution_nats
            if no or (yes and (gap_nats is None or bound - best <= gap_nats)) or time.monotonic() - began > seconds:
                break
            count = min(ADDED_RIVALS, int(others.sum()))
            highest = torch.topk(logits.masked_fill(~others, -torch.inf), count).indices.tolist()
            new = [j for j in highest if j not in rivals]
            if not new and proof is not None:
                break  # solved as exactly as float64 can
            rivals.update(new)
            pairs += [(ids[-1], j) for j in new]
            weights, point = self._largest_margin(pairs)
            trial = self._proof(pairs, weights)
            trial_bound = self.bound(trial)
            if trial_bound < bound:
                bound, proof = trial_bound, trial
        kind: Literal["ball", "sphere"] = "ball"
        can: bool | None = False if bound <= self.resolution_nats else None
        if can is None and best > self.resolution_nats:
            outside = self._to_the_sphere(best_point, ids, others) if self.biased else best_point
            if outside is not None:
                can, kind = True, "sphere"
                if outside is not best_point:
                    best_point = outside
                    best = self._margin(self._logits(outside, exact=True), ids, others) - self._cost(ids)
        return Ranking(
            ids=ids,
            can=can,
            kind=kind,
            margin_nats=best,
            margin_bound_nats=bound if proof is not None else None,
            resolution_nats=self.resolution_nats,
            point=best_point,
            probs=self._logits(best_point, exact=True).softmax(-1),
            proof=proof,
            seconds=time.monotonic() - began,
        )

    def decide_each(self, ids: Sequence[int], *, seconds: float = 60.0) -> Iterator[Ranking]:
        """Whether each of the tokens can be first, in the order given; `seconds` for each that is not easy."""
        for index in ids:
            self._checked([index])
        at_once = max(16, min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // self.products.vocab_size))
        for first in range(0, len(ids), at_once):
            block = [int(index) for index in ids[first : first + at_once]]
            began = time.monotonic()
            points, margins = self._easy(block)
            share = (time.monotonic() - began) / len(block)
            for index, point, margin in zip(block, points, margins, strict=True):
                if margin > self.resolution_nats:
                    yield Ranking([index], True, "sphere", margin, None, self.resolution_nats, point, None, None, share)
                else:
                    yield self.decide([index], seconds=seconds)

    def _easy(self, block: list[int]) -> tuple[Tensor, list[float]]:
        """Points of the sphere for many tokens `(rows hidden)` and the margins proved there, in float32 products.

        Rounds of `decide` for all of them together, as far as they go without a bias; a token that is not seen to be
        first after them needs `decide` itself.
        """
        points, margins = self._first_points([[index] for index in block]), [-math.inf] * len(block)
        rivals: list[set[int]] = [set() for _ in block]
        left = list(range(len(block)))
        for round_ in range(1 if self.biased else ROUNDS_TOGETHER):
            check_wanted()
            for row in left if round_ else ():
                others = list(rivals[row])
                weights, points[row] = self._largest_margin([(block[row], j) for j in others])
                rivals[row] = {others[place] for place in np.flatnonzero(weights)}  # the rest does not bind it
            logits = self._logits(points[left], exact=False)
            own_ids = torch.tensor([block[row] for row in left], device=self.device)[:, None]
            own = logits.gather(1, own_ids)
            logits.scatter_(1, own_ids, -torch.inf)
            found = (own[:, 0] - logits.amax(1)).double() - self.float32_error - self._costs(own_ids[:, 0])
            highest = torch.topk(logits, min(ADDED_RIVALS, logits.shape[1] - 1)).indices.tolist()
            for row, margin, others in zip(left, found.tolist(), highest, strict=True):
                margins[row] = margin
                rivals[row].update(others)
            left = [row for row in left if margins[row] <= self.resolution_nats]
            if not left:
                break
        return points, margins

    def bound(self, proof: Proof) -> float:
        """What a proof proves: no u of the ball has a larger margin, in nats, rounding included."""
        rows, leads = self._rows(proof.pairs)
        weights = torch.tensor(proof.weights, dtype=torch.float64, device=self.device)
        reach = self.radius * float((weights @ rows).norm()) + float(weights @ leads)
        pairs = torch.tensor(proof.pairs, device=self.device)
        stored = self.rounding * self.radius * float(weights @ self.row_norms[pairs].sum(1))
        return reach + self.arithmetic + len(weights) * EPSILON * self.size + stored

    def _checked(self, ids: Sequence[int]) -> list[int]:
        ids = [int(index) for index in ids]
        if not ids:
            raise InputError("Name at least one token.")
        if len(set(ids)) < len(ids):
            raise InputError("A token is named twice; each can stand at one place of an order.")
        size = self.products.vocab_size
        for index in ids:
            if not 0 <= index < size:
                raise InputError(f"There is no token id {index}; this head has the ids 0 to {size - 1}.")
        if size < 2:
            raise InputError("This head has one token alone, which is always first.")
        return ids

    @cached_property
    def _whitening(self) -> tuple[Tensor, Tensor]:
        """The mean of A's rows `(hidden,)` and Σ⁻¹ `(hidden hidden)`, float32: they only choose where to look."""
        products = self.products
        uniform = torch.full((products.vocab_size,), 1 / products.vocab_size, dtype=torch.float64, device=self.device)
        mean = products.backward(uniform[None], exact=False)[0]
        covariance = products.covariance
        if covariance is None:
            covariance = sampled_hessian(products, uniform)
        values, vectors = torch.linalg.eigh(covariance.double())
        inverse = vectors / (values.clamp_min(0) + RIDGE * values.mean()) @ vectors.T
        return mean.float(), inverse.float()

    def _first_points(self, orders: Sequence[Sequence[int]]) -> Tensor:
        """Σ⁻¹(a − mean) on the sphere for the tokens of each order, earlier ones weighing more, `(rows hidden)`."""
        mean, inverse = self._whitening
        matrix = self.products.matrix
        lifted = []
        for ids in orders:
            weights = torch.arange(len(ids), 0, -1, device=self.device, dtype=torch.float32)
            lifted.append(weights @ (self.products.centre(matrix[list(ids)].float()) - mean))
        return self._to_sphere((torch.stack(lifted) @ inverse).double())

    def _to_sphere(self, points: Tensor) -> Tensor:
        points = self.products.centre(points)
        return points * (self.radius / points.norm(dim=-1, keepdim=True).clamp_min(1e-300))

    def _logits(self, points: Tensor, *, exact: bool) -> Tensor:
        """`(… hidden)` float64 -> logits `(… vocab)`: float64, or A's own dtype if not `exact`."""
        if exact:
            return (self.products.forward(points.reshape(-1, points.shape[-1])) + self.bias).reshape(
                *points.shape[:-1], -1
            )
        matrix = self.products.matrix
        return points.to(matrix.dtype) @ matrix.T + self.bias.to(matrix.dtype)

    def _margin(self, logits: Tensor, ids: list[int], others: Tensor) -> float:
        """The smallest lead in the order, logits `(vocab,)`."""
        chain = logits[ids]
        leads = [chain[:-1] - chain[1:]]
        if len(ids) < len(logits):
            leads.append((chain[-1] - logits.masked_fill(~others, -torch.inf).amax())[None])
        return float(torch.cat(leads).min())

    def _costs(self, ids: Tensor) -> Tensor:
        """Most by which arithmetic and the rounding of A can have raised the margin of each id, `(n,)`."""
        return self.arithmetic + self.rounding * self.radius * (self.row_norms[ids] + self.row_norms.max())

    def _cost(self, ids: list[int]) -> float:
        return float(self._costs(torch.tensor(ids, device=self.device)).max())

    def _rows(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """a_w − a_l `(pairs hidden)` as the head sees it and b_w − b_l `(pairs,)`, float64."""
        above, below = torch.tensor(list(pairs), device=self.device).T
        matrix = self.products.matrix
        rows = self.products.centre(matrix[above].double() - matrix[below].double())
        return rows, self.bias[above] - self.bias[below]

    def _proof(self, pairs: list[Pair], weights: np.ndarray) -> Proof:
        used = np.flatnonzero(weights > 0)
        return Proof([pairs[place] for place in used], weights[used].tolist())

    def _largest_margin(self, pairs: list[Pair]) -> tuple[np.ndarray, Tensor]:
        """Multipliers of the largest margin over these pairs alone, and the u that has it."""
        rows, leads = (part.cpu().numpy() for part in self._rows(pairs))
        if self.biased:
            weights, point = largest_margin_biased(rows, leads, self.radius)
        else:
            weights = closest_to_origin(rows)
            point = weights @ rows
        found = torch.from_numpy(point).to(self.device)
        length = float(found.norm())
        if not self.biased or length > self.radius:
            found = self._to_sphere(found)
        return weights, found

    def _to_the_sphere(self, point: Tensor, ids: list[int], others: Tensor) -> Tensor | None:
        """A u on the sphere with the same order, by hit-and-run from one inside; None if none was met.

        Without a bias a longer u only widens margins. With one the order's region may end inside the ball, and
        a largest margin over the sphere is not a concave problem.
        """
        if float(point.norm()) >= self.radius * (1 - 1e-9):
            return point
        generator = torch.Generator().manual_seed(0)
        least = self.resolution_nats + self._cost(ids)
        for _ in range(WALK_STEPS):
            ways = torch.randn(WALKS, len(point), generator=generator, dtype=torch.float64).to(self.device)
            ways = self._to_sphere(ways) / self.radius
            leads = self._leads(self._logits(point, exact=True)[None], ids, others) - least
            rates = self._leads(self.products.forward(ways), ids, others)
            room = torch.where(rates < 0, leads / -rates, torch.inf).amin(1)
            along = ways @ point
            out = -along + (along.square() + self.radius**2 - point.square().sum()).sqrt()
            for way, distance in zip(ways[out < room], out[out < room], strict=True):
                ends = self._to_sphere(point + distance * way)
                if self._margin(self._logits(ends, exact=True), ids, others) > least:
                    return ends
            steps = torch.rand(WALKS, generator=generator, dtype=torch.float64).to(self.device) * room
            ends = point + steps[:, None] * ways
            point = ends[ends.norm(dim=1).argmax()]
        return None

    def _leads(self, logits: Tensor, ids: list[int], others: Tensor) -> Tensor:
        """Every lead in the order, `(rows vocab)` -> `(rows leads)`."""
        chain = logits[:, ids]
        return torch.cat([chain[:, :-1] - chain[:, 1:], chain[:, -1:] - logits[:, others]], 1)
