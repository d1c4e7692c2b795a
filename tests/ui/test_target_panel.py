"""The target designer: text, tabs and controls follow each other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from dpexplore.serving.app_context import AppContext
from dpexplore.targets import pos_left_out
from dpexplore.tuning import TuneConfig
from dpexplore.ui.components.preview import pos_bars
from dpexplore.ui.components.recipes import entropy_recipe
from dpexplore.ui.components.settings import (
    control_values,
)
from dpexplore.ui.components.target_panel import (
    add_transform,
    latest_changes,
    nudge,
    open_tab,
    read_recipe,
    set_base,
    set_stack,
    set_tab,
)
from dpexplore.ui.components.tune_panel import check_settings
from dpexplore.wanted import NotWanted, check_wanted
from tests.ui.shared import (
    lines,
    tab_of,
)


def test_the_parts_of_speech_say_how_many_tokens_they_leave_out(app: AppContext) -> None:
    pieces = pos_left_out(app.pool.get("tiny").lm)["no space in front"]
    assert pieces >= 52  # each letter is a token
    assert f"{pieces:,} with no space in front" in pos_bars(app, "tiny", "NOUN", "strict")


def test_a_target_that_the_hand_has_left_is_given_up(app: AppContext) -> None:
    """Its work ends when the session asks for another one; another session's does not."""
    begun, ended = threading.Event(), threading.Event()

    def endless() -> dict[str, Any]:
        begun.set()
        try:
            while not ended.wait(0.005):
                check_wanted()
        except NotWanted:
            ended.set()
            raise
        return {}

    def first() -> dict[str, Any]:
        with suppress(NotWanted):
            endless()
        return {"facts": "old"}

    with ThreadPoolExecutor(1) as pool:
        left = pool.submit(latest_changes, app, "hand", first)
        assert begun.wait(30)
        assert latest_changes(app, "another", lambda: {"facts": "hers"}) == {"facts": "hers"}
        assert not ended.is_set()
        assert latest_changes(app, "hand", lambda: {"facts": "new"}) == {"facts": "new"}
        assert ended.wait(30)
        assert left.result(30) == {}


def test_a_control_writes_the_recipe_and_the_preview(app: AppContext) -> None:
    changes = set_base(app, entropy_recipe, "tiny", "entropy(bits=3).top_k(9)", 2.5, 4, "")
    assert changes["recipe"] == "entropy(bits=2.5, seed=4).top_k(9)"
    assert lines(changes["chart"])[0]["ranks"][0] == 1
    assert "dpx-token" in changes["tokens"]
    assert "bits" in changes["facts"]
    assert changes["problem"] == ""


@pytest.mark.parametrize(
    ("key", "values", "recipe", "held", "said"),
    [
        (
            "entropy",
            (99, 0, "", 0.2),
            "entropy(bits=8.4, seed=0)",
            {"bits": 8.4},
            "from 0 to 8.4: 99",
        ),
        ("entropy", (-5, 0, "", 0.2), "entropy(bits=0, seed=0)", {"bits": 0}, "-5 became 0"),
        ("outliers", (3, 500, 0, [], ""), None, {"count": 100}, "Outlier tokens goes from 1 to 100: 500 became 100"),
        ("hand", ("#70 1", 2.5), None, {"rest": 0.99}, "2.5 became 0.99"),
        ("entropy", (None, 0, "", 0.2), None, {}, "Entropy is empty"),
        ("entropy", (3, 1.5, "", 0.2), None, {}, "`Seed` is 1.5; use a whole number 0 or more"),
        ("pos", ("NOUN", 0, 0, "strict"), None, {}, "`Tokens` is 0; use a whole number 1 or more"),
    ],
)
def test_a_number_out_of_range_is_put_to_the_end_in_words_or_refused_by_the_name_of_its_field(
    app: AppContext, key: str, values: tuple[Any, ...], recipe: str | None, held: dict[str, float], said: str
) -> None:
    changes = set_tab(app, tab_of(key), "tiny", "entropy(bits=3, seed=0)", *values)
    assert said in changes["problem"]
    assert {name: changes[name] for name in held} == held
    assert recipe is None or changes["recipe"] == recipe


def test_settings_are_judged_as_they_are_typed_and_a_mended_one_is_ready_again(app: AppContext) -> None:
    values = control_values(TuneConfig())
    for change, said in (({"restarts": 0}, "`restarts` is 0"), ({"seed": 1.5}, "`seed` is 1.5"), ({}, "Ready")):
        assert said in (check_settings(app, "typing", "tiny", values | change) or "")
    assert check_settings(app, "typing", "tiny", values) is None  # said before
    assert "prepared" in (check_settings(app, "early", "not loaded", values) or "")


def test_the_text_sets_tab_and_controls(app: AppContext) -> None:
    changes = read_recipe(app, "tiny", "entropy(bits=2, seed=9).shuffle(seed=1)")
    assert changes["tabs"].selected == "entropy"
    assert changes["stack"]["value"] == ["shuffle(seed=1)"]
    assert (changes["bits"], changes["seed"]) == (2.0, 9)
    assert "gradient" in changes["method"]
    assert "text" not in changes


def test_an_unreadable_text_leaves_the_panels_and_says_where(app: AppContext) -> None:
    changes = read_recipe(app, "tiny", "entropy(bits=2, sed=9)")
    assert list(changes) == ["problem"]
    assert "column" in changes["problem"]


def test_transforms_are_put_on_and_taken_off(app: AppContext) -> None:
    changes = add_transform(app, "tiny", "entropy(bits=3, seed=0)", "shuffle", 4)
    assert changes["recipe"] == "entropy(bits=3, seed=0).shuffle(seed=4)"
    assert changes["stack"]["value"] == ["shuffle(seed=4)"]
    changes = set_stack(app, "tiny", changes["recipe"], [])
    assert changes["recipe"] == "entropy(bits=3, seed=0)"
    assert changes["stack"]["visible"] is False


def test_a_dragged_bar_writes_its_line_and_the_recipe(app: AppContext) -> None:
    changes = nudge(app, "tiny", "", "a 0.5\nb 0.5", 0.0, {"index": 1, "weight": 0.25})
    assert changes["lines"] == '"a" 0.5\n"b" 0.25'
    assert changes["recipe"] == 'tokens({"a": 0.5, "b": 0.25})'
    assert list(nudge(app, "tiny", "", "a 0.5", 0.0, {"index": 7})) == ["problem"]


def test_a_tab_that_opens_because_the_text_says_so_writes_nothing(app: AppContext) -> None:
    tab = tab_of("entropy")
    assert open_tab(app, tab, "tiny", "entropy(bits=3.25, seed=0).top_k(20)", 7, 0, "") == {}
    changes = open_tab(app, tab_of("prompt"), "tiny", "entropy(bits=3)", "I love", "", ["start token"])
    assert changes["recipe"] == 'capture("I love")'
