"""The second trained family: Gemma 3 270M, whose blocks have a norm on both sides."""

from __future__ import annotations

import torch

from dpexplore.models import LanguageModel
from dpexplore.models.default_model import GEMMA
from dpexplore.targets import entropy
from dpexplore.tuning import TuneConfig, tune


def test_is_gemma_and_follows_a_long_token(gemma_lm: LanguageModel) -> None:
    assert (gemma_lm.vocab_size, gemma_lm.hidden_size) == (262_144, 640)
    assert gemma_lm.identity == GEMMA.identity
    ids = gemma_lm.encode("The capital of France is")
    likeliest = gemma_lm.log_probs_of_ids(torch.tensor([ids]))[0].topk(3).indices.tolist()
    assert " Paris" in [gemma_lm.token_text(i) for i in likeliest]  # a base model may go on otherwise
    result = tune(gemma_lm, entropy(bits=7, seed=0).build(gemma_lm), TuneConfig.preset("direct")).result
    assert result.bounds.head_optimum_nats is not None
    assert result.bounds.floor_nats is not None
    assert result.bounds.floor_nats <= result.kl_nats <= result.bounds.head_optimum_nats + 2e-3
