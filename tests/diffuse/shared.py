"""What the tests of targets over strings share."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dpexplore.models import LanguageModel
from dpexplore.targets import StringTarget, strings

TinyLm = Callable[[str], LanguageModel]
ASKED = strings({"sea": 1, "shore": 2, "she sells": 1}, request="I love the")


def recomputed(lm: LanguageModel, target: StringTarget, prompt: list[int]) -> list[float]:
    """log q of every outcome by one plain pass for each, as anybody would compute it."""
    found = []
    for i in range(len(target.outcomes)):
        before, outcome = target.tree.sequence(0, i)
        whole = torch.tensor([prompt + before + outcome])
        with torch.no_grad():
            log_q = lm.model(input_ids=whole, use_cache=False).logits[0].double().log_softmax(-1)
        start = len(prompt) + len(before)
        found.append(sum(float(log_q[start + j - 1, token]) for j, token in enumerate(outcome)))
    return found
