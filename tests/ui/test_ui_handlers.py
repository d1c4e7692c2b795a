"""The page's handlers as plain functions and generators, on a tiny random model, without a server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpexplore.errors import InputError
from dpexplore.floor.of_model import softmax_floor
from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.floors import Floors
from dpexplore.serving.model_pool import INTERNAL_ERROR, ModelPool
from dpexplore.targets import parse_recipe
from dpexplore.tuning import PRESETS, Slot, Slots, TuneConfig
from dpexplore.tuning.continuation import continue_prompt
from dpexplore.tuning.engine import preparation
from dpexplore.tuning.knobs import KNOBS
from dpexplore.ui.api import target_endpoint, tune_endpoint
from dpexplore.ui.components.continuation import continuations
from dpexplore.ui.components.examples import EXAMPLES, settings_of
from dpexplore.ui.components.floor_panel import follow_floor
from dpexplore.ui.components.lesson_frame import Desk, Lesson
from dpexplore.ui.components.lesson_steps import LESSONS
from dpexplore.ui.components.markup import probability, progress_bar, quantity, token
from dpexplore.ui.components.model_panel import use_model
from dpexplore.ui.components.reach_panel import answer as ask_reach
from dpexplore.ui.components.reach_panel import follow_listing
from dpexplore.ui.components.recipes import entropy_recipe
from dpexplore.ui.components.result_view import result_html
from dpexplore.ui.components.settings import (
    ADVANCED,
    CUSTOM,
    PRESET_FIELDS,
    apply_preset,
    build_control,
    chips_of,
    control_values,
    from_control,
    line_of,
    make_config,
    preset_of,
    preset_values,
)
from dpexplore.ui.components.target_panel import (
    add_transform,
    nudge,
    open_tab,
    read_recipe,
    set_base,
    set_stack,
    set_tab,
    show_target,
)
from dpexplore.ui.components.target_tabs import Tab, build_tabs
from dpexplore.ui.components.tune_panel import READY, check_settings, start_run, tune
from dpexplore.ui.tabs.lessons import answer, look

SOFT = {"method": "soft", "length": 2, "restarts": 2, "steps": 6, "seed": 0}
HARD = {"method": "hard", "length": 2, "restarts": 2, "steps": 4, "seed": 0}
HYBRID = {**preset_values("fast"), "method": "hybrid", "slots": '"I love" soft*1 hard*1', "restarts": 1, "steps": 3}
LONG = {**SOFT, "restarts": 1, "steps": 100_000}
LIVE, RANKS, STATUS, RESULT, MICROSCOPE, CAPSULE, TUNE, STOP = range(8)


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


def tab_of(key: str) -> Tab:
    """A tab of the target designer."""
    with gr.Blocks(), gr.Tabs():
        return next(tab for tab in build_tabs() if tab.key == key)


def last(values: Iterator[list[Any]]) -> list[Any]:
    *_, final = values
    return final


def lines(stream: str) -> list[Any]:
    return [json.loads(line) for line in stream.splitlines()]


def test_a_soft_run_streams_and_ends_with_its_result(app: AppContext) -> None:
    views = list(tune(app, "session", "tiny", "entropy(bits=3, seed=0)", SOFT))
    streams = [view[LIVE] for view in views]
    assert all(later.startswith(earlier) for earlier, later in pairwise(streams))
    head, *rows = lines(streams[-1])
    steps = [row for row in rows if isinstance(row, list)]
    assert head["restarts"] == 2
    assert [row[0] for row in steps] == list(range(1, 7))
    assert all(len(row[1]) == 2 for row in steps)
    assert rows[-1] == {"end": "max_steps"}
    final = views[-1]
    kl = float(re.search(r"data-kl='([^']+)'", final[RESULT])[1])  # type: ignore[index]
    assert kl == pytest.approx(min(min(row[1]) for row in steps), rel=1e-3)
    assert "Soft tokens are free vectors" in final[RESULT]
    for words in ("KL(q‖p)", "Jensen-Shannon", "total variation", "top ten"):
        assert words in final[RESULT]
    assert final[TUNE]["interactive"] is True
    assert final[STOP]["interactive"] is False
    with open(final[CAPSULE]["value"], encoding="utf-8") as file:
        assert json.load(file)["result"]["kl_nats"] == pytest.approx(kl, abs=1e-5)


def test_a_hard_run_shows_ids_text_and_both_kls(app: AppContext) -> None:
    final = last(tune(app, "session", "tiny", 'capture("I love")', HARD))
    ids = json.loads(re.search(r"data-ids='([^']+)'", final[RESULT])[1])  # type: ignore[index]
    assert len(ids) == 2 + len(app.pool.get("tiny").lm.bos_ids)
    assert final[RESULT].count("class='dpx-chip'") == len(ids)
    assert "re-encoded" in final[RESULT]
    assert "data-copy" in final[RESULT]
    parts = json.loads(final[MICROSCOPE])
    told = [row["kl_nats"] for row in parts["below"] + parts["above"]]
    assert sum(told) + parts["others"]["kl_nats"] == pytest.approx(parts["kl"], abs=1e-3)
    assert {len(row["track"]) for row in parts["below"]} == {len(parts["steps"])}


def test_a_hybrid_prompt_shows_its_fixed_text_its_ids_and_its_soft_tokens(app: AppContext) -> None:
    final = last(tune(app, "session", "tiny", "entropy(bits=3)", HYBRID))
    assert "Soft tokens are free vectors" in final[RESULT]
    lm = app.pool.get("tiny").lm
    exact = re.findall(r"is-exact'>.*?<small>(\d+)</small>", final[RESULT])
    assert [int(i) for i in exact[:-1]] == lm.encode("I love", bos=False)
    assert len(exact) == len(lm.encode("I love", bos=False)) + 1


def test_stop_keeps_the_best_so_far_and_reaches_its_own_session_only(app: AppContext) -> None:
    one = tune(app, "one", "tiny", "entropy(bits=3, seed=0)", LONG)
    two = tune(app, "two", "tiny", "entropy(bits=4, seed=0)", LONG)
    for views in (one, two):
        while "data-step" not in next(views)[STATUS]:
            pass
    assert app.sessions.stop("one")
    assert "data-status='cancelled'" in last(one)[RESULT]
    assert "data-step" in next(two)[STATUS]
    assert not app.sessions.stop("one")
    assert app.sessions.stop("two")
    assert "data-status='cancelled'" in last(two)[RESULT]


def test_a_run_that_another_one_overtakes_says_no_more(app: AppContext) -> None:
    """Its last words would disable Stop while the new run moves, and stand where the new one's belong."""
    first = tune(app, "hasty", "tiny", "entropy(bits=3, seed=0)", LONG)
    while "data-step" not in next(first)[STATUS]:
        pass
    second = tune(app, "hasty", "tiny", "entropy(bits=4, seed=0)", LONG)
    while "data-step" not in next(second)[STATUS]:
        pass
    assert list(first) == []
    assert len(app.sessions.finished("hasty")) == 1  # what it found still counts
    assert app.sessions.stop("hasty")
    final = last(second)
    assert "bits=4" in final[STATUS]
    assert (final[TUNE]["interactive"], final[STOP]["interactive"]) == (True, False)


def test_a_run_that_cannot_begin_leaves_stop_to_the_one_that_moves(app: AppContext) -> None:
    moving = tune(app, "clumsy", "tiny", "entropy(bits=3, seed=0)", LONG)
    while "data-step" not in next(moving)[STATUS]:
        pass
    refused = last(tune(app, "clumsy", "tiny", "entropy(bits=99)", LONG))
    assert "99 was asked for" in refused[STATUS]
    assert (refused[TUNE]["interactive"], refused[STOP]["interactive"]) == (False, True)
    assert app.sessions.stop("clumsy")
    assert last(moving)[STOP]["interactive"] is False


def test_a_record_that_is_opened_meanwhile_is_not_written_over(app: AppContext) -> None:
    moving = tune(app, "curious", "tiny", "entropy(bits=3, seed=0)", LONG)
    while "data-step" not in next(moving)[STATUS]:
        pass
    live = app.sessions.current("curious")
    assert live is not None
    app.sessions.turn_to("curious", "run of yesterday")
    assert list(moving) == []
    assert not app.sessions.is_moving("curious")
    live.cancel()


def test_a_run_that_looks_tokens_up_says_so_and_stops(app: AppContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "measure_more", lambda *_: 0.25)  # for ever
    shown = tune(app, "looker", "tiny", "entropy(bits=3)", {**HARD, "init": "lookup"})
    assert any("Looking up tokens to begin with, once for this model: 25%" in values[STATUS] for values in shown)
    assert app.sessions.stop("looker")
    assert "stopped before its first step" in last(shown)[STATUS]


def test_a_closed_generator_stops_its_run(app: AppContext) -> None:
    config = make_config(LONG)
    views = start_run(app, "gone", "tiny", "entropy(bits=3)", config)
    next(views)
    live = app.sessions.current("gone")
    assert live is not None
    run = live.run
    views.close()  # type: ignore[attr-defined]
    assert run.wait(20) or run.finished
    while not run.finished:
        run.wait(1)
    assert run.status == "cancelled"


@pytest.mark.parametrize(
    ("recipe", "settings", "words"),
    [
        ("entropy(bits=99)", SOFT, "99 was asked for"),
        ("entropy(bit=3)", SOFT, "takes no `bit`"),
        ('file("/etc/passwd.csv")', SOFT, "uploaded files only"),
        ("entropy(bits=3)", {**SOFT, "restarts": 0}, "restarts is 0"),
        ("entropy(bits=3)", {**SOFT, "restarts": None}, "restarts is empty"),
        ("entropy(bits=3)", {**SOFT, "length": 2.5}, "length is 2.5"),
        ("entropy(bits=3)", {**SOFT, "method": "hybrid", "slots": "soft*"}, "Slots"),
        ("entropy(bits=3)", {**SOFT, "length": 50_000}, "at most"),
    ],
)
def test_what_cannot_run_is_one_sentence_and_tune_works_again(
    app: AppContext, recipe: str, settings: dict[str, Any], words: str
) -> None:
    (final,) = tune(app, "session", "tiny", recipe, settings)
    assert "is-error" in final[STATUS]
    assert words in final[STATUS]
    assert final[TUNE]["interactive"] is True


def test_no_traceback_ever_reaches_the_page(app: AppContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AppContext, "target", lambda *_: 1 / 0)
    (final,) = tune(app, "session", "tiny", "entropy(bits=3)", SOFT)
    assert INTERNAL_ERROR in final[STATUS]
    assert "Zero" not in final[STATUS]
    assert INTERNAL_ERROR in show_target(app, "tiny", "entropy(bits=3)")["problem"]


def test_presets_fill_every_setting_that_is_not_the_question() -> None:
    for name in PRESETS:
        filled = dict(zip(PRESET_FIELDS, apply_preset(name), strict=True))
        assert make_config({"method": "soft", **filled}) == TuneConfig.preset(name, method="soft")
        assert preset_of(filled) == name
        assert preset_of({**filled, "steps": filled["steps"] + 1}) == CUSTOM
    assert preset_of(control_values(TuneConfig.preset("fast", method="hard", seed=7))) == "fast"
    assert all("__type__" in value for value in apply_preset(CUSTOM))


def test_every_setting_survives_its_control() -> None:
    config = TuneConfig(
        method="hybrid",
        slots='"Q:" soft*2 hard*1',
        init="text",
        init_text="as it were",
        allow=(" yes", 42, 'a "b"'),
        forbid=(" no",),
        patience=None,
        evaluations=900,
        chat=True,
        learning_rate=1.0,
    )
    assert make_config(control_values(config)) == config
    assert make_config(control_values(TuneConfig())) == TuneConfig()


@pytest.mark.parametrize("name", ADVANCED)
def test_every_advanced_setting_says_what_it_does_and_what_the_paper_takes(name: str) -> None:
    control: Any = build_control(name)
    assert KNOBS[name].text in control.info
    assert "aper" in control.info.removeprefix(KNOBS[name].text)
    assert from_control(name, control.value) == getattr(TuneConfig(), name)


@given(
    st.lists(
        st.builds(Slot, kind=st.just("text"), text=st.text(st.characters(exclude_categories=["Cs"]), max_size=9))
        | st.builds(Slot, kind=st.sampled_from(["soft", "hard"]), count=st.integers(1, 9)),
        max_size=5,
    ).map(lambda slots: Slots((*slots, Slot("soft"))))
)
def test_slots_are_the_same_as_chips_and_as_text(slots: Slots) -> None:
    assert line_of(json.loads(chips_of(str(slots)))) == str(slots)


@pytest.mark.parametrize(
    "chips", [[], None, [{"kind": "soft"}], [{"kind": "text", "text": "a"}], [{"kind": "x"}], "no"]
)
def test_chips_that_are_no_slots_are_one_sentence(chips: Any) -> None:
    with pytest.raises(InputError):
        line_of(chips)


# The target designer.


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
        ("entropy", (3, 1.5, "", 0.2), None, {}, "Seed is 1.5; type a whole number, 0 or more"),
        ("pos", ("NOUN", 0, 0, "strict"), None, {}, "Tokens is 0; type a whole number, 1 or more"),
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
    assert "restarts is 0" in (check_settings(app, "typing", values | {"restarts": 0}) or "")
    assert "seed is 1.5" in (check_settings(app, "typing", values | {"seed": 1.5}) or "")
    assert check_settings(app, "typing", values) == READY


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


# Lessons in front of a class.


def test_a_class_sees_what_it_guessed_before_the_answer(app: AppContext) -> None:
    lesson = next(lesson for lesson in LESSONS if lesson.key == "kl")
    first = list(answer(Desk(app, "one pupil", "tiny"), lesson, lesson.options[0], 0.2))
    assert not any("data-guesses" in told for told in first)  # one guess is nobody else's business
    second = list(answer(Desk(app, "another pupil", "tiny"), lesson, lesson.options[1], 0.2))
    assert "data-guesses='2'" in second[0]  # before the answer
    assert "dpx-answer" not in second[0]
    assert "dpx-answer" in second[-1]


# What can come first.


def test_a_word_is_answered_both_with_its_space_and_without(app: AppContext) -> None:
    told = ask_reach(app, "tiny", "the")
    assert told.count("data-can='true'") == 2
    assert "certified" in told
    assert "␣" in told
    assert ask_reach(app, "tiny", " the").count("data-can='true'") == 1
    assert ask_reach(app, "tiny", "e, the").count("as its likeliest tokens") == 1
    assert "not one token" in ask_reach(app, "tiny", "no single token")
    assert "empty word" in ask_reach(app, "tiny", "e,,")
    assert "use at most" in ask_reach(app, "tiny", "e" * 2000)
    assert "Type a word" in ask_reach(app, "tiny", None)


def test_the_listing_of_a_vocabulary_is_kept(app: AppContext) -> None:
    *_, first = follow_listing(app, "tiny")
    total = app.pool.get("tiny").lm.vocab_size
    assert f"of {total:,} tokens can never come first" in first
    (again,) = follow_listing(app, "tiny")
    assert again == first


# The floor.


def floors_of(app: AppContext, recipe: str, session: str = "floor") -> list[Any]:
    *_, final = follow_floor(app, session, "tiny", recipe)
    return final


def test_the_floor_is_a_sentence_a_ladder_and_its_tokens(app: AppContext) -> None:
    told, ladder, why = floors_of(app, "entropy(bits=5, seed=0)")
    bound = float(re.search(r"data-floor='([^']+)'", told)[1])  # type: ignore[index]
    again = softmax_floor(app.pool.get("tiny").lm, app.target("tiny", "entropy(bits=5, seed=0)"))
    assert bound == pytest.approx(max(again.lower_bound_nats, 0), abs=2e-3)
    assert bound > 0.01
    assert "No prompt, of any length" in told
    assert "(certified)" in told
    assert f"{bound:.2f} nats" in told
    assert "(estimate)" in ladder
    assert why.count("<tr>") > 3


def test_a_target_that_the_model_says_itself_has_no_floor_to_speak_of(app: AppContext) -> None:
    assert "is-free" in floors_of(app, 'capture("I love")')[0]


def test_a_run_is_a_rung_of_its_own_target_and_session_only(app: AppContext) -> None:
    recipe = "entropy(bits=5, seed=0)"
    for _ in start_run(app, "climber", "tiny", recipe, make_config(HARD)):
        pass
    ladder = floors_of(app, recipe, "climber")[1]
    assert "best hard" in ladder
    assert "re-encoded" in ladder
    assert "best hard" not in floors_of(app, recipe, "somebody else")[1]
    assert "best hard" not in floors_of(app, "entropy(bits=4, seed=0)", "climber")[1]
    app.sessions.close("climber")
    assert "best hard" not in floors_of(app, recipe, "climber")[1]


def test_a_known_floor_is_a_line_across_the_run(app: AppContext) -> None:
    recipe = "entropy(bits=5, seed=0)"
    floors_of(app, recipe)
    *_, final = start_run(app, "lines", "tiny", recipe, make_config(SOFT))
    (marks,) = [row for row in lines(final.live) if isinstance(row, dict) and "floor" in row]
    assert final.result is not None
    assert 0 < marks["floor"] <= marks["head"] + 1e-6
    assert marks["floor"] <= final.result.kl_nats


def test_a_model_without_a_floor_says_why_and_tunes_all_the_same(tiny_lm: Callable[[str], LanguageModel]) -> None:
    lm = tiny_lm("gemma2")
    app = AppContext(pool=ModelPool(lambda _name, progress: lm), model="tiny")
    app.pool.load("tiny")
    told, ladder, why = floors_of(app, "entropy(bits=3)")
    assert "No floor here" in told
    assert (ladder, why) == ("", "")
    *_, final = start_run(app, "s", "tiny", "entropy(bits=3)", make_config(SOFT))
    assert final.result is not None
    app.close()


def test_a_floor_is_solved_once_and_a_failing_one_stays_on_the_server(app: AppContext) -> None:
    calls = []

    def solve(lm: LanguageModel, target: Any, start: Any) -> Any:
        calls.append(target.recipe)
        raise RuntimeError("secret")

    floors = Floors(solve)
    lm, target = app.pool.get("tiny").lm, app.target("tiny", "entropy(bits=2)")
    futures = [floors.start(lm, target) for _ in range(3)]
    assert isinstance(futures[0].exception(30), RuntimeError)
    assert floors.marks(lm, target) == {}
    assert calls == ["entropy(bits=2, seed=0)"]
    floors.close()


# Examples, lessons, continuations.


def test_examples_are_recipes_and_settings_that_run(app: AppContext) -> None:
    assert len(EXAMPLES) == 6
    for example in EXAMPLES:
        parse_recipe(example.recipe)
        assert make_config(settings_of(example)).method == example.method
    assert {example.key for example in EXAMPLES} == {"die", "love", "shuffled", "moderate", "outlier", "uniform"}


VALUES: dict[str, tuple] = {
    "softmax": (2, 1, 0),
    "model": ("I love",),
    "kl": (0.2,),
    "search": (5,),
    "head": (4,),
    "together": ("I love", 1),
    "never": ("love",),
}


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.key)
def test_a_lesson_shows_asks_and_answers_by_numbers(app: AppContext, lesson: Lesson) -> None:
    desk, values = Desk(app, "pupil", "tiny"), VALUES[lesson.key]
    assert "is-error" not in look(desk, lesson, *values)
    (first,) = answer(desk, lesson, None, *values)
    assert "Choose an answer first" in first
    verdicts = []
    for option in lesson.options:
        *_, last = answer(desk, lesson, option, *values)
        assert "dpx-answer" in last
        verdicts.append("is-right" in last)
    assert sum(verdicts) == 1


def test_what_a_lesson_cannot_show_is_one_sentence(app: AppContext) -> None:
    lesson = next(lesson for lesson in LESSONS if lesson.key == "model")
    assert "is-error" in look(Desk(app, "pupil", "tiny"), lesson, "")
    assert "There is no model" in look(Desk(app, "pupil", "missing"), lesson, "I love")


@pytest.mark.parametrize("settings", [SOFT, HARD])
def test_a_continuation_is_drawn_after_the_capsules_prompt(app: AppContext, settings: dict[str, Any]) -> None:
    final = last(tune(app, "session", "tiny", "entropy(bits=3, seed=0)", settings))
    capsule = final[CAPSULE]["value"]
    busy, shown = continuations(app, "tiny", capsule, 4, 3)
    assert "is-busy" in busy
    assert shown.count("<li>") == 3
    assert shown == [*continuations(app, "tiny", capsule, 4, 3)][-1]
    assert shown != [*continuations(app, "tiny", capsule, 4, 4)][-1]
    for path, tokens in ((None, 4), (capsule, 0), (capsule, None), (capsule, 10_000)):
        assert "is-error" in [*continuations(app, "tiny", path, tokens, 0)][-1]


def test_a_continuations_first_token_is_a_draw_from_q(app: AppContext) -> None:
    lm = app.pool.get("tiny").lm
    embeds = lm.embed(torch.tensor(lm.encode("I love")))
    drawn = torch.tensor([ids[0] for ids in continue_prompt(lm, embeds, 1, samples=20_000, seed=1) if ids])
    q = lm.log_probs_of_ids(torch.tensor([lm.encode("I love")]))[0].exp().double()
    share = torch.bincount(drawn, minlength=lm.vocab_size).double() / len(drawn)
    ordinary = q.clone()
    end = lm.tokenizer.eos_token_id
    assert isinstance(end, int)
    ordinary[end] = 0  # ends at once, and is not among the drawn
    assert float((share - ordinary / ordinary.sum()).abs().max()) < 0.02


# Models.


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


# For programs.


def test_endpoints_answer_as_the_command_line_does(app: AppContext) -> None:
    answer = target_endpoint(app, "", "entropy(bits=3, seed=0)")
    assert answer["entropy_bits"] == pytest.approx(3, abs=0.01)
    assert answer["vocab_size"] == app.pool.get("tiny").lm.vocab_size
    asked = tune_endpoint(app, "tiny", "entropy(bits=3, seed=0)", make_config({**SOFT, "steps": 5}))
    *steps, result = asyncio.run(all_of(asked))
    assert {row["event"] for row in steps} <= {"step"}
    assert result["event"] == "result"
    assert result["kl_nats"] == pytest.approx(min(result["kl_nats_per_restart"]), rel=1e-4)
    json.dumps(result)


async def all_of(rows: AsyncIterator[Any]) -> list[Any]:
    return [row async for row in rows]


def test_a_program_that_is_cancelled_while_it_waits_stops_its_run(app: AppContext) -> None:
    """As the queue of Gradio does it: the task that waits for the next row is cancelled."""

    async def ask_and_cancel() -> str:
        endless = make_config(LONG)
        rows = tune_endpoint(app, "tiny", "entropy(bits=3, seed=0)", endless)
        first = await anext(rows)
        waiting = asyncio.ensure_future(anext(rows))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return first["run"]

    run_id = asyncio.run(ask_and_cancel())
    app.sessions.settle(30)
    record = app.journal.read(run_id)
    assert record is not None
    assert app.sessions.find(run_id) is None
    assert record.capsule is not None
    assert record.capsule["result"]["status"] == "cancelled"


@pytest.mark.parametrize("recipe", ["", None, 3, ["x"]])
def test_endpoints_check_what_gradio_does_not(app: AppContext, recipe: Any) -> None:
    with pytest.raises(InputError):
        target_endpoint(app, "", recipe)


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
