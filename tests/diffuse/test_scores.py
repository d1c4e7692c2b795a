"""The sequence objective, against plain transformers and arithmetic."""

from __future__ import annotations

import pytest
import torch

import dpexplore as dp
from dpexplore.diffuse.config import AdapterConfig
from dpexplore.diffuse.metrics import outcome_fit
from dpexplore.diffuse.training import AdapterRun, cross_entropy, part_log_probs, weighted_loss
from dpexplore.models import LanguageModel
from dpexplore.targets import strings
from dpexplore.tuning import replay
from dpexplore.tuning.objectives.sequences import (
    can_pack,
    objective_for,
    outcome_log_probs,
    packed_log_probs,
    plain_log_probs,
)
from tests.diffuse.shared import ASKED, TinyLm, recomputed
from tests.tiny_models import ARCHITECTURES


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_packed_outcomes_have_the_probabilities_of_plain_passes(tiny_lm: TinyLm, architecture: str) -> None:
    lm = tiny_lm(architecture)
    target = ASKED.build(lm)
    prompt = lm.embed(torch.tensor([target.request_ids]))
    expected = recomputed(lm, target, target.request_ids)
    with torch.no_grad():
        assert outcome_log_probs(lm, prompt, target.tree)[0, 0].tolist() == pytest.approx(expected, abs=1e-4)
        assert plain_log_probs(lm, prompt, target.tree, 2)[0, 0].tolist() == pytest.approx(expected, abs=1e-4)
        if can_pack(lm):
            assert packed_log_probs(lm, prompt, target.tree)[0, 0].tolist() == pytest.approx(expected, abs=1e-4)
    assert can_pack(lm) == (lm.max_positions is not None)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_gradient_flows_through_the_request(tiny_lm: TinyLm, architecture: str) -> None:
    lm = tiny_lm(architecture)
    target = strings({"sea": 1, "shore": 3}, request="I love the", response=["", " big"]).build(lm)
    rows = torch.stack([lm.embed(torch.tensor(ids)) for ids in (target.request_ids, target.request_ids[::-1])]).detach()
    grads = []
    for score in (packed_log_probs, plain_log_probs):
        leaf = rows.clone().requires_grad_()
        found = score(lm, leaf, target.tree)
        assert found.shape == (2, 2, 2)
        grads.append(torch.autograd.grad(-(target.weights.float() * found).sum(), leaf)[0])
    assert torch.allclose(grads[0], grads[1], atol=1e-5)
    assert (grads[0].abs().sum(-1) > 0).all()


def test_the_default_models_loss_is_the_same_packed_and_plain(default_lm: LanguageModel) -> None:
    target = strings([f"{{{n}}}" for n in (1, 10, 100, 25)], request="Say a number.").build(default_lm)
    prompt = default_lm.embed(torch.tensor([target.request_ids]))
    with torch.no_grad():
        losses = [
            -(target.weights.float() * score(default_lm, prompt, target.tree)[0, 0]).sum()
            for score in (packed_log_probs, plain_log_probs)
        ]
        by_training = cross_entropy(default_lm, target)
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-4)
    assert float(by_training) == pytest.approx(float(losses[0]), abs=1e-4)


def test_batches_of_outcomes_add_up_to_the_loss(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("llama")
    target = ASKED.build(lm)
    order = torch.tensor([2, 0, 1])
    parts = [weighted_loss(part_log_probs(lm, target, part), target.weights[part]) for part in order.split(2)]
    assert float(sum(parts)) == pytest.approx(float(cross_entropy(lm, target)), abs=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [2, 32])
def test_a_pass_tells_the_probabilities_that_it_met(tiny_lm: TinyLm, batch: int) -> None:
    lm = tiny_lm("llama")
    kept = strings({"sea": 1, "shore": 2, "the": 0, "she sells": 1}, request="I love the", response=["", " big"])
    target = kept.build(lm)
    run = AdapterRun(lm, [target], AdapterConfig(learning_rate=0.01, passes=3, batch=batch))
    assert run.probabilities[0].isnan().all()
    next(iter(run))
    expected = outcome_fit(lm, target).probabilities
    asked = target.weights > 0
    assert run.probabilities[0][asked].tolist() == pytest.approx(expected[asked].tolist(), rel=1e-4)
    assert run.probabilities[0].isnan().tolist() == (~asked).tolist()


@pytest.mark.parametrize("kind", ["kl", "js", "tv"])
def test_the_engine_tunes_prompts_to_strings(tiny_lm: TinyLm, kind: str) -> None:
    lm = tiny_lm("llama")
    target = ASKED.build(lm)
    config = dp.TuneConfig(method="hybrid", slots='soft*2 "I love" hard*1', restarts=2, steps=6, objective=kind)  # type: ignore[arg-type]
    result = dp.tune(lm, target, config).result
    prompt = result.prompt_embeds
    fit = outcome_fit(lm, target, prompt)
    assert result.kl_nats == pytest.approx(fit.kl_nats, abs=1e-4)
    assert result.log_probs.shape == (4,)
    assert float(result.log_probs.exp().sum()) == pytest.approx(1, abs=1e-4)
    first = dp.tune(lm, target, dp.TuneConfig(**{**config.to_dict(), "steps": 1})).result
    scored = [objective_for(lm, target, kind).score(lm, one.prompt_embeds[None], [objective_for(lm, target, kind)])  # type: ignore[arg-type]
              for one in (result, first)]  # fmt: skip
    assert float(scored[0].loss) <= float(scored[1].loss)


def test_strings_and_tokens_are_tuned_side_by_side_and_replayed(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("llama")
    engine = dp.Engine(lm)
    config = dp.TuneConfig(method="hard", length=3, restarts=2, steps=3, patience=None, screen=3)
    runs = [engine.submit(target, config) for target in (ASKED.build(lm), dp.entropy(bits=4).build(lm))]
    while engine.step():
        pass
    for run in runs:
        alone = dp.tune(lm, run.target, config).result
        assert run.result.kl_nats == pytest.approx(alone.kl_nats, abs=1e-4)
        assert replay(lm, run.result.capsule).agrees


def test_reverse_kl_over_strings_is_refused(tiny_lm: TinyLm) -> None:
    with pytest.raises(dp.InputError, match="infinite"):
        dp.tune(tiny_lm("llama"), ASKED.build(tiny_lm("llama")), dp.TuneConfig(objective="reverse_kl"))
