"""The page's frontier: points as they come, Stop, and nothing that outlives its target."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.journal import Journal
from dpexplore.serving.model_pool import ModelPool
from dpexplore.ui.components import frontier_panel
from dpexplore.ui.components.frontier_panel import Drawing, follow_frontier, frontier_of

RECIPE = "entropy(bits=3, seed=11)"


@pytest.fixture(scope="module")
def app(tiny_lm: Callable[[str], LanguageModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppContext]:
    lm = tiny_lm("llama")
    pool = ModelPool(lambda _name, progress: lm)
    context = AppContext(pool=pool, model="tiny", journal=Journal(tmp_path_factory.mktemp("runs")))
    pool.load("tiny")
    yield context
    context.close()


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(frontier_panel, "STEPS", 4)
    monkeypatch.setattr(frontier_panel, "MULTIPLES", (1.0, 100.0))
    monkeypatch.setattr("dpexplore.experiments.frontier.cache_folder", lambda: tmp_path)


def test_points_come_one_by_one_and_end_in_a_sentence(app: AppContext) -> None:
    views = list(follow_frontier(app, Drawing(), "me", "tiny", RECIPE))
    pictures = [json.loads(view[1]) for view in views if isinstance(view[1], str) and view[1]]
    assert len(pictures) == 7  # a hard prompt, and two budgets and the direct token for two lengths
    assert [trace["name"] for trace in pictures[-1]["data"]][:2] == ["1 soft token", "5 soft tokens"]
    assert "data-done='Done'" in views[-1][0]
    told = next(view[2] for view in reversed(views) if isinstance(view[2], str))
    floor, ordinary, direct = (float(value) for value in re.findall(r"u-nats'>([0-9.]+) nats", told)[:3])
    assert floor <= direct < ordinary
    assert told.count("<tr>") == 8


def test_stop_ends_it_and_another_drawing_too(app: AppContext) -> None:
    drawing = Drawing()
    shown = []
    for view in follow_frontier(app, drawing, "me", "tiny", RECIPE):
        shown.append(view)
        if len(shown) == 4:
            drawing.stop("me")
    assert "data-done='Stopped'" in shown[-1][0]
    assert len(shown) == 5
    first = frontier_of(app, "me", "tiny", RECIPE)
    drawing.begin("me", first)
    second = frontier_of(app, "me", "tiny", RECIPE)
    drawing.begin("me", second)
    assert first.stopped
    assert not second.stopped
    drawing.end("me", first)
    drawing.stop("me")
    assert second.stopped


def test_what_has_no_frontier_is_one_sentence(app: AppContext) -> None:
    for recipe, told in (
        ('strings({" a": 1, " b": 1}, request="x")', "Strings tab"),
        ("entropy(bits=99)", "99"),
    ):
        *_, last = follow_frontier(app, Drawing(), "me", "tiny", recipe)
        assert told in last[0]
    *_, last = follow_frontier(app, Drawing(), "me", "", RECIPE)
    assert "model is ready" in last[0]
