"""Capsules: replayed, resumed, and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning import TuneConfig, load_capsule, replay, resume, tune
from tests.tuning.shared import RULES


@pytest.mark.parametrize("rule", RULES)
def test_capsules_replay_and_go_on(lm: LanguageModel, target: Target, rule: dict, tmp_path: Path) -> None:
    config = TuneConfig(restarts=2, steps=6, **rule)
    result = tune(lm, target, config).result
    path = tmp_path / "capsule.json"
    path.write_text(json.dumps(result.capsule, allow_nan=False), encoding="utf-8")
    capsule = load_capsule(path)
    found = replay(lm, capsule)
    assert found.kl_nats == pytest.approx(result.kl_nats, abs=1e-3)
    assert found.agrees
    assert found.same_weights
    assert found.same_libraries
    run = resume(lm, capsule, steps=10)
    first = next(iter(run))
    for ours, theirs in zip(first.kl_nats, result.kl_nats_per_restart, strict=True):
        assert theirs is not None
        assert ours is not None
        assert ours <= theirs + 1e-4  # a search's first step has scored candidates already
    assert run.result.kl_nats <= result.kl_nats + 1e-4
    assert run.result.capsule["resumed_from"]["steps"] == result.steps


def test_what_is_no_capsule_is_said(tmp_path: Path, lm: LanguageModel, target: Target) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_capsule(tmp_path / "none.json")
    path = tmp_path / "other.json"
    for text in ("{", "[]", '{"format": "something"}'):
        path.write_text(text)
        with pytest.raises(InputError, match="is no capsule"):
            load_capsule(path)
    path.write_text('{"format": "dpexplore capsule", "format_version": 99}')
    with pytest.raises(InputError, match="format 99"):
        load_capsule(path)
    capsule = tune(lm, target, TuneConfig(restarts=1, steps=2)).result.capsule
    capsule["restarts"] = [None]
    with pytest.raises(InputError, match="no prompt to go on from"):
        resume(lm, capsule)
