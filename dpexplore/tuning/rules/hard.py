"""What the rules of hard tokens share: which rows they see, candidates, their scores, and moving to one of them."""

from __future__ import annotations

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


def active(stack: HardRows, rows: Tensor) -> list[int]:
    """Rows that have hard positions and may still score prompts."""
    some = (rows & stack.prompts.hard.any(1)).tolist()
    return [i for i, may in enumerate(some) if may and room(stack, i) > 0]


def room(stack: HardRows, i: int) -> int:
    """How many candidates a row may score now."""
    config = stack.rows[i].run.config
    if config.evaluations is None:
        return config.candidates
    return min(config.candidates, config.evaluations - int(stack.prompts.evaluations[i]))


def best_tokens(row: HardRow, scores: Tensor, top: int) -> Tensor:
    """The `top` best allowed tokens of each hard position, `(hard top)`, from scores `(hard vocab)`."""
    count = min(top, len(row.run.layout.allowed))
    return scores.masked_fill(row.run.layout.barred, -torch.inf).topk(count, dim=-1).indices.cpu()


def swaps(stack: HardRows, i: int, ranked: Tensor, seen: set[Prompt]) -> list[Prompt]:
    """Prompts that differ from a row's in one token: a random hard position, a random one of its best-ranked tokens.

    Those in `seen` are left out; fewer than asked for come back where few others are left.
    """
    row = stack.rows[i]
    where = row.run.layout.hard.nonzero()[:, 0].tolist()
    base, wanted = stack.prompts.ids[i].tolist(), room(stack, i)
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
    return lasting(stack.lm, row, list(fresh))[:wanted]


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


def move(stack: HardRows, i: int, present: Tensor, ids: Tensor) -> None:
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


def _generator(row: HardRow) -> torch.Generator:
    """Randomness that depends on the run's seed and the restart alone."""
    state = np.random.SeedSequence([row.run.config.seed, row.restart, SEARCH_STREAM]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
