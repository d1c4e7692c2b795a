"""The model picker, and markup in which no token is HTML."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.model_pool import ModelPool
from dpexplore.ui.components.markup import probability, progress_bar, quantity, token
from dpexplore.ui.components.model_panel import again_in, in_precision, use_model, why_html
from dpexplore.ui.components.result_view import result_html
from dpexplore.ui.components.settings import (
    make_config,
)
from dpexplore.ui.components.tune_panel import start_run
from tests.ui.shared import (
    HARD,
)


def test_loading_reports_then_switches(app: AppContext) -> None:
    *_, (strip, name, picker) = use_model(app, "another", "tiny")
    assert (strip, name) == ("", "another")
    assert "ready" in picker["label"]


@pytest.mark.parametrize(
    ("name", "words"), [("missing", "There is no model"), ("broken", "could not be loaded"), (" ", "Type a Hub id")]
)
def test_a_model_that_fails_leaves_the_old_one(app: AppContext, name: str, words: str) -> None:
    *_, (strip, wanted, picker) = use_model(app, name, "tiny")
    assert words in strip
    assert "secret" not in strip
    assert len(wanted) == len(picker) == 1
    assert app.pool.is_loaded("tiny")


def test_a_precision_is_part_of_the_name_that_is_loaded(app: AppContext) -> None:
    assert in_precision(" gpt2 ", "bfloat16") == "gpt2@bfloat16"
    assert in_precision("gpt2@float32", "automatic") == "gpt2@float32"
    assert in_precision("", "float32") == ""
    assert again_in("gpt2@bfloat16", "automatic") == "gpt2"
    assert again_in("gpt2", "float32") == "gpt2@float32"
    assert app.pool.get("tiny").lm.dtype_reason in why_html(app, "tiny")
    assert why_html(app, "not loaded") == ""


def test_a_model_is_loaded_once_for_all_who_wait(tiny_lm: Callable[[str], LanguageModel]) -> None:
    calls = []
    pool = ModelPool(lambda name, progress: calls.append(name) or tiny_lm("llama"))
    waiting = [pool.start_loading("tiny") for _ in range(5)]
    for loading in waiting:
        assert loading.done.wait(30)
    pool.load("tiny")
    assert calls == ["tiny"]
    pool.close()
    with pytest.raises(InputError, match="not loaded"):
        pool.get("tiny")


# Markup.


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "{{x}} ${y}", "'\"><img src=x onerror=alert(1)>", "\n\t"]
)
def test_tokens_are_escaped(text: str) -> None:
    html = token(text)
    assert "<script" not in html
    assert "<img" not in html
    assert "\n" not in html


def test_a_prompt_full_of_markup_is_escaped_everywhere(app: AppContext) -> None:
    evil = "'\"><img src=x onerror=alert(1)>"
    lm = SimpleNamespace(token_text=lambda _: evil)
    entry = app.pool.get("tiny")
    *_, final = start_run(app, "s", "tiny", "entropy(bits=2)", make_config(HARD))
    assert final.result is not None
    object.__setattr__(final.result, "prompt_text", evil)
    target = app.target("tiny", "entropy(bits=2)")
    assert "<img" not in result_html(lm, target, final.result)  # type: ignore[arg-type]
    assert entry.lm.vocab_size == target.vocab_size


def test_numbers_show_their_units() -> None:
    assert "1.79 nats" in quantity(1.79, "kl")
    assert "2.58 bits" in quantity(1.79, "kl")
    assert quantity(None, "kl") == quantity(float("nan"), "kl")
    assert [probability(p) for p in (1.0, 0.5, 0.01959, 0.0197, 1e-7, 0.0)] == [
        "1.000",
        "0.500",
        "0.01959",
        "0.0197",
        "1.0e-7",
        "0",
    ]
    assert "aria-valuenow='43'" in progress_bar("Fetching", 0.43)
