"""Eq. 4, AdamW and hybrids by token and by sweep, against the paper's rules as plain loops."""

from __future__ import annotations

import pytest
import torch

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning import TuneConfig, tune
from dpexplore.tuning.init.layout import Layout, initial_prompt
from dpexplore.tuning.objectives.next_token import NextTokenObjective


def kl_and_slope(lm: LanguageModel, target: Target, embeds: torch.Tensor) -> tuple[float, torch.Tensor]:
    """KL(p‖q) after embeddings `(pos hidden)` and its gradient, by plain autograd."""
    free = embeds.clone().requires_grad_()
    kl = NextTokenObjective.score(lm, free[None], [NextTokenObjective(lm, target)]).loss.sum()
    (slope,) = torch.autograd.grad(kl, free)
    return float(kl.detach()), slope


def by_the_book(lm: LanguageModel, target: Target, config: TuneConfig) -> list[float]:
    """Eq. 4 and AdamW from left to right, one slot a step, as they stand in the paper: KL at every step."""
    layout = Layout.of(lm, config)
    _, start = initial_prompt(lm, layout, config, 0)
    embeds, table = start.clone().float(), lm.embedding_table
    strict = config.strict
    moments = {i: (torch.zeros(len(embeds[0])), torch.zeros(len(embeds[0])), 0) for i in range(len(embeds))}
    soft, hard = layout.soft.nonzero()[:, 0].tolist(), layout.hard.nonzero()[:, 0].tolist()
    waiting = sorted(soft + hard) if strict else hard
    per_epoch = len(waiting) if config.epoch == "sweep" else 1
    kls: list[float] = []
    best, since = float("inf"), 0
    while len(kls) < config.steps * per_epoch:
        kl, slope = kl_and_slope(lm, target, embeds)
        turn = waiting[len(kls) % len(waiting)]
        kls.append(kl)
        best, since = (kl, 0) if kl < best else (best, since + 1)
        if config.patience is not None and since >= config.patience * per_epoch:
            break
        for i in [turn] if strict and turn in soft else [] if strict else soft:
            mean, square, count = moments[i]
            mean, square, count = 0.9 * mean + 0.1 * slope[i], 0.999 * square + 0.001 * slope[i] ** 2, count + 1
            moments[i] = mean, square, count
            move = (mean / (1 - 0.9**count)) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
            embeds[i] = embeds[i] * (1 - config.learning_rate * 0.01) - config.learning_rate * move
        if turn in hard:
            scores = (table @ slope[turn]).masked_fill(layout.barred, torch.inf)
            embeds[turn] = table[scores.argmin()].float()
    return kls


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "hard", "length": 3, "patience": 4},
        {"method": "hard", "length": 3, "patience": 2, "epoch": "sweep"},
        {"method": "hybrid", "slots": "soft*1 hard*1 soft*1", "patience": None},
        {"method": "hybrid", "slots": "soft*1 hard*1 soft*1", "patience": None, "strict": True},
        {"method": "hybrid", "slots": "hard*2 soft*1", "patience": 2, "strict": True, "epoch": "sweep"},
    ],
)
def test_eq_4_by_token_and_by_sweep_and_strict_hybrids_against_plain_loops(
    lm: LanguageModel, target: Target, settings: dict
) -> None:
    config = TuneConfig(restarts=1, steps=12, seed=5, **settings)
    ours = [step.kl_nats[0] for step in tune(lm, target, config)]
    assert ours == pytest.approx(by_the_book(lm, target, config), rel=1e-3, abs=1e-5)
    assert len(ours) <= config.most_steps == 12 * config.steps_per_epoch


def test_an_epoch_of_a_sweep_counts_every_slot_that_takes_its_turn() -> None:
    hybrid = {"method": "hybrid", "slots": "soft*2 hard*3", "steps": 7, "epoch": "sweep"}
    assert TuneConfig(method="hard", length=5, steps=7, epoch="sweep").most_steps == 35
    assert TuneConfig(**hybrid).most_steps == 21
    assert TuneConfig(**hybrid, strict=True).most_steps == 35
    assert TuneConfig(method="soft", steps=7, epoch="sweep").most_steps == 7  # AdamW moves all slots at once
    assert TuneConfig(method="hard", hard_rule="gcg", steps=7, epoch="sweep").most_steps == 7
    with pytest.raises(InputError, match="left-to-right"):
        TuneConfig(**{**hybrid, "strict": True, "hard_rule": "search"})
