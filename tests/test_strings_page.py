"""The Strings tab: what its handlers answer, and the tab in a browser with a real training."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from dpexplore.diffuse.families import FAMILIES
from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import strings
from dpexplore.tuning import TuneConfig
from dpexplore.ui.context import AppContext
from dpexplore.ui.model_pool import ModelPool
from dpexplore.ui.page import build, launch_settings
from dpexplore.ui.string_runs import Running, reach
from dpexplore.ui.string_view import read_lines, read_prefixes, write_lines
from dpexplore.ui.strings import FIRST, examples, from_controls, from_file, from_recipe, in_braces
from dpexplore.ui.target_panel import show_target

pytestmark = [
    # Gradio and its client leave sockets and event loops to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
MODEL = "tiny"


@pytest.fixture(scope="module")
def app(tiny_lm: Callable[[str], LanguageModel]) -> Iterator[AppContext]:
    context = AppContext(pool=ModelPool(lambda _name, progress: tiny_lm("llama")), model=MODEL)
    context.pool.load(MODEL)
    yield context
    context.close()


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
    *_, last = reach(app, Running(), "me", MODEL, recipe, ["lora"], "soft", "request soft*2", 3, "fast", 3)
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


def test_files_of_both_kinds_load(app: AppContext, tmp_path: Path) -> None:
    record = {"request": "I love the", "response": [""], "targets": ["sea", "shore"], "weights": [1, 3]}
    (tmp_path / "a.json").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "b.txt").write_text("sea\nshore\n", encoding="utf-8")
    (tmp_path / "c.json").write_text("{", encoding="utf-8")
    request, _, lines, _, recipe, *_ = from_file(app, MODEL, str(tmp_path / "a.json"))
    assert request == "I love the"
    assert read_lines(lines) == [("sea", 1.0), ("shore", 3.0)]
    assert recipe == str(strings({"sea": 1, "shore": 3}, request="I love the"))
    assert read_lines(from_file(app, MODEL, str(tmp_path / "b.txt"))[2]) == [("sea", 1.0), ("shore", 1.0)]
    assert "no JSON" in from_file(app, MODEL, str(tmp_path / "c.json"))[5]


def test_every_example_is_offered() -> None:
    assert FIRST in examples()
    assert set(examples()) >= {"numbers / 1-100, full", "numbers / even, full", "countries / africa, full"}
    assert len(set(examples().values())) == len(examples())
    assert {name.partition(" / ")[0] for name in examples()} == set(FAMILIES)


RECIPE = str(strings({"sea": 1, "shore": 3}, request="I love the"))


def test_three_ways_are_run_and_shown(app: AppContext) -> None:
    views = list(reach(app, Running(), "me", MODEL, RECIPE, ["prompt", "lora"], "soft", "request soft*2", 3, "fast", 3))
    status, chart, bars, answers, *_ = views[-1]
    assert "data-done" in status
    figure = json.loads(chart)
    assert len(figure["data"]) == 4  # the floor, the request alone, the prompt, LoRA
    assert bars.count("<tr>") == 4  # the header, two outcomes, all else
    for way in ("alone", "prompt", "lora"):
        assert f"data-way='{way}'" in answers
    archive = next(view[4]["value"] for view in views if isinstance(view[4], dict) and view[4].get("value"))
    with zipfile.ZipFile(archive) as packed:
        assert {"adapter_config.json", "adapter_model.safetensors", "capsule.json"} <= set(packed.namelist())


def test_stop_ends_what_moves_and_what_would_follow(app: AppContext) -> None:
    running = Running()
    views = reach(
        app, running, "me", MODEL, RECIPE, ["prompt", "lora"], "soft", "request soft*2", 10_000, "fast", 10_000
    )
    for view in views:
        if "LoRA: pass" in str(view[0]):
            running.stop("me")
            break
    *_, last = views
    assert "Stopped" in last[0]
    assert "data-way='prompt'" not in last[3]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ((["lora"], "soft", "request soft*2", 3, "fast", None), "passes is None"),
        ((["prompt"], "soft", "request", 3, "fast", 3), "nothing to tune"),
    ],
)
def test_settings_that_no_run_can_have_are_told(app: AppContext, settings: tuple, told: str) -> None:
    *_, last = reach(app, Running(), "me", MODEL, RECIPE, *settings)
    assert told in last[0]
    assert last[-2]["interactive"]


def test_a_recipe_over_tokens_is_refused(app: AppContext) -> None:
    *_, last = reach(app, Running(), "me", MODEL, "entropy(bits=3)", ["lora"], "soft", "request soft*2", 3, "fast", 3)
    assert "over single tokens" in last[0]


def test_the_explore_tab_sends_targets_over_strings_here(app: AppContext) -> None:
    assert "Strings tab" in show_target(app, MODEL, RECIPE)["problem"]
    with pytest.raises(InputError, match="Strings tab"):
        app.begin("me", MODEL, RECIPE, TuneConfig())


@pytest.fixture(scope="module")
def address(app: AppContext) -> Iterator[str]:
    demo = build(app)
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, **launch_settings())
    yield url
    demo.close()


def open_tab(browser: Browser, address: str, width: int, height: int, scheme: str = "light") -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(address)
    page.get_by_role("tab", name="Strings").click()
    expect(page.locator("#strings-facts")).to_contain_text("at most 64")  # the tiny model, for the first example
    page.fill("#strings-request textarea", "I love the")
    expect(page.locator("#strings-facts [data-outcomes='10']")).to_be_visible()
    return page


@pytest.mark.browser
def test_a_target_is_typed_cured_and_reached_in_the_browser(browser: Browser, address: str, tmp_path: Path) -> None:
    page = open_tab(browser, address, 1440, 900)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.uncheck("#strings-eos input")
    expect(page.locator("#strings-recipe textarea")).to_have_value(re.compile("eos=False"))
    page.fill("#strings-lines textarea", "q\nqz\n<b>x</b>")
    expect(page.locator("#strings-facts")).to_contain_text("'q' is the beginning of 'qz'")
    page.click("#strings-mark")
    expect(page.locator("#strings-lines textarea")).to_have_value("{q}\n{qz}\n{<b>x</b>}")
    expect(page.locator("#strings-facts [data-outcomes='3']")).to_be_visible()
    expect(page.locator("#strings-end")).not_to_be_visible()
    page.fill("#strings-lines textarea", "q\nqz\n<b>x</b>")
    page.click("#strings-end")
    expect(page.locator("#strings-facts [data-outcomes='3']")).to_be_visible()
    expect(page.locator("#strings-eos input")).to_be_checked()
    page.fill("#strings-steps input", "3")
    page.fill("#strings-passes input", "4")
    page.keyboard.press("Tab")
    page.click("#strings-run")
    expect(page.locator("#strings-status [data-done]")).to_be_visible()
    expect(page.locator("#strings-answers [data-way]")).to_have_count(3)
    expect(page.locator("#strings-chart [data-chart]")).to_have_attribute("data-points", "4")
    expect(page.locator("#strings-bars tbody tr")).to_have_count(4)
    expect(page.locator("#strings-bars")).to_contain_text("<b>x</b>")
    with page.expect_download() as waiting:
        page.click("#strings-adapter")
    waiting.value.save_as(tmp_path / "adapter.zip")
    assert zipfile.is_zipfile(tmp_path / "adapter.zip")
    assert not problems
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "height", "scheme"), [(1440, 900, "dark"), (390, 844, "light")])
def test_the_tab_fits_its_window(browser: Browser, address: str, width: int, height: int, scheme: str) -> None:
    page = open_tab(browser, address, width, height, scheme)
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
    page.fill("#strings-steps input", "3")
    page.fill("#strings-passes input", "3")
    page.keyboard.press("Tab")
    page.click("#strings-run")
    expect(page.locator("#strings-status [data-done]")).to_be_visible()
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
    for part in ("#strings-lines", "#strings-recipe", "#strings-run", "#strings-chart"):
        box = page.locator(part).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    page.close()
