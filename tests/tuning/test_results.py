"""Results: recomputed with plain transformers, read as tokens, and written down."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpexplore.models import LanguageModel
from dpexplore.targets import Target, entropy
from dpexplore.tuning import Slots, TuneConfig, tune
from dpexplore.tuning.record.capsule import decode_array
from tests.tuning.shared import TinyLM, kl_by_hand


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3", "opt"])
def test_hard_result_recomputes_with_plain_transformers(
    tiny_lm: TinyLM, tiny_folders: Callable[[str], Path], architecture: str
) -> None:
    lm = tiny_lm(architecture)
    target = entropy(bits=5, seed=3).build(lm)
    result = tune(lm, target, TuneConfig(method="hard", restarts=2, steps=15)).result
    plain = AutoModelForCausalLM.from_pretrained(tiny_folders(architecture), dtype=torch.float32)

    def recompute(ids: list[int]) -> float:
        with torch.no_grad():
            return kl_by_hand(target.probs, plain(torch.tensor([ids])).logits[0, -1])

    assert result.prompt_ids is not None
    assert result.prompt_text is not None
    assert result.prompt_ids[: len(lm.bos_ids)] == lm.bos_ids
    assert result.kl_nats == pytest.approx(recompute(result.prompt_ids), abs=1e-3)
    assert result.kl_reencoded_nats == pytest.approx(recompute(lm.tokenizer(result.prompt_text).input_ids), abs=1e-3)
    assert float(result.log_probs.exp().sum()) == pytest.approx(1, abs=1e-4)


def test_soft_result_reads_as_nearest_tokens(lm: LanguageModel, target: Target) -> None:
    config = TuneConfig(method="hybrid", slots='"The sea" soft*2 hard*1', restarts=1, steps=3)
    result = tune(lm, target, config).result
    assert result.prompt_ids is None
    assert result.prompt_text is None
    table = lm.embed(lm.ordinary_ids[None])[0]
    soft_at = [i for i, near in enumerate(result.nearest) if near is not None]
    assert soft_at == [len(result.nearest) - 3, len(result.nearest) - 2]
    for position in soft_at:
        near = result.nearest[position]
        assert near is not None
        cosines = torch.nn.functional.cosine_similarity(table, result.prompt_embeds[position][None])
        assert near[0].cosine == pytest.approx(float(cosines.max()), abs=1e-5)
        assert near[0].token_id == int(lm.ordinary_ids[cosines.argmax()])
        assert [token.cosine for token in near] == sorted((token.cosine for token in near), reverse=True)


def test_capsule_is_json_and_holds_the_prompt(lm: LanguageModel, target: Target) -> None:
    result = tune(lm, target, TuneConfig(restarts=2, steps=4)).result
    capsule = json.loads(json.dumps(result.capsule, allow_nan=False))
    assert capsule["target"]["recipe"] == target.recipe
    assert capsule["model"]["identity"] == lm.identity
    assert TuneConfig(**capsule["config"]).parsed_slots() == Slots.of("soft", 5)
    assert len(capsule["history"]["kl_nats"]) == 4
    embeds = decode_array(capsule["result"]["prompt_embeds"])
    assert torch.equal(embeds, result.prompt_embeds)
    logits = lm.model(inputs_embeds=embeds[None]).logits[0, -1]
    assert capsule["result"]["kl_nats"] == pytest.approx(kl_by_hand(target.probs, logits), abs=1e-4)
    assert len(base64.b64decode(capsule["result"]["prompt_embeds"]["base64"])) == embeds.numel() * 4


def test_best_so_far_can_be_watched(lm: LanguageModel, target: Target) -> None:
    run = tune(lm, target, TuneConfig(method="hard", restarts=2, steps=5))
    assert run.best_log_probs() is None
    for step in run:
        log_q, ids = run.best_log_probs(), run.best_prompt_ids()
        assert log_q is not None
        assert ids is not None
        assert float(-(target.probs * log_q).sum()) - target.entropy_nats == pytest.approx(step.best_kl_nats, abs=1e-4)
        assert torch.allclose(lm.log_probs_of_ids(torch.tensor([ids]))[0], log_q, atol=1e-4)


def test_time_is_recorded(lm: LanguageModel, target: Target) -> None:
    before = time.monotonic()
    result = tune(lm, target, TuneConfig(restarts=1, steps=3)).result
    assert 0 < result.seconds <= time.monotonic() - before
