"""Samples and metrics, against arithmetic."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpexplore.diffuse.biographies import Biography, BiographyCounts
from dpexplore.diffuse.config import AdapterConfig
from dpexplore.diffuse.families import family
from dpexplore.diffuse.metrics import coverage, outcome_fit, perplexity, sample_facts
from dpexplore.diffuse.report import held_out_text
from dpexplore.diffuse.sampling import sample_answers
from dpexplore.diffuse.training import AdapterRun
from dpexplore.models import LanguageModel
from dpexplore.targets import strings
from tests.diffuse.shared import ASKED, TinyLm


@pytest.mark.parametrize("eos", [True, False])
def test_samples_follow_the_models_own_probabilities(decided: LanguageModel, eos: bool) -> None:
    target = strings(["s", "t", "e"], request="I love the", response=["", " big"], eos=eos).build(decided)
    run = AdapterRun(decided, [target], AdapterConfig(learning_rate=0.02, passes=40)).finish()
    fit = outcome_fit(run.adapter.lm, target)
    assert fit.valid_mass > 0.5  # so that answers and their end, which is no part of them, are met
    drawn = sample_answers(run.adapter.lm, target, 401, seed=1)
    assert len(drawn) == 401
    for text, q in zip(target.outcomes, fit.probabilities.tolist(), strict=True):
        assert abs(drawn.count(text) / 401 - q) < 5 * math.sqrt(q * (1 - q) / 401) + 1e-2
    facts = sample_facts(target, drawn)
    assert abs(1 - facts.invalid_share - fit.valid_mass) < 5 * math.sqrt(0.25 / 401)
    assert drawn == sample_answers(run.adapter.lm, target, 401, seed=1)
    assert drawn != sample_answers(run.adapter.lm, target, 401, seed=2)


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_coverage_is_the_mean_over_all_draws(counts: list[int], data: st.DataObject) -> None:
    total = sum(counts) + data.draw(st.integers(0, 2))
    draws = data.draw(st.integers(0, total))
    pool = [k for k, count in enumerate(counts) for _ in range(count)] + [-1] * (total - sum(counts))
    drawn = [len(set(some) - {-1}) for some in combinations(pool, draws)]
    assert coverage(counts, draws, total) == pytest.approx(sum(drawn) / len(drawn))


def test_facts_count_what_was_never_trained_on(tiny_lm: TinyLm) -> None:
    target = strings({"sea": 1, "shore": 1, "lazy": 0, "dog": 0}, request="I love the").build(tiny_lm("llama"))
    facts = sample_facts(target, ["sea", "sea", "lazy", "what?"], sizes=[2, 4, 10])
    assert facts.unseen == 1
    assert facts.invalid_share == 0.25
    assert facts.entropy_nats == pytest.approx(1.5 * math.log(2))
    assert facts.coverage == {2: pytest.approx(coverage([2, 1], 2, 4)), 4: 2}
    assert target.entropy_nats == pytest.approx(math.log(2))


SKETCHES = ("{Ann Lee}\n{Female}\n{May 1, 1950}\n{Chile}\n{Baker}", "{Bo Ray}\n{Male}\n{May 2, 1960}\n{Peru}\n{Pilot}")


@pytest.mark.parametrize("text", SKETCHES)
def test_a_biography_is_read_as_it_was_written(text: str) -> None:
    read = Biography.parse(text)
    assert str(read) == text
    assert Biography.parse(f"{text}\n{{Won a prize}}") == read  # the paper's sixth line
    assert Biography.parse(f"Sure!\n{text}") is None
    assert Biography.parse(text.rpartition("\n")[0]) is None


def test_different_people_among_samples_are_counted(tiny_lm: TinyLm) -> None:
    target = strings(SKETCHES, request="I love the").build(tiny_lm("llama"))
    new = "{ann Kay}\n{Female}\n{May 1, 1950}\n{Kenya}\n{baker}"
    samples = [*SKETCHES, new, SKETCHES[0], "Ann Lee, a baker", ""]
    found = sample_facts(target, samples).biographies
    assert found == BiographyCounts(sketches=4, first_names=2, birth_places=3, careers=2)
    assert sample_facts(ASKED.build(tiny_lm("llama")), samples).biographies is None
    (people,) = family("biographies", "full")
    assert all(Biography.parse(text) for text in people.strings.texts)


def test_valid_mass_counts_outcomes_of_weight_zero(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("llama")
    both = outcome_fit(lm, strings({"sea": 1, "dog": 0}, request="I love the").build(lm))
    one = outcome_fit(lm, strings({"sea": 1}, request="I love the").build(lm))
    assert both.cross_entropy_nats == pytest.approx(one.cross_entropy_nats, abs=1e-5)
    assert both.valid_mass == pytest.approx(float(both.probabilities.sum()))
    assert both.valid_mass > one.valid_mass
    assert both.kl_nats == pytest.approx(one.kl_nats, abs=1e-5)


def test_perplexity_is_the_exponential_of_the_mean_loss(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("gpt2")
    text = "The quick brown fox."
    ids = torch.tensor([[*lm.bos_ids, *lm.encode(text, bos=False)]])
    loss = lm.model(input_ids=ids, labels=ids).loss
    assert perplexity(lm, text) == pytest.approx(float(loss.exp()), rel=1e-4)
    assert perplexity(lm, held_out_text()) > 1  # in windows: the text is longer than the model
