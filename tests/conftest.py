"""Fixtures that every test file may use."""

from __future__ import annotations

import pytest

from dpexplore.models import DEFAULT_MODEL, LanguageModel, load_model


@pytest.fixture(scope="session")
def default_lm() -> LanguageModel:
    """The real SmolLM2-135M-Instruct on the CPU in float32; fetched on the first run ever."""
    return load_model(DEFAULT_MODEL, device="cpu")
