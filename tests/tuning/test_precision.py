"""Final scores are computed in float32, whatever the search ran in."""

from __future__ import annotations

import copy

import pytest
import torch

from dpexplore.floor.of_model import softmax_floor
from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning import TuneConfig, TuneResult, replay, restore, tune


@pytest.fixture(scope="module")
def low(lm: LanguageModel) -> LanguageModel:
    """The tiny model in bfloat16."""
    return LanguageModel(
        lm.name, copy.deepcopy(lm.model).bfloat16(), lm.tokenizer, lm.identity, dtype_reason="as requested"
    )


@pytest.fixture(scope="module")
def whole(low: LanguageModel) -> LanguageModel:
    """The weights of `low`, as a float32 model."""
    return LanguageModel(low.name, copy.deepcopy(low.model).float(), low.tokenizer, low.identity)


@pytest.fixture(scope="module")
def result(low: LanguageModel, target: Target) -> TuneResult:
    return tune(low, target, TuneConfig(method="hybrid", slots="soft hard*2", restarts=3, steps=6)).result


def kl_of(lm: LanguageModel, target: Target, embeds: torch.Tensor) -> float:
    with torch.no_grad():
        log_q = lm.log_probs(embeds[None])[0].double()
    return float((torch.xlogy(target.probs, target.probs) - target.probs * log_q).sum())


def test_the_best_prompt(result: TuneResult, low: LanguageModel, whole: LanguageModel, target: Target) -> None:
    exact = kl_of(whole, target, result.prompt_embeds)
    assert result.kl_nats == pytest.approx(exact, abs=1e-4)
    assert result.kl_nats == min(kl for kl in result.kl_nats_per_restart if kl is not None)
    assert result.scored_in == "float32"
    assert result.kl_search_nats == pytest.approx(kl_of(low, target, result.prompt_embeds), abs=0.02 * exact)
    assert result.kl_nats >= softmax_floor(low, target).lower_bound_nats - 1e-5


def test_a_word_where_the_search_was_misled(result: TuneResult) -> None:
    seen = result.kl_search_nats
    assert seen is not None
    differs = abs(result.kl_nats - seen) > 0.02 * result.kl_nats
    assert (result.precision_warning is not None) == differs


def test_a_capsule_says_what_it_was_scored_in(result: TuneResult, low: LanguageModel, whole: LanguageModel) -> None:
    capsule = result.capsule
    assert (capsule["model"]["dtype"], capsule["model"]["dtype_reason"]) == ("bfloat16", "as requested")
    assert (capsule["result"]["scored_in"], capsule["result"]["kl_nats"]) == ("float32", result.kl_nats)
    assert [each["kl_nats"] for each in capsule["restarts"]] == result.kl_nats_per_restart
    for lm in (low, whole):
        assert replay(lm, capsule).kl_nats == pytest.approx(result.kl_nats, abs=1e-4)


@pytest.mark.parametrize(("exact", "shown", "scored_in"), [(5.123, 5.123, "float32"), (None, 5.108, "bfloat16")])
def test_capsules_of_before(
    exact: float | None, shown: float, scored_in: str, result: TuneResult, low: LanguageModel
) -> None:
    capsule = copy.deepcopy(result.capsule)
    for name in ("scored_in", "kl_search_nats"):
        del capsule["result"][name]
    capsule["result"] |= {"kl_nats": 5.108, "kl_float32_nats": exact}
    restored = restore(low, capsule)
    assert (restored.kl_nats, restored.scored_in) == (shown, scored_in)
    assert restored.precision_warning is None if exact else "bfloat16" in str(restored.precision_warning)
    assert replay(low, capsule).recorded_kl_nats == shown


def test_a_score_that_does_not_fit_in_float32_says_so(
    low: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("dpexplore.tuning.record.precision.in_float32", full)
    result = tune(low, target, TuneConfig(restarts=1, steps=2)).result
    assert result.scored_in == "bfloat16"
    assert result.kl_search_nats is None
    assert "computed in bfloat16" in str(result.precision_warning)


def test_a_float32_model_is_scored_as_it_is(lm: LanguageModel, target: Target) -> None:
    result = tune(lm, target, TuneConfig(restarts=1, steps=2)).result
    assert (result.scored_in, result.kl_search_nats, result.precision_warning) == ("float32", None, None)
    assert result.kl_nats == pytest.approx(kl_of(lm, target, result.prompt_embeds), abs=1e-5)
