"""The best prompt of one token, against one plain pass for each token of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import dpexplore as dp
from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning import single_token
from dpexplore.tuning.init import lookup
from dpexplore.tuning.single_token import is_known, score_tokens

TinyLm = Callable[[str], LanguageModel]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("DPEXPLORE_CACHE", str(tmp_path_factory.mktemp("cache")))
    lookup._known.clear()


def by_plain_passes(lm: LanguageModel, target: Target) -> torch.Tensor:
    """KL(p‖q) of every prompt of one token, `(vocab,)`, one prompt at a time."""
    kls = []
    for index in range(lm.vocab_size):
        ids = torch.tensor([[*lm.bos_ids, index]])
        log_q = lm.model(input_ids=ids).logits[0, -1].double().log_softmax(-1)
        p = target.probs.double()
        kls.append(torch.where(p > 0, p * (p.log() - log_q), 0.0).sum())
    return torch.stack(kls)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gemma2"])
def test_no_token_comes_closer(architecture: str, tiny_lm: TinyLm, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm(architecture)
    monkeypatch.setattr(lookup, "BATCH", 40)
    target = dp.entropy(bits=3, seed=0).build(lm)
    found = dp.best_single_token(lm, target)
    kls = by_plain_passes(lm, target)
    assert found.kl_nats == pytest.approx(float(kls.min()), abs=1e-5)
    assert float(kls[found.token_id]) == pytest.approx(found.kl_nats, abs=1e-5)
    assert found.prompt_ids == [*lm.bos_ids, found.token_id]
    if architecture != "gemma2":  # its soft-capping leaves no affine head
        assert found.kl_nats >= dp.softmax_floor(lm, target, ladder=False).lower_bound_nats


def test_it_is_what_a_hard_run_of_one_token_can_reach(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("llama")
    target = dp.entropy(bits=3, seed=0).build(lm)
    run = dp.tune(lm, target, dp.TuneConfig(method="hard", length=1, restarts=2, steps=5))
    list(run)
    best = dp.best_single_token(lm, target)
    assert run.result.kl_nats >= best.kl_nats - 1e-5
    assert run.result.prompt_ids is not None
    assert len(run.result.prompt_ids) == len(best.prompt_ids)


def test_it_is_priced_after_one_batch_and_free_the_second_time(
    tiny_lm: TinyLm, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("llama")
    assert not is_known(lm)
    monkeypatch.setattr(single_token, "BATCH", 40)
    monkeypatch.setattr(lookup.measure_more, "__defaults__", (40,))
    told = list(score_tokens(lm))
    assert told[0].share == pytest.approx(40 / lm.vocab_size)
    assert told[0].seconds_left > 0
    assert [now.share for now in told] == sorted(now.share for now in told)
    assert is_known(lm)
    assert list(score_tokens(lm)) == []
    lookup._known.clear()  # another process
    assert is_known(lm)


def test_a_target_of_another_vocabulary_is_refused_before_anything_is_scored(
    tiny_lm: TinyLm, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("llama")
    target = dp.entropy(bits=2, seed=0).build(tiny_lm("gpt2"))
    if target.vocab_size == lm.vocab_size:
        target = Target(torch.full((lm.vocab_size + 1,), 1 / (lm.vocab_size + 1)), "")
    monkeypatch.setattr(single_token, "measure_more", lambda *_: pytest.fail("scored"))
    with pytest.raises(dp.InputError, match="own vocabulary"):
        dp.best_single_token(lm, target)
