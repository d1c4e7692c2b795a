"""The rules beyond the paper's: quasi-Newton steps and searches over tokens, row by row."""

from __future__ import annotations

import pytest
import torch

from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning import Engine, TuneConfig, tune
from dpexplore.tuning.objectives.next_token import (
    NextTokenObjective,
    Scores,
)
from tests.tuning.shared import RULES, trace


def test_rows_of_every_rule_ignore_their_neighbours(lm: LanguageModel, target: Target) -> None:
    """Each run beside all others, with passes of three prompts at most, gives what it gives alone."""
    configs = [TuneConfig(restarts=2, steps=8, seed=i, patience=None, **rule) for i, rule in enumerate(RULES)]
    alone = [trace(lm, target, config) for config in configs]
    engine = Engine(lm)
    runs = [engine.submit(target, config) for config in configs[:3]]
    engine.step()  # the others join runs under way
    runs += [engine.submit(target, config) for config in configs[3:]]
    while engine.step():
        pass
    for run, expected in zip(runs, alone, strict=True):
        for ours, theirs in zip([step.kl_nats for step in run], expected, strict=True):
            assert ours == pytest.approx(theirs, abs=2e-3)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_deterministic_and_improves(lm: LanguageModel, target: Target, rule: dict) -> None:
    config = TuneConfig(restarts=2, steps=12, seed=3, patience=None, **rule)
    first, second = tune(lm, target, config).result, tune(lm, target, config).result
    assert first.kl_nats == second.kl_nats
    assert first.prompt_ids == second.prompt_ids
    begun = trace(lm, target, TuneConfig(**{**config.to_dict(), "steps": 1}))[0]
    assert first.kl_nats < max(kl for kl in begun if kl is not None)
    low, mean, high = first.spread_nats
    assert low <= mean <= high
    assert low == pytest.approx(first.kl_nats, abs=1e-3)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_hybrid_of_one_kind_is_that_method(lm: LanguageModel, target: Target, kind: str) -> None:
    shared = {"soft_rule": "lbfgs", "hard_rule": "search", "candidates": 8, "restarts": 2, "steps": 10, "screen": 3}
    plain = trace(lm, target, TuneConfig(method=kind, length=3, **shared))  # pyright: ignore[reportArgumentType]
    assert plain == trace(lm, target, TuneConfig(method="hybrid", slots=f"{kind}*3", **shared))


@pytest.mark.parametrize("good", [0, 2, 3], ids=["beginnings are bad", "gradients are bad", "candidates are bad"])
@pytest.mark.parametrize("rule", RULES)
def test_nan_ends_every_rules_row_alone(
    lm: LanguageModel, target: Target, rule: dict, good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some good passes one run's losses are NaN: its rows end, the other run never hears of it."""
    sick, well = (TuneConfig(restarts=1, steps=40, seed=seed, patience=None, **rule) for seed in (1, 2))
    expected = trace(lm, target, well)
    engine = Engine(lm)
    runs = [engine.submit(target, sick), engine.submit(target, well)]
    original, passes = NextTokenObjective.score, 0

    def poisoned(
        lm: LanguageModel, embeds: torch.Tensor, objectives: list[NextTokenObjective], *_prefix: object
    ) -> Scores:
        nonlocal passes
        passes += 1
        scores = original(lm, embeds, objectives)
        bad = torch.tensor([objective is runs[0].objective for objective in objectives]) & (passes > good)
        factor = torch.where(bad, torch.nan, 1.0)
        return Scores(scores.loss * factor, scores.kl * factor, scores.log_q)

    monkeypatch.setattr(NextTokenObjective, "score", staticmethod(poisoned))
    while engine.step():
        pass
    assert runs[0].outcomes[0].reason == runs[0].status == "nonfinite"
    assert len(runs[0].steps) < (40 if good else 2)  # there is no point to come back to
    shown = [step.kl_nats for step in runs[1].steps]
    assert len(shown) == len(expected)
    for ours, theirs in zip(shown[:8], expected, strict=False):  # later, L-BFGS magnifies floating-point noise
        assert ours == pytest.approx(theirs, abs=2e-3)
