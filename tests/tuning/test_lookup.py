"""Tokens looked up for a prompt's end: the ranking against the model itself, and runs that begin with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import dpexplore as dp
from dpexplore.models import LanguageModel
from dpexplore.tuning.engine.preparation import LAST_TOKENS
from dpexplore.tuning.init import lookup
from dpexplore.tuning.init.lookup import closest_tokens, last_token_context

TinyLm = Callable[[str], LanguageModel]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("DPEXPLORE_CACHE", str(tmp_path_factory.mktemp("cache")))


def losses_of(lm: LanguageModel, probs: torch.Tensor) -> torch.Tensor:
    """KL(p‖q) up to H(p) after each ordinary token behind what a table puts before it, by plain passes."""
    first = (lm.bos_ids or lm.encode("\n", bos=False))[-1]
    prompts = torch.stack([torch.full_like(lm.ordinary_ids, first), lm.ordinary_ids], 1)
    return -(lm.log_probs_of_ids(prompts) @ probs.float())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "opt"])
def test_the_ranking_is_the_models_own(architecture: str, tiny_lm: TinyLm) -> None:
    lm = tiny_lm(architecture)
    probs = torch.randn(lm.vocab_size, generator=torch.Generator().manual_seed(3)).mul(2).softmax(0)
    found = closest_tokens(lm, probs)
    assert found is not None
    assert sorted(found.tolist()) == lm.ordinary_ids.tolist()
    by_id = torch.full((lm.vocab_size,), torch.inf)
    by_id[lm.ordinary_ids] = losses_of(lm, probs)
    assert (by_id[found].diff() > -5e-3).all()  # states are kept in float16


def test_a_table_is_kept_and_read_again(tiny_lm: TinyLm, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    probs = torch.full((lm.vocab_size,), 1 / lm.vocab_size)
    lookup._known.clear()
    first = closest_tokens(lm, probs)
    lookup._known.clear()
    monkeypatch.setattr(lookup, "_measure", lambda *_: pytest.fail("measured again"))
    second = closest_tokens(lm, probs)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


def test_a_damaged_table_is_measured_again(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("llama")
    lookup._known.clear()
    file = lookup._file(lm, last_token_context(lm))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"no table")
    assert closest_tokens(lm, torch.full((lm.vocab_size,), 1 / lm.vocab_size)) is not None


def test_a_model_that_bends_its_logits_has_none(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("gemma2")
    lookup._known.clear()
    assert closest_tokens(lm, torch.full((lm.vocab_size,), 1 / lm.vocab_size)) is None
    target = dp.entropy(bits=2, seed=0).build(lm)
    run = dp.tune(lm, target, dp.TuneConfig(method="hard", init="lookup", hard_rule="gcg", steps=1, restarts=1))
    list(run)
    assert run.result.prompt_ids is not None


def test_runs_begin_with_allowed_looked_up_tokens(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("llama")
    target = dp.entropy(bits=2, seed=0).build(lm)
    shared = {"hard_rule": "search", "init": "lookup", "restarts": 2, "steps": 2, "screen": 40}
    run = dp.tune(lm, target, dp.TuneConfig(method="hard", policy="ascii", **shared))
    list(run.preparing())
    assert run.last_tokens is not None
    assert 0 < len(run.last_tokens) <= LAST_TOKENS
    assert torch.isin(run.last_tokens, run.layout.allowed).all()
    assert int(run.beginning(0)[0][-1]) == int(run.last_tokens[0])
    list(run)
    assert torch.isfinite(torch.tensor(run.result.kl_nats))
    soft = dp.tune(lm, target, dp.TuneConfig(method="soft", init="lookup", restarts=1, steps=1))
    assert soft.last_tokens is None
    fixed = dp.TuneConfig(method="hybrid", slots='hard*2 "q"', hard_rule="search", init="lookup", restarts=1, steps=1)
    assert dp.tune(lm, target, fixed).last_tokens is None
