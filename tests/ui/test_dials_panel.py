"""The page's dials: a curve that grows, a second model's beside it, and a sentence for every number of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from dpexplore.floor.dials import Dial, dials_of
from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.journal import Journal
from dpexplore.serving.model_pool import ModelPool
from dpexplore.ui.components.dials_panel import choose_tokens, dial_html, draw_dials


@pytest.fixture(scope="module")
def app(tiny_lm: Callable[[str], LanguageModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppContext]:
    pool = ModelPool(lambda name, progress: tiny_lm(name))
    context = AppContext(pool=pool, model="llama", journal=Journal(tmp_path_factory.mktemp("runs")))
    pool.load("llama")
    pool.load("gpt2")
    yield context
    context.close()


def test_a_curve_grows_and_another_models_stands_beside_it(
    app: AppContext, tiny_lm: Callable[[str], LanguageModel]
) -> None:
    views = list(draw_dials(app, "llama", 6.0, {}))
    dials = dials_of(tiny_lm("llama"))
    pictures = [json.loads(view[0]) for view in views if isinstance(view[0], str) and view[0]]
    assert len(pictures) == len(dials.sizes()) + 1  # and once more with the chosen point
    line = pictures[-1]["data"][1]
    assert line["name"] == f"llama: {dials.dials} dials"
    assert pictures[-1]["data"][-1]["name"] == "the tokens chosen"
    assert "data-tokens='64'" in views[-1][1]
    *_, both = draw_dials(app, "gpt2", 6.0, views[-1][2])
    assert list(both[2]) == ["llama", "gpt2"]
    assert [trace["name"].split(":")[0] for trace in json.loads(both[0])["data"][1:3]] == ["llama", "gpt2"]


def test_the_slider_asks_for_one_floor_and_draws_nothing_that_was_not_drawn(app: AppContext) -> None:
    picture, told = choose_tokens(app, "llama", 3.5, {})
    assert "data-tokens='11'" in told
    assert not isinstance(picture, str)
    assert "as soon as the model is ready" in choose_tokens(app, "", 3.5, {})[1]
    *_, refused = draw_dials(app, "", 3.5, {})
    assert "as soon as the model is ready" in refused[1]


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (Dial(64, 0.0, 1e-4, 0.5), "These odds can be said"),
        (Dial(64, 0.2, 0.2, 0.5), "dials enough, but the final norm"),
        (Dial(2048, 0.285, 0.285, 0.5), "No prompt comes closer than"),
    ],
)
def test_each_number_of_tokens_has_its_sentence(here: Dial, said: str) -> None:
    assert said in dial_html(576, here)
