"""Fixtures that every test file may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from playwright.sync_api import Browser, expect, sync_playwright

from dpexplore.errors import InputError
from dpexplore.models import DEFAULT_MODEL, LanguageModel, load_model
from dpexplore.models.default_model import GEMMA, SMOLLM2, cache_folder, prepare_default_model
from dpexplore.targets import Target, entropy
from tests.browser.driver import PATIENCE, find_chromium
from tests.tiny_models import save_tiny_model

settings.register_profile("no speed asked for", deadline=None)  # the machine may be busy
settings.load_profile("no speed asked for")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever tests and the servers that they start keep goes into a cache folder of their own.

    The default model alone is the user's; it is fetched on the first run ever.
    """
    with suppress(InputError):  # said again by each test that needs the model
        prepare_default_model(lambda _text, _fraction: None)
    users, own = cache_folder(), tmp_path_factory.mktemp("cache")
    for name in (DEFAULT_MODEL, SMOLLM2.gguf, GEMMA.name):
        if (users / name).exists():
            (own / name).symlink_to(users / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPEXPLORE_CACHE", str(own))
        yield


@pytest.fixture(scope="session")
def default_lm() -> LanguageModel:
    """The real SmolLM2-135M-Instruct on the CPU in float32."""
    return load_model(DEFAULT_MODEL, device="cpu")


@pytest.fixture(scope="session")
def gemma_lm() -> LanguageModel:
    """The real Gemma 3 270M on the CPU in float32, where its terms were accepted and it is in the cache already."""
    if not GEMMA.folder.exists():
        pytest.skip(
            f"{GEMMA.name} is not in the cache; `dpexplore floor --model {GEMMA.name} --accept-terms` puts it there"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPEXPLORE_ACCEPT_TERMS", "gemma")
        return load_model(GEMMA.name, device="cpu")


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; the test is skipped, or fails where one is required, if there is none."""
    path = find_chromium()
    if path is None:
        reason = "no Chromium was found; install one or name it in DPEXPLORE_CHROMIUM"
        pytest.fail(reason) if os.environ.get("DPEXPLORE_REQUIRE_BROWSER") == "1" else pytest.skip(reason)
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE)
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
