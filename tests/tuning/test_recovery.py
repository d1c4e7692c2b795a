"""Recovering the prompt behind a captured target."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dpexplore.floor.inverse import state_behind
from dpexplore.models import LanguageModel
from dpexplore.targets import Target, capture, entropy, random_prompt
from dpexplore.tuning import Engine, TuneConfig, TuneResult, tune
from dpexplore.tuning.captured import captured_length
from dpexplore.tuning.engine.recovery import SHARE, Recover
from dpexplore.tuning.init import general
from dpexplore.tuning.init.general import Learning
from dpexplore.tuning.init.layout import Layout
from dpexplore.tuning.init.policy import allowed_ids, survives
from dpexplore.tuning.init.recovery import Recovery
from dpexplore.tuning.init.regression import RIDGE, SHRINK, Moments, Regression, normal_log_densities
from dpexplore.tuning.objectives.states import last_states, reads_states
from dpexplore.tuning.record.bounds import RECOVERED, RECOVERED_NATS
from dpexplore.tuning.record.replay import restore

TinyLM = Callable[[str], LanguageModel]


def config(length: int, **changes: object) -> TuneConfig:
    settings = {"restarts": 2, "steps": 3, "evaluations": 20_000, "hard_rule": "search", "init": "recover"} | changes
    return TuneConfig(method="hard", length=length, **settings)  # pyright: ignore[reportArgumentType]


def planted(lm: LanguageModel, length: int, seed: int) -> tuple[Target, list[int]]:
    target = random_prompt(length=length, seed=seed).build(lm)
    return target, target.provenance["prompt_ids"]


def of_unknown_length(lm: LanguageModel, length: int, seed: int) -> Target:
    """A captured target of which nobody says how long its prompt was."""
    return replace(planted(lm, length, seed)[0], provenance={})


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3", "gpt_neox", "phi3"])
def test_a_state_is_read_off_what_it_says(tiny_lm: TinyLM, architecture: str) -> None:
    lm = tiny_lm(architecture)
    assert reads_states(lm)
    target, ids = planted(lm, 3, seed=1)
    state = last_states(lm, lm.embed(torch.tensor([ids])))[0]
    found = state_behind(lm, target.probs)
    assert found is not None
    assert torch.allclose(found.float(), state, atol=2e-3 * float(state.abs().max()))


def test_no_prompt_is_behind_other_distributions(lm: LanguageModel) -> None:
    """Not affine in a state; affine, but of a state that is too long; with a probability of zero."""
    for recipe in (entropy(bits=3), random_prompt(length=2).temperature(0.5), random_prompt(length=2).top_k(9)):
        assert state_behind(lm, recipe.build(lm).probs) is None


def test_the_regression_is_ridge_towards_its_prior() -> None:
    rng = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(400, size, generator=rng, dtype=torch.float64) for size in (6, 5))
    truth, mixing = torch.randn(6, 5, generator=rng).double(), torch.randn(5, 5, generator=rng).double()
    y = 1 + x @ truth + noise @ mixing
    moments = Moments.none(6, 5, torch.device("cpu"))
    for part in range(4):
        moments.add(x[100 * part : 100 * part + 100], y[100 * part : 100 * part + 100])
    prior = truth.float() + 0.1
    found = Regression.of(moments, prior)
    centred, response = x - x.mean(0), y - y.mean(0)
    penalty = (RIDGE * 400 * centred.square().mean()).sqrt()
    rows = torch.cat([centred, penalty * torch.eye(6).double()]), torch.cat([response, penalty * prior.double()])
    slope = torch.linalg.lstsq(*rows).solution
    assert torch.allclose(found.slope.double(), slope, atol=1e-5)
    rest = response - centred @ slope
    covariance = rest.T @ rest / 400
    covariance += SHRINK * covariance.diagonal().mean() * torch.eye(5)
    assert torch.allclose(found.factor @ found.factor.T, covariance.float(), rtol=1e-4, atol=1e-4)
    means = y.mean(0) + (x[:7] - x.mean(0)) @ slope
    wanted = torch.distributions.MultivariateNormal(means, covariance).log_prob(y[0])
    densities = found.log_densities(x[:7].float(), y[0].float()).double()
    assert torch.allclose(densities - densities[0], wanted - wanted[0], atol=1e-3)


def test_densities_of_offsets_are_those_of_a_normal_distribution() -> None:
    rng = torch.Generator().manual_seed(0)
    offsets, mixing = (torch.randn(size, 4, generator=rng).double() for size in (9, 4))
    covariance = mixing @ mixing.T
    wide = covariance + SHRINK * covariance.diagonal().mean() * torch.eye(4)
    wanted = torch.distributions.MultivariateNormal(torch.zeros(4).double(), wide).log_prob(offsets)
    found = normal_log_densities(offsets.float(), covariance.float()).double()
    assert torch.allclose(found - found[0], wanted - wanted[0], atol=1e-3)


def recovered(lm: LanguageModel, target: Target, settings: TuneConfig) -> TuneResult:
    result = tune(lm, target, settings).result
    assert result.recovered == (result.kl_nats <= RECOVERED_NATS)
    return result


@pytest.mark.parametrize(
    ("architecture", "length"), [("gpt2", 1), ("gpt2", 2), ("gpt2", 3), ("llama", 2), ("gemma3", 2)]
)
def test_planted_prompts_are_recovered(tiny_lm: TinyLM, architecture: str, length: int) -> None:
    lm = tiny_lm(architecture)
    target, ids = planted(lm, length, seed=3)
    result = recovered(lm, target, config(length))
    assert result.prompt_ids == ids
    assert result.recovered
    assert result.bounds_sentence == RECOVERED
    assert result.status == "converged"
    assert result.capsule["result"]["recovered"] is True


def test_every_token_of_a_single_position_is_compared(lm: LanguageModel) -> None:
    """Whatever the regression thinks: the token it holds for the least likely is found too."""
    for token in lm.ordinary_ids[:: len(lm.ordinary_ids) // 5].tolist():
        ids = [*lm.bos_ids, token]
        probs = lm.log_probs_of_ids(torch.tensor([ids]))[0].double().softmax(-1)
        result = recovered(lm, Target(probs, "one token"), config(1))
        assert result.prompt_ids == ids


def found_by(lm: LanguageModel, layout: Layout, ids: list[int], most: int = 10_000) -> Recovery:
    """The search for one prompt of a layout, at its end."""

    def states(prompts: torch.Tensor) -> torch.Tensor:
        return last_states(lm, lm.embed(prompts))

    learning = Learning(lm, layout)
    while learning.general is None:
        samples = learning.samples(256)
        learning.take(samples, states(samples))
    state = states(torch.tensor([ids]))[0]
    search = Recovery(lm, layout, state, learning.general, seed=0, most=most, keep=1)
    work = search.work()
    try:
        asked = next(work)
        while True:
            asked = work.send(states(asked))
    except StopIteration:
        return search


@pytest.mark.parametrize("length", [1, 2, 3])
def test_every_prompt_of_few_tokens_is_compared_in_the_end(lm: LanguageModel, length: int) -> None:
    """Also the last of them: of allowed tokens so few that each ending runs out of them."""
    layout = Engine(lm).prepare(entropy(bits=3).build(lm), config(length, init="vocab")).layout
    layout = replace(layout, allowed=layout.allowed[[3, 50, 90, 120]])
    for tokens in itertools.islice(itertools.product(layout.allowed.tolist(), repeat=length), 0, None, 7):
        ids = layout.ids.clone()
        ids[layout.hard] = torch.tensor(tokens)
        assert found_by(lm, layout, ids.tolist()).best == [tuple(ids.tolist())]


def test_a_search_without_a_prompt_ends(lm: LanguageModel) -> None:
    """Once every prompt of the few allowed tokens was compared."""
    layout = Engine(lm).prepare(entropy(bits=3).build(lm), config(2, init="vocab")).layout
    few = replace(layout, allowed=layout.allowed[[3, 50, 90]])
    other = layout.ids.clone()
    other[layout.hard] = layout.allowed[[7, 8]]
    search = found_by(lm, few, other.tolist(), most=10**6)
    assert not search.found
    assert search.asked < 10**6


def test_fixed_text_stays_where_it_is(lm: LanguageModel) -> None:
    """Text before, between and behind the hard tokens, none of them last."""
    slots = '"The sea" hard*1 " and" hard*1 " shore"'
    layout_config = config(5, slots=slots)
    layout = Engine(lm).prepare(entropy(bits=3).build(lm), config(5, slots=slots, init="vocab")).layout
    ids = layout.ids.clone()
    ids[layout.hard] = layout.allowed[[5, 50]]
    probs = lm.log_probs_of_ids(ids[None])[0].double().softmax(-1)
    result = recovered(lm, Target(probs, "planted"), layout_config)
    assert result.prompt_ids == ids.tolist()


def test_a_prompt_that_cannot_be_recovered_is_searched_for(lm: LanguageModel) -> None:
    """Nobody knows its length: recovering uses up its share of the evaluations, and the search goes on from there."""
    target = of_unknown_length(lm, 5, seed=0)
    run = tune(lm, target, config(2, evaluations=500, patience=None, steps=500))
    result = run.result
    assert run.bounds.captured
    assert not result.recovered
    assert result.bounds_sentence is not None
    assert result.bounds_sentence.startswith("Some prompt says exactly")
    assert result.status == "max_steps"
    assert result.evaluations == 1000
    first = run.steps[0].evaluations
    assert SHARE * 1000 <= sum(first) <= SHARE * 1000 + 250  # and the first step's candidates
    again = tune(lm, target, run.config).result
    assert (again.prompt_ids, again.kl_nats) == (result.prompt_ids, result.kl_nats)


def test_a_prompt_of_another_length_is_not_looked_for(lm: LanguageModel) -> None:
    target, _ = planted(lm, 3, seed=0)
    result = tune(lm, target, config(2, steps=2)).result
    assert result.bounds.note == "The target was captured from a prompt of 3 tokens, and this one has 2: try 3."
    assert not result.recovered
    assert tune(lm, target, config(3, steps=2)).result.bounds.note is None


def test_other_targets_are_looked_up(lm: LanguageModel, target: Target) -> None:
    run = tune(lm, target, config(2))
    assert run.result.prompt_ids is not None
    assert run.last_tokens is not None
    assert not run.bounds.captured
    soft = tune(lm, target, TuneConfig(method="soft", init="recover", restarts=1, steps=1))
    assert soft.preparation is None


@pytest.mark.parametrize("architecture", ["gpt2", "mistral"])
def test_only_allowed_prompts_that_survive_are_kept(tiny_lm: TinyLM, architecture: str) -> None:
    lm = tiny_lm(architecture)
    target, _ = planted(lm, 2, seed=4)
    run = tune(lm, target, config(2, evaluations=300, policy="words", round_trip=True))
    assert isinstance(run.preparation, Recover)
    for _ in run:
        assert run.starts is not None
        for ids, _embeds in run.starts:
            assert survives(lm, [ids.tolist()], len(lm.bos_ids)) == [True]
            assert set(ids[len(lm.bos_ids) :].tolist()) <= set(allowed_ids(lm, "words").tolist())


def test_stop_keeps_the_closest_prompt(lm: LanguageModel) -> None:
    target = of_unknown_length(lm, 5, seed=0)
    engine = Engine(lm)
    run = engine.submit(target, config(4))
    assert isinstance(run.preparation, Recover)
    while "compared" not in run.preparation.text:
        assert engine.step()
    for _ in range(3):
        engine.step()
    run.cancel()
    engine.step()
    assert run.finished
    assert run.result.status == "cancelled"
    assert run.result.prompt_ids is not None
    assert run.result.kl_nats < 20
    assert restore(lm, run.result.capsule).bounds_sentence == run.result.bounds_sentence


def test_what_was_learnt_is_kept(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    target, ids = planted(lm, 2, seed=3)
    assert recovered(lm, target, config(2)).prompt_ids == ids
    general._known.clear()
    monkeypatch.setattr(general, "Learning", lambda *_: pytest.fail("learnt again"))
    assert recovered(lm, target, config(2)).prompt_ids == ids


def test_runs_beside_it_move_on(lm: LanguageModel, target: Target) -> None:
    engine = Engine(lm)
    slow = engine.submit(of_unknown_length(lm, 5, seed=0), config(4, evaluations=100_000))
    quick = engine.submit(target, TuneConfig(method="soft", restarts=1, steps=5, patience=None))
    while not quick.finished:
        engine.step()
    assert slow.preparation is not None
    slow.cancel()
    engine.step()


def test_natural_text_is_recovered_too(lm: LanguageModel) -> None:
    ids = lm.encode("the")
    hard = len(ids) - len(lm.bos_ids)
    assert recovered(lm, capture("the").build(lm), config(hard)).prompt_ids == ids


def test_the_length_of_a_captured_prompt_is_known(lm: LanguageModel, tiny_lm: TinyLM) -> None:
    target = random_prompt(length=4, seed=1).build(lm)
    assert captured_length(lm, target) == 4
    assert captured_length(tiny_lm("gpt2"), target) is None
    for recipe in (random_prompt(length=4, bos=False), random_prompt(length=4).shuffle(seed=1), entropy(bits=3)):
        assert captured_length(lm, recipe.build(lm)) is None
