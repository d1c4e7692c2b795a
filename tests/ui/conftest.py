"""The page's state without a server, on a tiny random model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.model_pool import ModelPool


@pytest.fixture(scope="module")
def app(tiny_lm: Callable[[str], LanguageModel]) -> Iterator[AppContext]:
    lm = tiny_lm("llama")

    def loader(name: str, progress: Callable[[str, float | None], None]) -> LanguageModel:
        if name == "missing":
            raise InputError("There is no model 'missing'.")
        if name == "broken":
            raise RuntimeError("secret /path/of/the/server")
        progress("Reading the weights", 0.5)
        return lm

    context = AppContext(pool=ModelPool(loader), model="tiny", grace_seconds=0.2)
    context.pool.load("tiny")
    yield context
    context.close()
