"""A model that is sure of something."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from dpexplore.models import LanguageModel


@pytest.fixture(scope="module")
def decided(tiny_lm: Callable[[str], LanguageModel]) -> LanguageModel:
    """A tiny model with steeper logits, so that it can be sure of something."""
    lm = tiny_lm("gpt2")
    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        dict(model.named_parameters())["transformer.ln_f.weight"].mul_(3)
    return LanguageModel("decided", model, lm.tokenizer, "decided")
