"""Fixtures that every test file may use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from dpexplore.models import DEFAULT_MODEL, LanguageModel, load_model
from dpexplore.targets import Target, entropy
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="session")
def default_lm() -> LanguageModel:
    """The real SmolLM2-135M-Instruct on the CPU in float32; fetched on the first run ever."""
    return load_model(DEFAULT_MODEL, device="cpu")


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Architecture (of `tiny_models.ARCHITECTURES`) -> folder of its tiny random model. Do not write there."""
    return cache(lambda architecture: save_tiny_model(architecture, tmp_path_factory.mktemp(architecture)))


@pytest.fixture(scope="session")
def tiny_lm(tiny_folders: Callable[[str], Path]) -> Callable[[str], LanguageModel]:
    """Architecture -> its tiny random model, loaded from its folder as any other, on the CPU in float32."""
    return cache(lambda architecture: load_model(str(tiny_folders(architecture)), device="cpu"))


@pytest.fixture(scope="session")
def lm(tiny_lm: Callable[[str], LanguageModel]) -> LanguageModel:
    """The tiny model that tuning is tested on."""
    return tiny_lm("llama")


@pytest.fixture(scope="session")
def target(lm: LanguageModel) -> Target:
    """A vanilla target of 3 bits for that model."""
    return entropy(bits=3, seed=1).build(lm)
