"""The search over hard tokens that betters Greedy Coordinate Gradient."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.tuning.engine.passes import Evaluation
from dpexplore.tuning.init.nearest import by_direction
from dpexplore.tuning.rules.hard import (
    DRAWS,
    HardRow,
    HardRows,
    Turn,
    active,
    best_tokens,
    lasting,
    move,
    room,
    score,
    swaps,
)
from dpexplore.tuning.rules.memory import Prompt, SearchMemory

SLOPE_DECAY = 0.7
"""Weight of the steps before in the running mean of gradients: one gradient alone ranks tokens hardly above chance."""
LEARN_FROM = 600
"""Latest scored prompts that the regression learns from."""
RIDGE = 1.0
"""Weight of the regression's penalty; its features are unit vectors, one a position."""
PAIRS = 8
"""Prompts of two or more swaps at once that are scored after the single swaps."""
PER_POSITION = 3
"""Best swaps of each position that are paired."""
KICK_AFTER = 6
"""Steps without improvement before a search goes on from its best prompt with a few tokens resampled."""
KICKED = 2
"""Tokens that are resampled then."""
WIDEST = 4096
"""`top` doubles with every step without improvement, up to this many tokens."""


class Search:
    """GCG's candidates, ranked by more than one gradient, never scored twice, combined, and kept only if better.

    A single gradient ranks distant tokens hardly above chance. The mean over the steps before ranks them better, and so
    does a ridge regression of the losses already paid for on the tokens' directions. GCG stops improving long before
    its evaluations are spent; where this search stops, it looks among more tokens, and then elsewhere.
    """

    def turn(self, stack: HardRows, present: Tensor, found: Evaluation, rows: Tensor) -> Turn:
        assert found.grad is not None
        may, ranked = active(stack, rows), dict[int, Tensor]()
        for i in may:
            row = stack.rows[i]
            if row.run.layout.soft.any():
                row.memory.forget()
            where = row.run.layout.hard.nonzero()[:, 0]
            scores = _rank(stack.lm, row, found.grad[i, where], where)
            wider = min(max(WIDEST, row.run.config.top), row.run.config.top * 2**row.memory.failures)
            ranked[i] = best_tokens(row, scores, wider)
        losses, ids = found.loss.tolist(), stack.prompts.ids.tolist()
        singles: dict[int, list[Prompt]] = {}
        for i, wanted in may.items():
            row = stack.rows[i]
            row.memory.seen.add(tuple(ids[i]))
            singles[i] = swaps(stack.lm, row, ids[i], ranked[i].cpu(), row.memory.seen, wanted)
        scored = yield from score(stack, present, singles)
        left = room(stack)
        pairs = {
            i: _combine(stack.lm, stack.rows[i], ids[i], *found_here, losses[i])[: left[i]]
            for i, found_here in scored.items()
            if left[i] > 0
        }
        combined = yield from score(stack, present, pairs)
        moves: dict[int, Tensor] = {}
        for i in singles:
            parts = [part[i] for part in (scored, combined) if i in part]
            chosen = self._choice(stack, i, losses[i], parts)
            if chosen is not None:
                moves[i] = chosen
        move(stack, present, moves)

    @staticmethod
    def _choice(stack: HardRows, i: int, before: float, parts: list[tuple[Tensor, Tensor]]) -> Tensor | None:
        """The best candidate if it is better than the prompt before, and sometimes somewhere else if not, `(pos,)`."""
        row, memory = stack.rows[i], stack.rows[i].memory
        memory.failures += 1
        if parts:  # none where everything around the prompt has been scored
            ids, values = (torch.cat(column) for column in zip(*parts, strict=True))
            _learn(row, ids, values)
            best = int(values.argmin())
            if values[best] < before:
                memory.failures = 0
                return ids[best]
        if memory.failures >= KICK_AFTER and not row.run.layout.soft.any():
            memory.failures = 0
            memory.slope = None
            return _kicked(stack, i)
        return None


def _rank(lm: LanguageModel, row: HardRow, grad: Tensor, where: Tensor) -> Tensor:
    """Score per token at each hard position, `(hard vocab)`, higher is better; grad `(hard hidden)`."""
    memory = row.memory
    unit = grad / torch.linalg.vector_norm(grad).clamp_min(1e-12)
    slope = memory.slope = unit if memory.slope is None else SLOPE_DECAY * memory.slope + unit
    rises = [slope, _regress(lm, memory, where)] if memory.ids else [slope]
    scores = by_direction(lm, torch.stack(rises))
    return -(scores / scores.std(dim=(1, 2), keepdim=True).clamp_min(1e-12)).sum(0)


def _regress(lm: LanguageModel, memory: SearchMemory, where: Tensor) -> Tensor:
    """Ridge regression of the latest losses on the directions of the tokens at each hard position, `(hard hidden)`.

    Solved in its dual form, whose matrix has the size of the number of prompts.
    """
    ids = torch.cat(memory.ids)[-LEARN_FROM:, where].to(lm.device)
    losses = torch.cat(memory.losses)[-LEARN_FROM:].to(lm.device)
    features = torch.nn.functional.normalize(lm.embedding_table[ids].float(), dim=-1).flatten(1)
    losses = (losses - losses.mean()) / losses.std().clamp_min(1e-12)
    kernel = features @ features.T + RIDGE * torch.eye(len(features), device=features.device)
    factor, _ = torch.linalg.cholesky_ex(kernel)  # positive definite by the ridge
    weights = torch.cholesky_solve(losses[:, None], factor)[:, 0]
    return (weights @ features).view(len(where), -1)


def _learn(row: HardRow, ids: Tensor, losses: Tensor) -> None:
    """Remember prompts and their losses."""
    finite = torch.isfinite(losses)
    row.memory.ids = [*row.memory.ids, ids[finite]][-LEARN_FROM:]
    row.memory.losses = [*row.memory.losses, losses[finite]][-LEARN_FROM:]
    row.memory.seen.update(map(tuple, ids.tolist()))


def _kicked(stack: HardRows, i: int) -> Tensor:
    """A row's best prompt with a few of its hard tokens resampled, `(pos,)`; the best itself if none lasts."""
    row, best = stack.rows[i], stack.prompts.best_ids[i].cpu()
    layout = row.run.layout
    where, rng = layout.hard.nonzero()[:, 0], row.memory.rng
    prompts: list[Prompt] = []
    for _ in range(DRAWS):
        prompt = best.clone()
        places = where[torch.randperm(len(where), generator=rng)[:KICKED]]
        prompt[places] = layout.allowed[torch.randint(len(layout.allowed), (len(places),), generator=rng)]
        prompts.append(tuple(prompt.tolist()))
        if not row.run.config.round_trip:
            break
    found = lasting(stack.lm, row, prompts)
    return torch.tensor(found[0]) if found else best


def _combine(
    lm: LanguageModel, row: HardRow, base: Sequence[int], ids: Tensor, losses: Tensor, before: float
) -> list[Prompt]:
    """Prompts of two swaps that each improved on the loss `before`, and of the best swap of every position."""
    better: list[tuple[float, int, int]] = []
    for place in row.run.layout.hard.nonzero()[:, 0].tolist():
        here = (ids[:, place] != base[place]) & (losses < before)
        found = zip(losses[here].tolist(), ids[here, place].tolist(), strict=True)
        better += [(loss, place, token) for loss, token in sorted(found)[:PER_POSITION]]
    pairs = sorted(
        (one[0] + two[0], one, two) for one, two in itertools.combinations(sorted(better), 2) if one[1] != two[1]
    )
    groups: list[tuple[tuple[float, int, int], ...]] = [(one, two) for _, one, two in pairs[: PAIRS - 1]]
    firsts = {place: swap for swap in sorted(better, reverse=True) for place in [swap[1]]}
    if len(firsts) > 2:
        groups.append(tuple(firsts.values()))
    fresh: dict[Prompt, None] = {}
    for group in groups:
        prompt = list(base)
        for _, place, token in group:
            prompt[place] = token
        if tuple(prompt) not in row.memory.seen:
            fresh[tuple(prompt)] = None
    return lasting(lm, row, list(fresh))
