"""Searches over tokens, and what hard slots may hold."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from dpexplore.models import LanguageModel
from dpexplore.targets import Target, entropy
from dpexplore.tuning import Engine, TuneConfig, tune
from dpexplore.tuning.engine.passes import Batch, Evaluation
from dpexplore.tuning.engine.rows import RowStack, rules_of
from dpexplore.tuning.init.policy import allowed_ids, survives
from dpexplore.tuning.knobs import POLICIES
from dpexplore.tuning.objectives.next_token import (
    NextTokenObjective,
)
from dpexplore.tuning.rules.memory import SearchMemory
from dpexplore.tuning.rules.search import _regress
from tests.tuning.shared import TinyLM


def first_proposals(
    lm: LanguageModel, target: Target, rule: str, **changes: object
) -> tuple[RowStack, Batch, Evaluation]:
    """A stack at its first step: the candidates it asks for, and the evaluation before them."""
    settings = {"length": 3, "restarts": 1, "candidates": 12, "top": 4, "seed": 5}
    config = TuneConfig(method="hard", hard_rule=rule, **settings)  # pyright: ignore[reportArgumentType]
    run = Engine(lm).submit(target, config)
    stack = RowStack(lm, rules_of(run))
    stack.admit([(run, 0)])
    work = stack.step()
    present = next(work)
    embeds = present.part(lm, 0, 1).requires_grad_()
    scores = run.objective.score(lm, embeds, [run.objective])
    (grad,) = torch.autograd.grad(scores.loss.sum(), embeds)
    found = Evaluation(scores.loss.detach(), scores.kl, torch.zeros(1), grad)
    return stack, work.send(found), found


def test_gcg_candidates_are_those_of_a_brute_force(lm: LanguageModel, target: Target) -> None:
    stack, batch, found = first_proposals(lm, target, "gcg")
    base = stack.prompts.ids[0].tolist()
    assert found.grad is not None
    table = lm.embed(torch.arange(lm.vocab_size)[None])[0].detach()
    ordinary = lm.ordinary_ids.tolist()
    assert len(batch) == 12
    for prompt in batch.ids.tolist():
        changed = [i for i, (new, old) in enumerate(zip(prompt, base, strict=True)) if new != old]
        assert len(changed) <= 1  # a token may be its own best replacement
        for place in changed:
            order = sorted(ordinary, key=lambda token, slope=found.grad[0, place]: float(table[token] @ slope))
            assert prompt[place] in order[:4]
            assert stack.rows[0].run.layout.hard[place]
    embeds = batch.part(lm, 0, len(batch))
    assert torch.allclose(embeds, lm.embed(batch.ids))


def test_search_scores_no_prompt_twice_and_never_gets_worse(lm: LanguageModel, target: Target) -> None:
    config = TuneConfig(method="hard", hard_rule="search", length=3, restarts=1, candidates=8, steps=30, patience=None)
    engine = Engine(lm)
    run = engine.submit(target, config)
    asked: list[tuple[int, ...]] = []
    original = engine.evaluator.evaluate

    def watch(stack: RowStack, batch: Batch) -> Evaluation:
        if not batch.grad:
            asked.extend(map(tuple, batch.ids.tolist()))
        return original(stack, batch)

    engine.evaluator.evaluate = watch  # type: ignore[method-assign]
    while engine.step():
        pass
    assert len(set(asked)) == len(asked)
    bests = [step.best_kl_nats for step in run.steps]
    assert bests == sorted(bests, reverse=True)
    assert run.result.evaluations == len(asked) + len(run.steps)


def test_search_regression_is_ridge(lm: LanguageModel) -> None:
    """The dual solution equals the primal one, solved here over all features."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(len(lm.ordinary_ids), (40, 3), generator=rng)
    losses = torch.randn(40, generator=rng)
    found = _regress(lm, SearchMemory(ids=[ids], losses=[losses]), torch.arange(3)).flatten()
    features = torch.nn.functional.normalize(lm.embedding_table[ids].double(), dim=-1).flatten(1)
    wanted = ((losses - losses.mean()) / losses.std()).double()
    primal = torch.linalg.solve(features.T @ features + torch.eye(features.shape[1]), features.T @ wanted)
    assert torch.allclose(found.double(), primal, atol=1e-4)


@pytest.mark.parametrize("rule", ["gcg", "search"])
def test_evaluations_are_a_limit(lm: LanguageModel, target: Target, rule: str) -> None:
    config = TuneConfig(
        method="hard",
        hard_rule=rule,  # pyright: ignore[reportArgumentType]
        restarts=2,
        candidates=16,
        evaluations=50,
        screen=10,
        patience=None,
    )
    run = tune(lm, target, config)
    list(run)
    assert run.steps[-1].evaluations == [50, 50]
    assert run.result.evaluations == 100
    assert run.result.status == "max_steps"


# What hard slots may hold.


@pytest.mark.parametrize("rule", ["eq4", "gcg", "search"])
@pytest.mark.parametrize("policy", POLICIES)
def test_hard_slots_hold_what_the_policy_allows(lm: LanguageModel, target: Target, rule: str, policy: str) -> None:
    forbidden = allowed_ids(lm, policy)[:3].tolist()  # pyright: ignore[reportArgumentType]
    settings = {"restarts": 2, "steps": 6, "candidates": 8, "length": 3, "forbid": tuple(forbidden), "screen": 2}
    config = TuneConfig(method="hard", hard_rule=rule, policy=policy, **settings)  # pyright: ignore[reportArgumentType]
    run = tune(lm, target, config)
    for _ in run:
        ids = run.best_prompt_ids()
        assert ids is not None
        free = [token for token, hard in zip(ids, run.layout.hard.tolist(), strict=True) if hard]
        assert not set(free) & set(forbidden)
        for token in free:
            data = lm.token_bytes(token)
            if policy == "words":
                assert data is not None
                assert data.decode().removeprefix(" ").isalpha()
            elif policy in ("ascii", "printable"):
                assert data is not None
                assert data.decode().isprintable()
                assert policy == "printable" or data.isascii()
            elif policy == "no_special":
                assert data is not None


def test_policies_are_nested(tiny_lm: TinyLM) -> None:
    for architecture in ("gpt2", "llama", "mistral"):
        lm = tiny_lm(architecture)
        kept = [set(allowed_ids(lm, policy).tolist()) for policy in ("any", "no_special", "printable", "ascii")]
        assert kept == sorted(kept, key=len, reverse=True)
        assert all(smaller <= larger for larger, smaller in pairwise(kept))
        assert set(allowed_ids(lm, "words").tolist()) <= kept[2]


def test_lists_of_tokens(lm: LanguageModel, target: Target) -> None:
    words = allowed_ids(lm, "words").tolist()[:4]
    assert allowed_ids(lm, "any", allow=words, forbid=words[:2]).tolist() == words[2:]
    config = TuneConfig(method="hard", hard_rule="search", length=2, restarts=1, steps=5, allow=tuple(words[:2]))
    result = tune(lm, target, config).result
    assert result.prompt_ids is not None
    assert set(result.prompt_ids[-2:]) <= set(words[:2])


@given(st.data())
@examples(max_examples=30, deadline=None)
def test_survivors_are_those_that_encode_to_themselves(lm: LanguageModel, data: st.DataObject) -> None:
    ordinary = lm.ordinary_ids.tolist()
    prompts = data.draw(st.lists(st.lists(st.sampled_from(ordinary), min_size=1, max_size=4), min_size=1, max_size=5))
    for ids, lasts in zip(prompts, survives(lm, prompts, 0), strict=True):
        assert lasts == (lm.tokenizer(lm.decode(ids), add_special_tokens=False)["input_ids"] == ids)


@pytest.mark.parametrize("rule", ["eq4", "gcg", "search"])
@pytest.mark.parametrize("architecture", ["gpt2", "mistral"])
def test_round_trip_prompts_survive_at_every_step(tiny_lm: TinyLM, architecture: str, rule: str) -> None:
    lm = tiny_lm(architecture)
    settings = {"length": 4, "restarts": 2, "steps": 6, "candidates": 8, "round_trip": True, "policy": "printable"}
    run = tune(lm, entropy(bits=3).build(lm), TuneConfig(method="hard", hard_rule=rule, **settings))  # pyright: ignore
    for _ in run:
        ids = run.best_prompt_ids()
        assert ids is not None
        assert survives(lm, [ids], len(lm.bos_ids)) == [True]
    assert run.result.kl_reencoded_nats == pytest.approx(run.result.kl_nats, abs=1e-4)


def test_search_goes_elsewhere_when_everything_near_has_been_scored(lm: LanguageModel, target: Target) -> None:
    """Two allowed tokens at two places are four prompts: all are found, none is scored twice, and the run goes on."""
    allow = tuple(allowed_ids(lm, "words").tolist()[:2])
    config = TuneConfig(
        method="hard", hard_rule="search", length=2, restarts=1, steps=30, patience=None, allow=allow, candidates=8
    )
    result = tune(lm, target, config).result
    prefix = lm.bos_ids
    four = torch.tensor([[*prefix, first, second] for first in allow for second in allow])
    losses = NextTokenObjective.score(lm, lm.embed(four), [NextTokenObjective(lm, target)] * 4).loss
    assert result.kl_nats == pytest.approx(float(losses.min()), abs=1e-4)
    assert result.evaluations <= 30 + 4
    assert result.steps == 30
