"""`LanguageModel` against plain transformers, on tiny random models of every architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpexplore.models import LanguageModel
from tests.tiny_models import ARCHITECTURES

TinyLm = Callable[[str], LanguageModel]
TinyFolders = Callable[[str], Path]


def random_ids(lm: LanguageModel, rows: int, pos: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, lm.vocab_size, (rows, pos), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probs_equal_plain_transformers(architecture: str, tiny_lm: TinyLm, tiny_folders: TinyFolders) -> None:
    lm = tiny_lm(architecture)
    plain = AutoModelForCausalLM.from_pretrained(tiny_folders(architecture), dtype=torch.float32)
    plain.eval()
    for pos in (1, 2, 7):
        ids = random_ids(lm, rows=3, pos=pos)
        with torch.no_grad():
            expected = plain(input_ids=ids).logits[:, -1].double().log_softmax(dim=-1)
        assert lm.log_probs_of_ids(ids).dtype == torch.float32
        torch.testing.assert_close(lm.log_probs_of_ids(ids).double(), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(lm.log_probs(lm.embed(ids)).double(), expected, atol=1e-4, rtol=0)
