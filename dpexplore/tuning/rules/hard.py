"""What the rules of hard tokens share: which rows they see, candidates, their scores, and moving to one of them."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.tuning.engine.passes import Batch, Evaluation
from dpexplore.tuning.init.layout import NO_TOKEN
from dpexplore.tuning.init.policy import survives
from dpexplore.tuning.rules.memory import Prompt, SearchMemory
from dpexplore.tuning.rules.soft import SoftRule
from dpexplore.tuning.rules.state import PromptState, RowState
from dpexplore.tuning.run import Run

Turn = Generator[Batch, Evaluation, None]

SURVIVORS_FROM = 4
"""Proposals per wanted candidate where prompts must survive a round trip."""
DRAWS = 20
"""Rounds of drawing candidates before fewer than asked for are accepted."""
SEARCH_STREAM = 2**32 - 1
"""Sets the search's random numbers apart from those of the initial prompts."""


class HardRow(Protocol):
    """One restart, as a rule sees it."""

    @property
    def run(self) -> Run: ...
    @property
    def restart(self) -> int: ...
    @property
    def memory(self) -> SearchMemory: ...


class HardRows(Protocol):
    """Rows that are stepped together, as a rule sees them."""

    lm: LanguageModel
    prompts: PromptState
    soft_rule: SoftRule
    soft_state: RowState

    @property
    def rows(self) -> Sequence[HardRow]: ...

    def __len__(self) -> int: ...

    def take(self, found: Evaluation, ids: Tensor, embeds: Tensor, rows: Tensor | None = None) -> None:
        """Note the numbers of one prompt a row: what the row reports for this step, and its best."""


class HardRule(Protocol):
    """A change of the hard positions by the gradient at the present prompts."""

    def turn(self, stack: HardRows, present: Tensor, found: Evaluation, rows: Tensor) -> Turn:
        """Swap tokens of some rows `(rows,)` bool, after whatever evaluations it takes.

        present `(rows pos hidden)`, the prompts that `found` is the evaluation of.
        """
        ...


def room(stack: HardRows) -> list[int]:
    """How many candidates each row may score now."""
    spent = stack.prompts.evaluations.tolist()
    configs = [row.run.config for row in stack.rows]
    return [
        config.candidates if config.evaluations is None else min(config.candidates, config.evaluations - count)
        for config, count in zip(configs, spent, strict=True)
    ]


def active(stack: HardRows, rows: Tensor) -> dict[int, int]:
    """Rows that have hard positions and may still score prompts, and how many."""
    some = (rows & stack.prompts.hard.any(1)).tolist()
    return {i: count for i, (may, count) in enumerate(zip(some, room(stack), strict=True)) if may and count > 0}


def best_tokens(row: HardRow, scores: Tensor, top: int) -> Tensor:
    """The `top` best allowed tokens of each hard position, `(hard top)`, from scores `(hard vocab)`."""
    count = min(top, len(row.run.layout.allowed))
    return scores.masked_fill(row.run.layout.barred, -torch.inf).topk(count, dim=-1).indices


def swaps(
    lm: LanguageModel, row: HardRow, base: Sequence[int], ranked: Tensor, seen: set[Prompt], wanted: int
) -> list[Prompt]:
    """Prompts that differ from `base` in one token: a random hard position, a random one of its best-ranked tokens.

    ranked `(hard top)` on the CPU. Those in `seen` are left out; fewer than `wanted` come back where few others are
    left.
    """
    where = row.run.layout.hard.nonzero()[:, 0].tolist()
    round_trip = row.run.config.round_trip
    asked = wanted * (SURVIVORS_FROM if round_trip else 1)
    rng = row.memory.rng = row.memory.rng or _generator(row)
    fresh: dict[Prompt, None] = {}
    for _ in range(DRAWS):
        places = torch.randint(len(where), (asked,), generator=rng)
        picks = torch.randint(ranked.shape[1], (asked,), generator=rng)
        for place, token in zip(places.tolist(), ranked[places, picks].tolist(), strict=True):
            prompt = (*base[: where[place]], token, *base[where[place] + 1 :])
            if prompt not in seen and len(fresh) < asked:
                fresh[prompt] = None
        if len(fresh) >= asked:
            break
    return lasting(lm, row, list(fresh))[:wanted]


def lasting(lm: LanguageModel, row: HardRow, prompts: list[Prompt]) -> list[Prompt]:
    """Those that survive decoding and encoding, if the run asks for it."""
    if not row.run.config.round_trip or not prompts:
        return prompts
    lasts_each = survives(lm, [list(prompt) for prompt in prompts], len(row.run.layout.bos_ids))
    return [prompt for prompt, lasts in zip(prompts, lasts_each, strict=True) if lasts]


def score(
    stack: HardRows, present: Tensor, proposals: dict[int, list[Prompt]]
) -> Generator[Batch, Evaluation, dict[int, tuple[Tensor, Tensor]]]:
    """Evaluate candidates of several rows together; for each row its candidates' ids and losses (NaN as infinite).

    Both are on the CPU. The best of a row becomes what the row reports, if it is the row's best so far.
    """
    proposals = {i: candidates for i, candidates in proposals.items() if candidates}
    if not proposals:
        return {}
    device, counts = stack.lm.device, [len(candidates) for candidates in proposals.values()]
    prompts = torch.tensor([prompt for candidates in proposals.values() for prompt in candidates])
    ids = prompts.to(device)
    owners = torch.tensor(list(proposals)).repeat_interleave(torch.tensor(counts)).to(device)
    alike = min(int(stack.rows[i].run.layout.hard.long().argmax()) for i in proposals)
    found = yield Batch(ids, owners, present, grad=False, alike=alike, swapped=True)
    losses = found.loss.nan_to_num(torch.inf)
    scored = dict(zip(proposals, zip(prompts.split(counts), losses.cpu().split(counts), strict=True), strict=True))
    firsts = itertools.accumulate(counts, initial=0)
    places = {i: first + int(values.argmin()) for first, (i, (_, values)) in zip(firsts, scored.items(), strict=False)}
    best = torch.tensor([places.get(i, 0) for i in range(len(stack))], device=device)
    rows = torch.tensor([i in places for i in range(len(stack))], device=device)
    chosen = Batch(ids[best], torch.arange(len(stack), device=device), present, grad=False, swapped=True)
    better = rows & (losses[best] < stack.prompts.best_loss)
    stack.take(found.pick(best), ids[best], chosen.part(stack.lm, 0, len(stack)), better)
    return scored


def move(stack: HardRows, present: Tensor, moves: dict[int, Tensor]) -> None:
    """Rows go on from other ids `(pos,)`, and from the soft tokens that they were just evaluated with."""
    if not moves:
        return
    device, prompts = stack.lm.device, stack.prompts
    rows, ids = torch.tensor(list(moves), device=device), torch.stack(list(moves.values()))
    has_soft = bool((ids == NO_TOKEN).any())
    ids = ids.to(device)
    with torch.no_grad():
        words = stack.lm.embed(ids.clamp_min(0)).float()
    prompts.ids = prompts.ids.index_put((rows,), ids)
    if not has_soft:
        prompts.embeds = prompts.embeds.index_put((rows,), words)
        return
    soft = (ids == NO_TOKEN)[..., None]
    ahead = torch.where(soft, prompts.embeds[rows], words)
    prompts.embeds = prompts.embeds.index_put((rows,), ahead)
    kept = prompts.embeds.index_put((rows,), torch.where(soft, present[rows], words))
    moved = torch.zeros(len(stack), dtype=torch.bool, device=device).index_fill(0, rows, True)
    stack.soft_rule.rebase(stack.soft_state, prompts, kept, moved)


def _generator(row: HardRow) -> torch.Generator:
    """Randomness that depends on the run's seed and the restart alone."""
    state = np.random.SeedSequence([row.run.config.seed, row.restart, SEARCH_STREAM]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
