"""Where a run's prompts begin: slots laid out as positions, and the initialisation of each restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.models.chat import chat_halves
from dpexplore.models.pieces import encode_behind
from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.init.nearest import by_direction
from dpexplore.tuning.init.policy import allowed_ids, survives
from dpexplore.tuning.slots import Slot

NO_TOKEN = -1
"""Stands in for an id at soft positions, which have none."""

Start = tuple[Tensor, Tensor]
"""Ids `(pos,)`, `NO_TOKEN` at soft positions, and embeddings `(pos hidden)` float32 at which a restart begins."""

TRIES = 20
"""Prompts begun before the search for one that survives is given up; tokens drawn for each one needed."""

LEAST_WEIGHT = 1e-12  # a target may give 0 to every allowed token


@dataclass(frozen=True, eq=False)
class Layout:
    """A prompt's positions: which are tuned and how, what may stand there, and the ids of those that are fixed."""

    bos_ids: list[int]
    """What the tokenizer puts in front by itself, if the run asked for it; the first positions."""
    ids: Tensor
    """`(pos,)` int64; `NO_TOKEN` at free positions."""
    soft: Tensor
    """`(pos,)` bool."""
    hard: Tensor
    """`(pos,)` bool."""
    allowed: Tensor
    """Sorted ids `(n,)` that hard positions may hold."""
    barred: Tensor
    """`(vocab,)` bool on the model's device: those that they may not."""
    opening: str = ""
    """The text in front of the first free position."""

    @classmethod
    def of(cls, lm: LanguageModel, config: TuneConfig) -> Layout:
        """Lay out the config's slots.

        InputError if the prompt is longer than the model accepts, if no token is allowed, or if there is no chat
        template where one is asked for.
        """
        lm.check_tunable()
        bos_ids = list(lm.bos_ids) if config.bos and not config.chat else []
        pieces = list(config.parsed_slots().items)
        if config.chat:
            before, after = chat_halves(lm)
            pieces = [Slot("text", text=before), *pieces, Slot("text", text=after)]
        ids, kinds = list(bos_ids), ["text"] * len(bos_ids)
        opening = ""
        # Texts that stand together are encoded together, each behind what is in front of it.
        for is_text, group in groupby(pieces, lambda slot: slot.kind == "text"):
            slots = list(group)
            if is_text:
                text = "".join(slot.text for slot in slots)
                added = encode_behind(lm, "" if len(ids) == len(bos_ids) else None, text)
                ids += added
                kinds += ["text"] * len(added)
                opening = text if len(ids) == len(bos_ids) + len(added) else opening
                continue
            for slot in slots:
                ids += [NO_TOKEN] * slot.count
                kinds += [slot.kind] * slot.count
        if lm.max_positions is not None and len(ids) > lm.max_positions:
            raise InputError(
                f"The prompt has {len(ids):,} tokens; the model {lm.name} accepts at most {lm.max_positions:,}."
            )
        hard = torch.tensor([kind == "hard" for kind in kinds])
        ordinary = lm.ordinary_ids.cpu()
        allowed = allowed_ids(lm, config.policy, config.allow, config.forbid) if hard.any() else ordinary
        barred = torch.ones(lm.embedding_table.shape[0], dtype=torch.bool, device=lm.device)
        barred[allowed.to(lm.device)] = False
        return cls(
            bos_ids,
            torch.tensor(ids),
            torch.tensor([kind == "soft" for kind in kinds]),
            hard,
            allowed,
            barred,
            opening,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def around(self, ids: Tensor) -> Layout:
        """The same slots among the fixed tokens of a recorded prompt `(pos,)`, `NO_TOKEN` at its soft positions.

        A chat template may write the date, and so other tokens, and another number of them, than on the day of the
        record. InputError if the record's are others both in front of the slots and behind them, so that nobody
        knows where these stand.
        """
        ids, free = ids.cpu(), (self.ids == NO_TOKEN).nonzero()[:, 0].tolist()
        first, end = free[0], free[-1] + 1
        shift = len(ids) - len(self)
        if shift and not _ends_with(ids, self.ids[end:]):
            shift = 0 if torch.equal(ids[:first], self.ids[:first]) else -len(ids)
        masks = [torch.zeros(len(ids), dtype=torch.bool) for _ in range(2)]
        for mask, own in zip(masks, (self.soft, self.hard), strict=True):
            if 0 <= first + shift <= len(ids) - (end - first):
                mask[first + shift : end + shift] = own[first:end]
        soft, hard = masks
        if not torch.equal(soft, ids == NO_TOKEN) or int(hard.sum()) != int(self.hard.sum()):
            raise InputError(
                "The chat template gives other tokens today than the capsule's prompt has around its slots; it can be "
                "replayed, but not resumed."
            )
        return replace(self, ids=ids.masked_fill(soft | hard, NO_TOKEN), soft=soft, hard=hard)


def _ends_with(ids: Tensor, end: Tensor) -> bool:
    return len(ids) >= len(end) and torch.equal(ids[len(ids) - len(end) :], end)


def initial_prompt(
    lm: LanguageModel,
    layout: Layout,
    config: TuneConfig,
    restart: int,
    draw: int = 0,
    probs: Tensor | None = None,
    last: Tensor | None = None,
) -> Start:
    """The prompt at which a restart begins: ids `(pos,)` and embeddings `(pos hidden)` float32, on the model's device.

    Free positions draw ordinary vocabulary tokens (App. B.1), hard ones allowed tokens; in id space, because strings of
    random tokens merge when they are encoded. With a target's `probs` `(vocab,)` every other `draw` takes the hard
    tokens from it instead: models tend to go on with words akin to the prompt's. The last token is one of `last` in
    turn, if there are any. The draw depends on the seed, the restart, `draw` and the target alone.
    InputError if the run asks for a round trip and no prompt survives it.
    """
    entropy = [config.seed, restart] + [draw] * (draw > 0)
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    rng = torch.Generator().manual_seed(state >> 1)
    free = layout.soft | layout.hard
    ids = torch.where(free, _draw(lm, layout, rng), layout.ids)
    if probs is not None and draw % 2 and layout.hard.any():
        weights = probs[layout.allowed].float().clamp_min(LEAST_WEIGHT)
        picks = torch.multinomial(weights, len(ids), replacement=True, generator=rng)
        ids = torch.where(layout.hard, layout.allowed[picks], ids)
    if last is not None:
        ids[-1] = last[draw % len(last)]
    if config.init == "text":
        ids = _from_text(lm, layout, config, ids, keep_all=restart == 0 and draw == 0, rng=rng)
    if config.round_trip and not survives(lm, [ids.tolist()], len(layout.bos_ids))[0]:
        ids = _surviving(lm, layout, rng)
    ids = ids.to(lm.device)
    with torch.no_grad():
        embeds = lm.embed(ids[None])[0].float()
        soft = layout.soft.to(lm.device)
        if config.init == "gaussian" and soft.any():
            table = lm.embedding_table[lm.ordinary_ids.to(lm.device)].float()
            noise = torch.randn(embeds.shape, generator=rng).to(lm.device)
            embeds = torch.where(soft[:, None], table.mean(0) + table.std(0) * noise, embeds)
    return ids.masked_fill(soft, NO_TOKEN), embeds


def projected_prompt(lm: LanguageModel, layout: Layout, config: TuneConfig, embeds: Tensor) -> Start | None:
    """The prompt of hard tokens nearest to one that was tuned softly, as `initial_prompt` gives one.

    embeds `(pos hidden)` are the tuned vectors: soft positions keep them, each hard one takes the allowed token of the
    highest cosine. If the run asks for a round trip, it is the nearest one that survives behind those before it; None
    if the whole does not survive.
    """
    near = by_direction(lm, embeds.to(lm.device)[layout.hard.to(lm.device)])[:, layout.allowed.to(lm.device)].cpu()
    ids = layout.ids.clone()
    if config.round_trip:
        ranked = layout.allowed[near.topk(min(TRIES, near.shape[1])).indices]
        ids = torch.tensor(_grown(lm, layout, iter(ranked.tolist())))
        if not survives(lm, [ids.tolist()], len(layout.bos_ids))[0]:
            return None
    else:
        ids[layout.hard] = layout.allowed[near.argmax(-1)]
    ids, soft = ids.to(lm.device), layout.soft.to(lm.device)
    with torch.no_grad():
        words = lm.embed(ids.clamp_min(0)[None])[0].float()
    return ids, torch.where(soft[:, None], embeds.to(lm.device), words)


def _draw(lm: LanguageModel, layout: Layout, rng: torch.Generator) -> Tensor:
    """A random token for every position, `(pos,)`."""
    ordinary = lm.ordinary_ids.cpu()
    numbers = torch.randint(2**31, (len(layout),), generator=rng)
    return torch.where(layout.hard, layout.allowed[numbers % len(layout.allowed)], ordinary[numbers % len(ordinary)])


def _from_text(
    lm: LanguageModel, layout: Layout, config: TuneConfig, drawn: Tensor, *, keep_all: bool, rng: torch.Generator
) -> Tensor:
    """The text over the free positions, repeated or cut; all restarts but the first keep about two thirds of it."""
    free = layout.soft | layout.hard
    text = torch.tensor(encode_behind(lm, layout.opening, config.init_text or ""), dtype=torch.long)
    if not len(text):
        raise InputError("init_text is empty; write at least one character that the tokenizer knows.")
    filled = layout.ids.clone()
    filled[free] = text.repeat(int(free.sum()) // len(text) + 1)[: int(free.sum())]
    barred = layout.hard & ~torch.isin(filled, layout.allowed)
    if barred.any():
        token = lm.token_text(int(filled[barred][0]))
        raise InputError(
            f"init_text holds the token {token!r}, which the policy of the hard slots does not allow; use another "
            "text or a wider policy."
        )
    if keep_all:
        return filled
    replaced = free & (torch.rand(len(free), generator=rng) < 1 / 3)
    return torch.where(replaced, drawn, filled)


def _surviving(lm: LanguageModel, layout: Layout, rng: torch.Generator) -> Tensor:
    """A random prompt that is the same after decoding and encoding, grown from left to right."""

    def drawn() -> Iterator[list[int]]:
        while True:
            yield layout.allowed[torch.randint(len(layout.allowed), (TRIES,), generator=rng)].tolist()

    for _ in range(TRIES):
        ids = _grown(lm, layout, drawn())
        if survives(lm, [ids], len(layout.bos_ids))[0]:
            return torch.tensor(ids)
    raise InputError(
        "No prompt of allowed tokens was found that survives being written as text and encoded again; use a wider "
        "policy, or turn round_trip off."
    )


def _grown(lm: LanguageModel, layout: Layout, choices: Iterator[list[int]]) -> list[int]:
    """Each hard position, from the left, takes the first of its choices that survives behind what stands before it."""
    ids: list[int] = []
    for fixed, hard in zip(layout.ids.tolist(), layout.hard.tolist(), strict=True):
        tokens = next(choices) if hard else [fixed]
        lasting = survives(lm, [[*ids, token] for token in tokens], len(layout.bos_ids)) if hard else [True]
        ids.append(next((token for token, lasts in zip(tokens, lasting, strict=True) if lasts), tokens[0]))
    return ids
