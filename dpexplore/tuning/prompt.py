"""Where a run's prompts begin: slots laid out as positions, and the initialisation of each restart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.tuning.config import TuneConfig

NO_TOKEN = -1
"""Stands in for an id at soft positions, which have none."""


@dataclass(frozen=True, eq=False)
class Layout:
    """A prompt's positions: which are tuned and how, and the ids of those that are fixed."""

    bos_ids: list[int]
    """What the tokenizer puts in front by itself, if the run asked for it; the first positions."""
    ids: Tensor
    """`(pos,)` int64; `NO_TOKEN` at free positions."""
    soft: Tensor
    """`(pos,)` bool."""
    hard: Tensor
    """`(pos,)` bool."""

    @classmethod
    def of(cls, lm: LanguageModel, config: TuneConfig) -> Layout:
        """Lay out the config's slots. InputError if the prompt is longer than the model accepts."""
        bos_ids = list(lm.bos_ids) if config.bos else []
        ids, kinds = list(bos_ids), ["text"] * len(bos_ids)
        for slot in config.parsed_slots().items:
            added = lm.encode(slot.text, bos=False) if slot.kind == "text" else [NO_TOKEN] * slot.count
            ids += added
            kinds += [slot.kind] * len(added)
        if lm.max_positions is not None and len(ids) > lm.max_positions:
            raise InputError(
                f"The prompt has {len(ids):,} tokens; the model {lm.name} accepts at most {lm.max_positions:,}."
            )
        return cls(
            bos_ids,
            torch.tensor(ids),
            torch.tensor([kind == "soft" for kind in kinds]),
            torch.tensor([kind == "hard" for kind in kinds]),
        )

    def __len__(self) -> int:
        return len(self.ids)


def initial_prompt(lm: LanguageModel, layout: Layout, config: TuneConfig, restart: int) -> tuple[Tensor, Tensor]:
    """The prompt at which a restart begins: ids `(pos,)` and embeddings `(pos hidden)` float32, on the model's device.

    Free positions draw ordinary vocabulary tokens (App. B.1); in id space, because strings of random tokens merge when
    they are encoded. The draw depends on the seed and the restart alone.
    """
    state = int(np.random.SeedSequence([config.seed, restart]).generate_state(1, np.uint64)[0])
    rng = torch.Generator().manual_seed(state >> 1)
    ordinary = lm.ordinary_ids.cpu()
    drawn = ordinary[torch.randint(len(ordinary), (len(layout),), generator=rng)]
    free = layout.soft | layout.hard
    ids = torch.where(free, drawn, layout.ids).to(lm.device)
    with torch.no_grad():
        embeds = lm.embed(ids[None])[0].float()
        soft = layout.soft.to(lm.device)
        if config.init == "gaussian" and soft.any():
            table = lm.embedding_table[lm.ordinary_ids.to(lm.device)].float()
            noise = torch.randn(embeds.shape, generator=rng).to(lm.device)
            embeds = torch.where(soft[:, None], table.mean(0) + table.std(0) * noise, embeds)
    return ids.masked_fill(soft, NO_TOKEN), embeds
