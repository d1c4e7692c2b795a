"""The Strings tab: what its handlers answer."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dpexplore.diffuse.families import FAMILIES
from dpexplore.errors import InputError
from dpexplore.serving.app_context import AppContext
from dpexplore.targets import strings
from dpexplore.tuning import TuneConfig
from dpexplore.ui.components.string_runs import Running, reach
from dpexplore.ui.components.string_uploads import MOST_FILES, read_uploads
from dpexplore.ui.components.string_view import (
    Course,
    Pictures,
    Way,
    bars_html,
    live_line,
    read_lines,
    read_prefixes,
    write_lines,
)
from dpexplore.ui.components.target_panel import show_target
from dpexplore.ui.tabs.strings import FIRST, examples, from_controls, from_files, from_recipe, in_braces, mark_earlier
from tests.ui.shared import MODEL, STRINGS_RECORD, write_files

RECIPE = str(strings({"sea": 1, "shore": 3}, request="I love the"))


def settings(**changes: object) -> list[object]:
    """Settings of a short run with some changed, in the order of the panel."""
    short = {"ways": ["prompt", "lora"], "method": "soft", "slots": "request soft*2", "steps": 3, "preset": "fast"}
    return list((short | {"passes": 3, "samples": 10} | changes).values())


def test_lines_are_read_as_they_were_written() -> None:
    outcomes = (("{1}", 1.0), ("two words", 1.0), (" spaced ", 1.0), ('"quoted"', 1.0), ("a\nb", 2.0), ("kept", 0.0))
    assert read_lines(write_lines(outcomes)) == list(outcomes)
    assert read_lines('\n {1} \n"{2}" 3\n"open') == [("{1}", 1.0), ("{2}", 3.0), ('"open', 1.0)]


def test_controls_and_recipe_follow_each_other(app: AppContext) -> None:
    recipe, facts, _ = from_controls(app, MODEL, "I love the", "", 'sea\n"shore" 3', True)
    assert recipe == str(strings({"sea": 1, "shore": 3}, request="I love the"))
    assert "data-outcomes='2'" in facts
    request, response, lines, eos, *_ = from_recipe(app, MODEL, recipe)
    assert (request, response, read_lines(lines), eos) == ("I love the", "", [("sea", 1.0), ("shore", 3.0)], True)


@pytest.mark.parametrize(
    ("response", "lines"),
    [
        (("",), ""),
        (("Sure:",), "Sure:"),
        (("", " big"), '""\n" big"'),
        (('"A"', "one\ntwo", "plain"), '"\\"A\\""\n"one\\ntwo"\nplain'),
    ],
)
def test_every_prefix_of_the_answer_is_shown_and_kept(app: AppContext, response: tuple[str, ...], lines: str) -> None:
    asked = str(strings(["sea", "shore"], request="I love the", response=response))
    request, shown, outcomes, eos, *_ = from_recipe(app, MODEL, asked)
    assert shown == lines
    assert read_prefixes(shown) == response
    recipe, facts, _ = from_controls(app, MODEL, request, shown, outcomes, eos)
    assert recipe == asked
    assert "data-outcomes='2'" in facts


def test_a_prefix_takes_no_weight(app: AppContext) -> None:
    recipe, facts, _ = from_controls(app, MODEL, "I love the", '"big" 2', "sea", True)
    assert recipe == ""
    assert "only outcomes take a weight" in facts


def test_a_target_with_a_mistake_is_not_run(app: AppContext) -> None:
    recipe, *_ = from_controls(app, MODEL, "I love the", "", "a\na", True)
    *_, last = reach(app, Running(), "me", MODEL, recipe, *settings())
    assert "no target to run" in last[0]


def test_a_clash_is_named_and_its_cure_offered(app: AppContext) -> None:
    _, facts, cure = from_controls(app, MODEL, "I love the", "", "sea\nseas", False)
    assert "is the beginning of" in facts
    assert cure["visible"]
    _, facts, cure = from_controls(app, MODEL, "I love the", "", in_braces('sea\n"seas" 2'), False)
    assert "data-outcomes" in facts
    assert not cure["visible"]
    _, facts, cure = from_controls(app, MODEL, "I love the", "", "sea\nseas", True)
    assert "data-outcomes" in facts
    assert not cure["visible"]


@pytest.mark.parametrize(
    ("lines", "told"), [("", "at least one outcome"), ("a\na", "given twice"), ('"a" -1', "0 or more")]
)
def test_mistakes_are_answered_in_one_sentence(app: AppContext, lines: str, told: str) -> None:
    _, facts, _ = from_controls(app, MODEL, "I love the", "", lines, True)
    assert told in facts
    assert "is-error" in facts


def test_a_file_of_either_kind_loads(app: AppContext, tmp_path: Path) -> None:
    paths = write_files(tmp_path, a__json=json.dumps(STRINGS_RECORD), b__txt="sea\nshore\n")
    loaded, example, request, _, lines, _, recipe, facts, _ = from_files(app, MODEL, ["known"], {}, paths[:1])
    assert list(loaded) == ["a.json"]
    assert example["choices"] == ["a.json", "known"]
    assert request == "I love the"
    assert read_lines(lines) == [("sea", 1.0), ("shore", 3.0)]
    assert recipe == str(strings({"sea": 1, "shore": 3}, request="I love the"))
    assert "data-outcomes='2'" in facts
    found, problems = read_uploads(paths[1:])
    assert found == {"b.txt": strings(["sea", "shore"])}
    assert not problems


def test_several_files_are_offered_and_bad_ones_told(app: AppContext, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    paths = write_files(
        tmp_path,
        c__json=json.dumps(STRINGS_RECORD),
        a__json="{",
        b__txt="a\na",
        d__json=json.dumps({**STRINGS_RECORD, "weights": [-1, 1]}),
    )
    paths += write_files(other, c__json=json.dumps({**STRINGS_RECORD, "request": "You love the"}))
    (other / "e.txt").write_bytes(b"\xff\xfe\x00")
    before = {"old.json": strings(["x"], request="I")}
    loaded, example, request, *_, facts, _ = from_files(app, MODEL, ["known"], before, [*paths, str(other / "e.txt")])
    assert list(loaded) == ["c.json", "c.json (2)", "old.json"]
    assert example["value"] == "c.json"
    assert example["choices"][-1] == "known"
    assert request == "I love the"
    assert loaded["c.json (2)"].request == "You love the"
    assert facts.count("is-error") == 4
    for name, told in {
        "a.json": "not valid JSON",
        "b.txt": "given twice",
        "d.json": "0 or more",
        "e.txt": "not UTF-8",
    }.items():
        assert re.search(f"{name}[^<]*{told}|{told}[^<]*{name}", facts), name
    assert "2 targets are loaded" in facts


def test_files_without_a_target_leave_the_page_as_it_is(app: AppContext, tmp_path: Path) -> None:
    *kept, facts, cure = from_files(app, MODEL, ["known"], {}, write_files(tmp_path, a__json="[]"))
    assert all(value["__type__"] == "update" and "value" not in value for value in kept)
    assert "not hold a JSON object" in facts
    assert not cure["visible"]
    assert "no .json file" in from_files(app, MODEL, ["known"], {}, [])[-2]


def test_so_many_files_are_read_and_no_more(tmp_path: Path) -> None:
    paths = write_files(tmp_path, **{f"{i:03}__txt": f"{i}" for i in range(MOST_FILES + 1)})
    found, problems = read_uploads(paths)
    assert len(found) == MOST_FILES
    assert problems == [f"{MOST_FILES + 1} files were given; the first {MOST_FILES} by name were read."]


def test_every_example_is_offered() -> None:
    assert FIRST in examples()
    assert set(examples()) >= {"numbers / 1-100, full", "numbers / even, full", "countries / africa, full"}
    assert len(set(examples().values())) == len(examples())
    assert {name.partition(" / ")[0] for name in examples()} == set(FAMILIES)


def test_three_ways_are_run_and_shown(app: AppContext) -> None:
    views = list(reach(app, Running(), "me", MODEL, RECIPE, *settings(samples=12)))
    status, chart, bars, answers, origin, adapter, *_ = views[-1]
    assert "data-done" in status
    figure = json.loads(chart)
    assert len(figure["data"]) == 4  # the floor, the request alone, the prompt, LoRA
    assert bars.count("<tr>") == 4  # the header, two outcomes, all else
    for way in ("alone", "prompt", "lora"):
        assert f"data-way='{way}'" in answers
    assert answers.count("<li") == 36
    assert origin == (MODEL, RECIPE)
    with zipfile.ZipFile(adapter["value"]) as packed:
        assert {"adapter_config.json", "adapter_model.safetensors", "capsule.json"} <= set(packed.namelist())


def test_a_moving_way_tells_where_it_stands(app: AppContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpexplore.ui.components.string_runs.UPDATE_SECONDS", 0.0)
    monkeypatch.setattr("dpexplore.ui.components.string_view.BARS_SECONDS", 0.0)
    views = list(reach(app, Running(), "me", MODEL, RECIPE, *settings()))
    for way, unit in (("lora", "pass"), ("prompt", "step")):
        moving = [view for view in views if f"data-way='{way}'" in view[0]]
        assert moving
        for status, chart, bars, answers, *plain in moving:
            assert re.search(f"{unit} \\d of 3 · KL to the target .*nats.* · valid answers [0-9.]+%", status)
            assert json.loads(chart)["data"][-1]["hovertemplate"]
            assert bars.count("is-adapter") >= 2 or way != "lora"
            assert f"data-way='{way}'" not in answers
            assert not any(isinstance(value, dict) for value in plain)  # updates cost Gradio much at every view
    shown = [re.search(r"valid answers ([0-9.]+)%", view[0]) for view in views]
    exact = re.findall(r"probability of a valid answer</dt><dd>([0-9.]+)%", views[-1][3])
    assert next(found[1] for found in shown if found) == exact[0]  # LoRA's first pass meets the request alone


def test_outcomes_that_training_does_not_score_are_left_open(app: AppContext) -> None:
    target = strings({"sea": 1, "shore": 0}, request="I love the").build(app.pool.get(MODEL).lm)
    way = Way([1], [2.0], latest=torch.tensor([0.25, float("nan")], dtype=torch.float64))
    course = Course(target, {"lora": way})
    assert "valid answers at least 25.00%" in live_line(course, "lora", 3)
    assert bars_html(course).count("–") == 2  # the outcome, and all else with it
    assert "nan" not in bars_html(course)


def test_bars_are_drawn_once_a_second_and_as_a_way_ends(app: AppContext, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("dpexplore.ui.components.string_view.time", SimpleNamespace(monotonic=lambda: now))
    course = Course(strings({"sea": 1, "shore": 3}, request="I love the").build(app.pool.get(MODEL).lm))
    way = course.ways["lora"] = Way([1], [2.0], latest=torch.tensor([0.5, 0.25], dtype=torch.float64))
    pictures = Pictures(course)
    first = pictures.draw()[1]
    assert "0.500" in first
    way.latest = torch.tensor([0.125, 0.25], dtype=torch.float64)
    now = 100.5
    assert pictures.draw()[1] == first
    now = 101.0
    assert "0.125" in pictures.draw()[1]


def test_stop_ends_what_moves_and_what_would_follow(app: AppContext) -> None:
    running = Running()
    for view in reach(app, running, "me", MODEL, RECIPE, *settings(steps=10_000, passes=10_000)):
        last = view
        if "data-way='lora'" in str(view[0]):
            running.stop("me")
    assert "Stopped" in last[0]
    assert "data-way='prompt'" not in last[3]
    assert last[5]["visible"]  # what was trained until then can be kept


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"passes": None}, "The number of passes is empty; use a whole number from 1 to 10,000"),
        ({"slots": "request"}, "nothing to tune"),
        ({"samples": 9}, "The number of answers is 9; use a whole number from 10 to 1,000."),
        ({"samples": 1001}, "answers is 1,001"),
        ({"samples": 99.5}, "answers is 99.5"),
    ],
)
def test_settings_that_no_run_can_have_are_told(app: AppContext, changes: dict[str, object], told: str) -> None:
    *_, last = reach(app, Running(), "me", MODEL, RECIPE, *settings(**changes))
    assert told in last[0]
    assert last[-2]["interactive"]


def test_results_of_an_earlier_target_are_marked() -> None:
    assert mark_earlier(MODEL, RECIPE, ("", "")) == ""
    assert mark_earlier(MODEL, RECIPE, (MODEL, RECIPE)) == ""
    assert mark_earlier(MODEL, RECIPE.replace(", ", ",  "), (MODEL, RECIPE)) == ""
    for model, recipe in ((MODEL, RECIPE.replace("love", "like")), (MODEL, ""), ("another", RECIPE)):
        line = mark_earlier(model, recipe, (MODEL, RECIPE))
        assert "I love the" in line
        assert "sea" in line
        assert MODEL in line
    long = str(strings([f"<{i}>" for i in range(50)], request="<b>"))
    line = mark_earlier(MODEL, RECIPE, (MODEL, long))
    assert "50 outcomes" in line
    assert "<b>" not in line


def test_a_recipe_over_tokens_is_refused(app: AppContext) -> None:
    *_, last = reach(app, Running(), "me", MODEL, "entropy(bits=3)", *settings())
    assert "over single tokens" in last[0]


def test_the_explore_tab_sends_targets_over_strings_here(app: AppContext) -> None:
    assert "Strings tab" in show_target(app, MODEL, RECIPE)["problem"]
    with pytest.raises(InputError, match="Strings tab"):
        app.begin("me", MODEL, RECIPE, TuneConfig())
