"""How hard tokens are swapped: the paper's Eq. 4, Greedy Coordinate Gradient, and the search that betters it."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.tuning.engine.passes import Batch, Evaluation
from dpexplore.tuning.init.layout import NO_TOKEN
from dpexplore.tuning.init.nearest import by_direction
from dpexplore.tuning.init.policy import survives

if TYPE_CHECKING:
    from dpexplore.tuning.engine.rows import Row, RowStack

Turn = Generator[Batch, Evaluation, None]
Prompt = tuple[int, ...]

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
"""So many."""
WIDEST = 4096
"""`top` doubles with every step without improvement, up to this many tokens."""
SURVIVORS_FROM = 4
"""Proposals per wanted candidate where prompts must survive a round trip."""
SURVIVORS_AMONG = 256
"""Tokens among which Eq. 4 with a round trip looks for one that survives."""
DRAWS = 20
"""Rounds of drawing candidates before fewer than asked for are accepted."""
SEARCH_STREAM = 2**32 - 1
"""Sets the search's random numbers apart from those of the initial prompts."""


@dataclass(eq=False)
class SearchMemory:
    """What a row's search has learnt of its own prompts."""

    rng: torch.Generator | None = None
    seen: set[Prompt] = field(default_factory=set)
    """Prompts that need no second look."""
    ids: list[Tensor] = field(default_factory=list)
    """Prompts scored, `(prompts pos)` a step."""
    losses: list[Tensor] = field(default_factory=list)
    """Their losses, `(prompts,)` a step."""
    failures: int = 0
    """Steps in a row that brought no better prompt than the one they began with."""
    slope: Tensor | None = None
    """`(hard hidden)`: running mean of unit gradients at the hard positions."""

    def forget(self) -> None:
        """The rest of the prompt has changed, so losses of before say nothing exact any more."""
        self.seen.clear()
        self.ids.clear()
        self.losses.clear()


class HardRule(Protocol):
    """A change of the hard positions by the gradient at the present prompts."""

    def turn(self, stack: RowStack, present: Tensor, found: Evaluation, rows: Tensor) -> Turn:
        """Swap tokens of some rows `(rows,)` bool, after whatever evaluations it takes.

        present `(rows pos hidden)`, the prompts that `found` is the evaluation of.
        """
        ...


class Eq4:
    """x = argmin over allowed tokens of [W(x) − θ]ᵀ∇ at one position a step, left to right, unchecked as in the paper.

    θᵀ∇ is the same for every x and drops out of the argmin.
    """

    def turn(self, stack: RowStack, present: Tensor, found: Evaluation, rows: Tensor) -> Turn:
        assert found.grad is not None
        now = stack.prompts.turns() & stack.prompts.hard
        rows = rows & now.any(1)
        position = now.long().argmax(1)
        which = torch.arange(len(rows), device=now.device)
        table = stack.lm.embedding_table
        scores = (found.grad[which, position].to(table.dtype) @ table.T).float()
        scores = scores.masked_fill(torch.stack([row.run.layout.barred for row in stack.rows]), torch.inf)
        token = scores.argmin(1)
        for i, row in enumerate(stack.rows):
            if row.run.config.round_trip and rows[i]:
                token[i] = _first_survivor(stack.lm, row, stack.prompts.ids[i].tolist(), int(position[i]), scores[i])
        which, position, token = which[rows], position[rows], token[rows]
        stack.prompts.ids = stack.prompts.ids.index_put((which, position), token)
        stack.prompts.embeds = stack.prompts.embeds.index_put((which, position), table[token].float())
        yield from ()


class GCG:
    """Greedy Coordinate Gradient (Zou et al., 2023): random swaps among each position's best-ranked tokens, scored.

    The best of them is taken, better than before or not.
    """

    def turn(self, stack: RowStack, present: Tensor, found: Evaluation, rows: Tensor) -> Turn:
        assert found.grad is not None
        table = stack.lm.embedding_table
        proposals: dict[int, list[Prompt]] = {}
        for i in _active(stack, rows):
            row = stack.rows[i]
            slopes = found.grad[i, row.run.layout.hard.nonzero()[:, 0]]
            scores = -(slopes.to(table.dtype) @ table.T).float()
            proposals[i] = _swaps(stack, i, _best_tokens(row, scores, row.run.config.top), set())
        scored = yield from _score(stack, present, proposals)
        for i, (ids, losses) in scored.items():
            _move(stack, i, present, ids[losses.argmin()])


class Search:
    """GCG's candidates, ranked by more than one gradient, never scored twice, combined, and kept only if better.

    A single gradient ranks distant tokens hardly above chance. The mean over the steps before ranks them better, and so
    does a ridge regression of the losses already paid for on the tokens' directions. GCG stops improving long before
    its evaluations are spent; where this search stops, it looks among more tokens, and then elsewhere.
    """

    def turn(self, stack: RowStack, present: Tensor, found: Evaluation, rows: Tensor) -> Turn:
        assert found.grad is not None
        losses = found.loss.tolist()
        singles: dict[int, list[Prompt]] = {}
        for i in _active(stack, rows):
            row = stack.rows[i]
            if row.run.layout.soft.any():
                row.memory.forget()
            where = row.run.layout.hard.nonzero()[:, 0]
            scores = _rank(stack.lm, row, found.grad[i, where], where)
            row.memory.seen.add(tuple(stack.prompts.ids[i].tolist()))
            wider = min(max(WIDEST, row.run.config.top), row.run.config.top * 2**row.memory.failures)
            singles[i] = _swaps(stack, i, _best_tokens(row, scores, wider), row.memory.seen)
        scored = yield from _score(stack, present, singles)
        combined = yield from _score(
            stack, present, {i: _combine(stack, i, *scored[i], losses[i]) for i in scored if _room(stack, i) > 0}
        )
        for i in singles:
            parts = [part[i] for part in (scored, combined) if i in part]
            self._choose(stack, i, present, losses[i], parts)

    @staticmethod
    def _choose(stack: RowStack, i: int, present: Tensor, before: float, parts: list[tuple[Tensor, Tensor]]) -> None:
        """Go on from the best candidate if it is better than the prompt before, and sometimes from elsewhere if not."""
        row, memory = stack.rows[i], stack.rows[i].memory
        memory.failures += 1
        if parts:  # none where everything around the prompt has been scored
            ids, values = (torch.cat(column) for column in zip(*parts, strict=True))
            _learn(row, ids, values)
            best = int(values.argmin())
            if values[best] < before:
                memory.failures = 0
                _move(stack, i, present, ids[best])
                return
        if memory.failures >= KICK_AFTER and not row.run.layout.soft.any():
            memory.failures = 0
            memory.slope = None
            _move(stack, i, present, _kicked(stack, i))


def _active(stack: RowStack, rows: Tensor) -> list[int]:
    """Rows that have hard positions and may still score prompts."""
    some = (rows & stack.prompts.hard.any(1)).tolist()
    return [i for i, active in enumerate(some) if active and _room(stack, i) > 0]


def _room(stack: RowStack, i: int) -> int:
    """How many candidates a row may score now."""
    config = stack.rows[i].run.config
    if config.evaluations is None:
        return config.candidates
    return min(config.candidates, config.evaluations - int(stack.prompts.evaluations[i]))


def _rank(lm: LanguageModel, row: Row, grad: Tensor, where: Tensor) -> Tensor:
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
    ids = torch.cat(memory.ids)[-LEARN_FROM:, where]
    losses = torch.cat(memory.losses)[-LEARN_FROM:]
    features = torch.nn.functional.normalize(lm.embedding_table[ids].float(), dim=-1).flatten(1)
    losses = (losses - losses.mean()) / losses.std().clamp_min(1e-12)
    kernel = features @ features.T
    weights = torch.linalg.solve(kernel + RIDGE * torch.eye(len(kernel), device=kernel.device), losses)
    return (weights @ features).view(len(where), -1)


def _learn(row: Row, ids: Tensor, losses: Tensor) -> None:
    """Remember prompts and their losses."""
    finite = torch.isfinite(losses)
    row.memory.ids = [*row.memory.ids, ids[finite]][-LEARN_FROM:]
    row.memory.losses = [*row.memory.losses, losses[finite]][-LEARN_FROM:]
    row.memory.seen.update(map(tuple, ids.tolist()))


def _kicked(stack: RowStack, i: int) -> Tensor:
    """A row's best prompt with a few of its hard tokens resampled, `(pos,)`; the best itself if none lasts."""
    row, best = stack.rows[i], stack.prompts.best_ids[i]
    layout = row.run.layout
    where, rng = layout.hard.nonzero()[:, 0], row.memory.rng
    prompts: list[Prompt] = []
    for _ in range(DRAWS):
        prompt = best.cpu().clone()
        places = where[torch.randperm(len(where), generator=rng)[:KICKED]]
        prompt[places] = layout.allowed[torch.randint(len(layout.allowed), (len(places),), generator=rng)]
        prompts.append(tuple(prompt.tolist()))
        if not row.run.config.round_trip:
            break
    lasting = _lasting(stack.lm, row, prompts)
    return torch.tensor(lasting[0], device=best.device) if lasting else best


def _best_tokens(row: Row, scores: Tensor, top: int) -> Tensor:
    """The `top` best allowed tokens of each hard position, `(hard top)`, from scores `(hard vocab)`."""
    count = min(top, len(row.run.layout.allowed))
    return scores.masked_fill(row.run.layout.barred, -torch.inf).topk(count, dim=-1).indices.cpu()


def _swaps(stack: RowStack, i: int, ranked: Tensor, seen: set[Prompt]) -> list[Prompt]:
    """Prompts that differ from a row's in one token: a random hard position, a random one of its best-ranked tokens.

    Those in `seen` are left out; fewer than asked for come back where few others are left.
    """
    row = stack.rows[i]
    where = row.run.layout.hard.nonzero()[:, 0].tolist()
    base, wanted = stack.prompts.ids[i].tolist(), _room(stack, i)
    round_trip = row.run.config.round_trip
    asked = wanted * (SURVIVORS_FROM if round_trip else 1)
    rng = row.memory.rng = row.memory.rng or _generator(row)
    fresh: dict[Prompt, None] = {}
    for _ in range(DRAWS):
        places = torch.randint(len(where), (asked,), generator=rng).tolist()
        picks = torch.randint(ranked.shape[1], (asked,), generator=rng).tolist()
        for place, pick in zip(places, picks, strict=True):
            prompt = (*base[: where[place]], int(ranked[place, pick]), *base[where[place] + 1 :])
            if prompt not in seen and len(fresh) < asked:
                fresh[prompt] = None
        if len(fresh) >= asked:
            break
    return _lasting(stack.lm, row, list(fresh))[:wanted]


def _combine(stack: RowStack, i: int, ids: Tensor, losses: Tensor, before: float) -> list[Prompt]:
    """Prompts of two swaps that each improved on the loss `before`, and of the best swap of every position."""
    row, base = stack.rows[i], stack.prompts.ids[i].tolist()
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
    return _lasting(stack.lm, row, list(fresh))[: _room(stack, i)]


def _lasting(lm: LanguageModel, row: Row, prompts: list[Prompt]) -> list[Prompt]:
    """Those that survive decoding and encoding, if the run asks for it."""
    if not row.run.config.round_trip or not prompts:
        return prompts
    lasting = survives(lm, [list(prompt) for prompt in prompts], len(row.run.layout.bos_ids))
    return [prompt for prompt, lasts in zip(prompts, lasting, strict=True) if lasts]


def _score(
    stack: RowStack, present: Tensor, proposals: dict[int, list[Prompt]]
) -> Generator[Batch, Evaluation, dict[int, tuple[Tensor, Tensor]]]:
    """Evaluate candidates of several rows together; for each row its candidates' ids and losses (NaN as infinite).

    The best of a row becomes what the row reports, if it is the row's best so far.
    """
    prompts = [prompt for candidates in proposals.values() for prompt in candidates]
    if not prompts:
        return {}
    device = stack.lm.device
    ids = torch.tensor(prompts, device=device)
    owners = torch.tensor([i for i, candidates in proposals.items() for _ in candidates], device=device)
    alike = min(int(stack.rows[i].run.layout.hard.long().argmax()) for i in proposals)
    found = yield Batch(ids, owners, present, grad=False, alike=alike, swapped=True)
    losses = found.loss.nan_to_num(torch.inf)
    scored: dict[int, tuple[Tensor, Tensor]] = {}
    best = torch.zeros(len(stack), dtype=torch.long, device=device)
    for i in owners.unique().tolist():
        mine = (owners == i).nonzero()[:, 0]
        best[i] = mine[losses[mine].argmin()]
        scored[i] = ids[mine], losses[mine]
    rows = torch.zeros(len(stack), dtype=torch.bool, device=device).index_fill(0, owners.unique(), True)
    rows = rows & (losses[best] < stack.prompts.best_loss)
    if rows.any():
        chosen = Batch(ids[best], torch.arange(len(stack), device=device), present, grad=False, swapped=True)
        stack.take(found.pick(best), ids[best], chosen.part(stack.lm, 0, len(stack)), rows)
    return scored


def _move(stack: RowStack, i: int, present: Tensor, ids: Tensor) -> None:
    """A row goes on from other hard tokens, and from the soft ones it was just evaluated with."""
    soft = ids == NO_TOKEN
    with torch.no_grad():
        words = stack.lm.embed(ids.clamp_min(0)[None])[0].float()
    row = torch.tensor(i, device=ids.device)
    stack.prompts.ids = stack.prompts.ids.index_put((row,), ids)
    if not soft.any():
        stack.prompts.embeds = stack.prompts.embeds.index_put((row,), words)
        return
    kept = torch.where(soft[:, None], present[i], words)
    ahead = torch.where(soft[:, None], stack.prompts.embeds[i], words)
    stack.prompts.embeds = stack.prompts.embeds.index_put((row,), ahead)
    moved = torch.zeros(len(stack), dtype=torch.bool, device=ids.device).index_fill(0, row, True)
    stack.soft_rule.rebase(stack.soft_state, stack.prompts, stack.prompts.embeds.index_put((row,), kept), moved)


def _first_survivor(lm: LanguageModel, row: Row, ids: list[int], place: int, scores: Tensor) -> int:
    """The token of lowest score at a place with which the prompt survives decoding and encoding; else it stays."""
    tokens = scores.topk(min(SURVIVORS_AMONG, int(torch.isfinite(scores).sum())), largest=False).indices.tolist()
    prompts = [[*ids[:place], token, *ids[place + 1 :]] for token in tokens]
    lasting = survives(lm, prompts, len(row.run.layout.bos_ids))
    return next((token for token, lasts in zip(tokens, lasting, strict=True) if lasts), ids[place])


def _generator(row: Row) -> torch.Generator:
    """Randomness that depends on the run's seed and the restart alone."""
    state = np.random.SeedSequence([row.run.config.seed, row.restart, SEARCH_STREAM]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
