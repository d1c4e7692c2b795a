"""The direct token: the head's optimum in one pass, and what happens where a model does not follow."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from dpexplore.errors import InputError
from dpexplore.floor.of_model import softmax_floor
from dpexplore.models import LanguageModel
from dpexplore.targets import entropy, parse_recipe
from dpexplore.tuning import TuneConfig, TuneResult, replay, restore, resume, tune
from dpexplore.tuning.record.bounds import bounds_sentence
from tests.tiny_models import ARCHITECTURES

FOLLOWING = sorted(set(ARCHITECTURES) - {"bloom", "gemma2", "opt"})


def direct(lm: LanguageModel, recipe: str, **changes: object) -> TuneResult:
    return tune(lm, parse_recipe(recipe).build(lm), TuneConfig.preset("direct", **changes)).result


@pytest.mark.parametrize("architecture", FOLLOWING)
def test_one_pass_reaches_the_heads_optimum(architecture: str, tiny_lm: Callable[[str], LanguageModel]) -> None:
    lm = tiny_lm(architecture)
    result = direct(lm, "entropy(bits=4, seed=3)")
    head, floor = result.bounds.head_optimum_nats, result.bounds.floor_nats
    assert head is not None
    assert floor is not None
    assert result.bounds.note is None
    assert (result.steps, result.status) == (1, "converged")
    assert floor - 1e-6 <= head <= result.kl_nats + 1e-3
    assert result.kl_nats <= head + 1e-3
    with torch.no_grad():
        logits = lm.model(inputs_embeds=result.prompt_embeds[None]).logits[0, -1]
    probs = parse_recipe("entropy(bits=4, seed=3)").build(lm).probs
    plain = float((probs * (probs.log() - logits.log_softmax(-1))).nan_to_num(0).sum())
    assert plain == pytest.approx(result.kl_nats, abs=1e-4)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("bloom", "does not pass a long token on"), ("opt", "projects its input"), ("gemma2", "soft-caps")],
)
def test_model_that_does_not_follow_is_found_out_and_tuned(
    architecture: str, reason: str, tiny_lm: Callable[[str], LanguageModel]
) -> None:
    result = direct(tiny_lm(architecture), "entropy(bits=4, seed=3)", steps=30)
    assert result.bounds.note is not None
    assert reason in result.bounds.note
    assert "\n" not in result.bounds.note
    assert result.steps > 1
    first = result.capsule["history"]["kl_nats"][0][0]
    assert result.kl_nats < first - 0.1
    if result.bounds.floor_nats is not None:
        assert result.kl_nats >= result.bounds.floor_nats - 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": '"Once upon a" soft*1'},
        {"slots": '"Q:" soft*3'},
        {"method": "hybrid", "slots": "hard*2 soft*1", "candidates": 4},
        {"restarts": 3},
    ],
)
@pytest.mark.parametrize(
    "recipe", ["entropy(bits=1, seed=0)", "entropy(bits=6, seed=0)", 'capture("the sea").shuffle(seed=1)']
)
def test_holds_at_every_entropy_and_behind_other_slots(lm: LanguageModel, recipe: str, changes: dict) -> None:
    result = direct(lm, recipe, **changes)
    assert result.bounds.head_optimum_nats is not None
    assert result.kl_nats <= result.bounds.head_optimum_nats + 1e-3
    assert result.steps == 1


def test_text_behind_the_soft_slot_is_said_and_tuned(lm: LanguageModel) -> None:
    result = direct(lm, "entropy(bits=3, seed=0)", slots='soft*2 " the"', steps=20)
    assert "does not end in a soft slot" in (result.bounds.note or "")


def test_captured_target_closes_the_question_and_a_shuffled_one_leaves_an_interval(lm: LanguageModel) -> None:
    captured = direct(lm, 'capture("the sea")')
    assert "comes closer than 0.000" in (captured.bounds_sentence or "")
    shuffled = direct(lm, "entropy(bits=6, seed=0)")
    assert shuffled.bounds.floor_nats is not None
    assert shuffled.kl_nats > shuffled.bounds.floor_nats + 1e-3
    assert "lies between" in (shuffled.bounds_sentence or "")


def test_sentence_never_rounds_a_floor_up() -> None:
    assert bounds_sentence(1.99951, 2.0) == "No soft prompt comes closer than 1.999 nats, and this one is at 2.000."
    assert bounds_sentence(None, 2.0) is None


def test_capsule_replays_and_keeps_what_the_run_found(lm: LanguageModel) -> None:
    result = direct(lm, "entropy(bits=3, seed=0)")
    capsule = json.loads(json.dumps(result.capsule))
    assert replay(lm, capsule).agrees
    back = restore(lm, capsule)
    assert back.bounds.head_optimum_nats == result.bounds.head_optimum_nats
    assert back.bounds_sentence == result.bounds_sentence == capsule["result"]["bounds"]
    again = resume(lm, capsule, steps=3)
    assert again.result.kl_nats <= result.kl_nats + 1e-5


def test_direct_tells_a_reader_what_it_cannot_do(lm: LanguageModel) -> None:
    for changes in ({"method": "hard"}, {"objective": "js"}, {"norm_budget": "wide"}, {"norm_budget": 0}):
        with pytest.raises(InputError):
            TuneConfig.preset("direct", **changes)
    with pytest.raises(InputError, match="soft tokens"):
        TuneConfig(method="hard", norm_budget="1x")
    with pytest.raises(InputError, match="target over strings"):
        tune(lm, parse_recipe('strings({" a b": 1, " c d": 1}, request="x")').build(lm), TuneConfig.preset("direct"))


@pytest.mark.parametrize("rule", ["adamw", "lbfgs", "direct"])
@pytest.mark.parametrize("budget", ["0.5x", "2x", 7])
def test_norm_budget_is_honoured_at_every_step(lm: LanguageModel, rule: str, budget: str | float) -> None:
    config = TuneConfig(length=3, soft_rule=rule, norm_budget=budget, restarts=2, steps=25, screen=3)  # pyright: ignore
    run = tune(lm, entropy(bits=3, seed=1).build(lm), config)
    longest = run.norm_budget
    for _ in run:
        best = run.best_prompt()
        assert best is not None
        assert best.embeds[run.layout.soft].norm(dim=-1).max() <= longest * (1 + 1e-5)
    assert run.result.prompt_embeds[run.layout.soft].norm(dim=-1).max() <= longest * (1 + 1e-5)
    kls = [min(kl for kl in step.kl_nats if kl is not None) for step in run.steps]
    assert run.result.kl_nats < kls[0]
    assert run.result.kl_nats >= softmax_floor(lm, run.target).lower_bound_nats - 1e-4


def test_budget_above_the_direct_token_changes_nothing_and_one_below_is_said(lm: LanguageModel) -> None:
    free, wide = direct(lm, "entropy(bits=3, seed=0)"), direct(lm, "entropy(bits=3, seed=0)", norm_budget=1e7)
    assert wide.kl_nats == pytest.approx(free.kl_nats, abs=1e-5)
    short = direct(lm, "entropy(bits=3, seed=0)", norm_budget="1x", steps=5)
    assert "norm budget" in (short.bounds.note or "")
