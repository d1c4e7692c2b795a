"""A run that is carried from engine to engine goes on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dpexplore.models import LanguageModel
from dpexplore.targets import entropy
from dpexplore.tuning import Engine, TuneConfig
from dpexplore.tuning.engine.checkpoint import checkpoint, resume

TinyLM = Callable[[str], LanguageModel]

CONFIGS = [
    TuneConfig(method="soft", length=3, restarts=3, steps=12, patience=4),
    TuneConfig(method="soft", length=3, restarts=2, steps=12, soft_rule="lbfgs", screen=3),
    TuneConfig(method="hard", length=3, restarts=2, steps=9),
    TuneConfig(method="hard", length=3, restarts=2, steps=9, hard_rule="gcg", candidates=6, top=20),
    TuneConfig(method="hard", length=3, restarts=2, steps=9, hard_rule="search", candidates=6, top=20),
    TuneConfig(method="hard", length=3, restarts=2, steps=9, init="lookup", hard_rule="gcg", candidates=6, screen=3),
    TuneConfig(method="hard", length=3, restarts=2, steps=70, evaluations=90, init="soft", hard_rule="gcg"),
    TuneConfig(
        method="hybrid", slots="soft*2 hard*2", restarts=2, steps=9, soft_rule="lbfgs", hard_rule="search", candidates=6
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.method} {config.rules}")
def test_a_run_in_slices_is_the_run(tiny_lm: TinyLM, config: TuneConfig) -> None:
    lm = tiny_lm("llama")
    target = entropy(bits=3, seed=1).build(lm)
    whole = Engine(lm).submit(target, config)
    result = whole.result

    engine = Engine(lm)
    run = engine.submit(target, config)
    slices = 1
    while not run.finished:
        for _ in range(4):
            engine.step()
        if not run.finished:
            saved = checkpoint(engine, run)
            engine = Engine(lm)
            run = resume(engine, saved)
            slices += 1
    assert slices >= 3
    for mine, plain in zip(run.steps, whole.steps, strict=True):
        assert mine.evaluations == plain.evaluations
        assert mine.best_restart == plain.best_restart
        assert mine.kl_nats == pytest.approx(plain.kl_nats, abs=1e-6)
    assert run.status == whole.status
    assert run.result.kl_nats == pytest.approx(result.kl_nats, abs=1e-6)
    assert run.result.prompt_ids == result.prompt_ids
    assert torch.allclose(run.result.prompt_embeds, result.prompt_embeds, atol=1e-6)
    assert run.result.capsule["result"]["prompt_ids"] == result.prompt_ids


def test_a_checkpoint_leaves_its_run_going(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    target = entropy(bits=3, seed=1).build(lm)
    config = TuneConfig(method="soft", length=2, restarts=2, steps=6)
    engine = Engine(lm)
    run, other = engine.submit(target, config), engine.submit(target, config)
    while not run.finished:
        engine.step()
        if not run.finished:
            checkpoint(engine, run)
    plain = Engine(lm).submit(target, config)
    assert run.result.kl_nats == pytest.approx(plain.result.kl_nats, abs=1e-6)
    assert other.result.kl_nats == pytest.approx(plain.result.kl_nats, abs=1e-6)
