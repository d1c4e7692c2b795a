"""Capsules: replayed, resumed, and refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.serving.run_view import capsule_view
from dpexplore.targets import Target, parse_recipe, random_prompt
from dpexplore.tuning import TuneConfig, load_capsule, replay, resume, tune
from dpexplore.tuning.config import PRESETS
from dpexplore.tuning.init.layout import Layout
from dpexplore.tuning.objectives.sequences import objective_for
from dpexplore.tuning.record.precision import final_scores_of_ids
from dpexplore.ui.components.run_status import status_line
from tests.tiny_models import byte_level_tokenizer
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
        with pytest.raises(InputError, match=r"is not a capsule|cannot be read as a capsule"):
            load_capsule(path)
    path.write_text('{"format": "dpexplore capsule", "format_version": 99}')
    with pytest.raises(InputError, match="format 99"):
        load_capsule(path)
    capsule = tune(lm, target, TuneConfig(restarts=1, steps=2)).result.capsule
    capsule["restarts"] = [None]
    with pytest.raises(InputError, match="no prompt to continue from"):
        resume(lm, capsule)


DATED = (
    "Today is {{ day }}.\n{{ messages[0].content }}\n{% if messages[1:] %}{{ messages[1].content }}<|end|>{% endif %}"
)


def on(lm: LanguageModel, day: str) -> LanguageModel:
    """The model on a day, with a chat template that writes the date."""
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = DATED.replace("{{ day }}", day)
    return dataclasses.replace(lm, tokenizer=tokenizer)


@pytest.mark.parametrize(
    "text",
    [
        'capture("I love", chat=True)',
        'entropy(bits=2).mix(capture("I love", chat=True).temperature(0.5), 0.5).shuffle(seed=1)',
        'strings(["a", "b"], request="A letter")',
    ],
)
def test_a_dated_template_replays_by_the_recorded_ids(tiny_lm: Callable[[str], LanguageModel], text: str) -> None:
    then, now = on(tiny_lm("gpt2"), "26 Nov"), on(tiny_lm("gpt2"), "the 3rd of March")
    recipe = parse_recipe(text)
    capsule = json.loads(json.dumps(tune(then, recipe.build(then), TuneConfig(restarts=1, steps=2)).result.capsule))
    today = recipe.build(now)
    if "strings" not in text:
        assert not torch.allclose(today.probs, recipe.build(then).probs)
        assert abs(replay(now, capsule, today).kl_nats - capsule["result"]["kl_nats"]) > 1e-6
    found = replay(now, capsule)
    assert found.kl_nats == pytest.approx(capsule["result"]["kl_nats"], abs=1e-5)
    assert "recorded" in str(found.note)
    assert replay(then, capsule).note is None
    other = dataclasses.replace(now, identity="another model")  # whose ids the record's are not
    assert replay(other, capsule).note is None
    told = capsule["target"]["provenance"]
    for ids in ([10**6], [-1], ["a"], [1.5], [True], "ab", []):
        changed = {**told, "prompt_ids": ids}
        if "mix" in text:
            changed = {**told, "transforms": [{**told["transforms"][0], "other": changed | {"identity": now.identity}}]}
            changed["transforms"].append(told["transforms"][1])
        damaged = {**capsule, "target": {"recipe": text, "provenance": changed}}
        with pytest.raises(InputError, match=r"no embedding|damaged"):
            replay(now, damaged)


def test_a_page_shows_a_dated_capsule_against_the_recorded_target(tiny_lm: Callable[[str], LanguageModel]) -> None:
    then, now = on(tiny_lm("gpt2"), "26 Nov"), on(tiny_lm("gpt2"), "the 3rd of March")
    recipe = parse_recipe('capture("I love", chat=True)')
    capsule = json.loads(json.dumps(tune(then, recipe.build(then), TuneConfig(restarts=1, steps=2)).result.capsule))
    view = capsule_view(now, recipe.build(now), capsule)
    assert view.recorded is not None
    assert torch.allclose(view.recorded.probs, recipe.build(then).probs)
    line = status_line(view)
    assert "the recorded one; its text gives other tokens today" in line
    assert "show what it gives today" in line
    again = capsule_view(then, recipe.build(then), capsule)
    assert (again.note, again.recorded) == (None, None)


@pytest.mark.parametrize("config", [{"method": "soft"}, {"method": "hard"}, {"slots": 'soft*1 "the" hard*1'}])
@pytest.mark.parametrize("day", ["25 Nov", "the 3rd of March"])
def test_a_run_in_a_dated_template_goes_on_among_the_recorded_tokens(
    tiny_lm: Callable[[str], LanguageModel], config: dict, day: str
) -> None:
    then, now = on(tiny_lm("gpt2"), "26 Nov"), on(tiny_lm("gpt2"), day)
    target = parse_recipe("entropy(bits=3)").build(then)
    settings = TuneConfig(**{"method": "hybrid", "length": 2, "restarts": 2, "steps": 3, "chat": True, **config})
    result = tune(then, target, settings).result
    assert replay(then, result.capsule).note is None
    found = replay(now, result.capsule)
    assert found.agrees
    assert "tokens around the prompt" in str(found.note)
    run = resume(now, result.capsule, steps=3)
    assert run.result.kl_nats <= result.kl_nats + 1e-4
    fixed = run.layout.ids >= 0
    best = torch.tensor(result.capsule["restarts"][result.best_restart]["ids"])
    assert run.layout.ids[fixed].tolist() == best[fixed].tolist() == Layout.of(then, settings).ids[fixed].tolist()
    assert replay(now, run.result.capsule).agrees


def test_slots_that_nobody_can_find_are_not_gone_on_from(tiny_lm: Callable[[str], LanguageModel]) -> None:
    lm = on(tiny_lm("gpt2"), "26 Nov")
    layout = Layout.of(lm, TuneConfig(method="hard", length=2, chat=True))
    strange = torch.cat([torch.tensor([5]), layout.ids.clamp_min(7), torch.tensor([6])])
    with pytest.raises(InputError, match="can be replayed, but not resumed"):
        layout.around(strange)


def test_a_source_prompt_scores_zero_under_every_preset(tiny_lm: Callable[[str], LanguageModel]) -> None:
    lm = tiny_lm("mistral")  # its tokenizer writes a BOS
    target = random_prompt(length=3, seed=1).build(lm)
    ids = target.provenance["prompt_ids"]
    for preset in PRESETS:
        layout = Layout.of(lm, TuneConfig.preset(preset, length=3))
        assert layout.ids[: len(lm.bos_ids)].tolist() == ids[: len(lm.bos_ids)]
        assert len(layout) == len(ids)
    kl = final_scores_of_ids(lm, objective_for(lm, target), ids).kl
    assert float(kl) == pytest.approx(0, abs=1e-5)
