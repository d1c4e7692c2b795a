"""The disc and the triangle, as the page is answered."""

from __future__ import annotations

import json

from dpexplore.serving.app_context import AppContext
from dpexplore.ui.components.disc_panel import NOTHING, look
from dpexplore.ui.components.settings import make_config
from dpexplore.ui.components.tune_panel import start_run
from dpexplore.ui.components.words_panel import show_words, words_html
from tests.ui.shared import SOFT, floors_of

RECIPE = "entropy(bits=5, seed=0)"


def test_the_disc_waits_for_the_floor_and_then_follows_the_sessions_run(app: AppContext) -> None:
    floors_of(app, RECIPE, "disc")
    told, picture, shown = look(app, "disc", "tiny", RECIPE, NOTHING)
    assert told == ""
    assert json.loads(picture)["walk"] == []
    assert shown == ("tiny", RECIPE, 0)
    assert not any(isinstance(value, str) for value in look(app, "disc", "tiny", RECIPE, shown)), "nothing is new"
    *_, last = start_run(app, "disc", "tiny", RECIPE, make_config(SOFT))
    assert last.frames is not None
    _, picture, now = look(app, "disc", "tiny", RECIPE, shown)
    assert [point["s"] for point in json.loads(picture)["walk"]] == last.frames.steps
    assert now == ("tiny", RECIPE, last.frames.steps[-1])
    _, others, _ = look(app, "somebody else", "tiny", RECIPE, NOTHING)
    assert json.loads(others)["walk"] == []


def test_the_disc_says_why_there_is_none(app: AppContext) -> None:
    told, picture, shown = look(app, "none", "tiny", "entropy(bits=", NOTHING)
    assert "is-error" in told
    assert (picture, shown) == ("", NOTHING)
    assert "as soon as the model" in look(app, "none", "", RECIPE, NOTHING)[0]


def test_the_corners_of_the_triangle_stay_while_the_target_moves(app: AppContext) -> None:
    picture, told, ids = show_words(app, "words", "tiny", RECIPE, "", [])
    found = json.loads(picture)
    assert found["ids"] == ids
    assert "data-can" in told
    again = show_words(app, "words", "tiny", RECIPE, "", ids[::-1])
    assert again[2] == ids[::-1]
    assert "give three" in show_words(app, "words", "tiny", RECIPE, "one", ids)[1]
    for power, said in ((12.0, "10<sup>12</sup>"), (1e-4, "equally often"), (0.5, "3.16 to 1")):
        assert said in words_html({**found, "narrowest": {"pair": [0, 1], "log10_odds": power}})
