"""The Strings tab in a browser with a real training."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext
from dpexplore.ui.tabs.strings import FIRST
from tests.browser.driver import PATIENCE
from tests.served import GRADIO_LEAVES_OPEN, context_of, served
from tests.ui.shared import MODEL, STRINGS_RECORD, write_files

pytestmark = GRADIO_LEAVES_OPEN


@pytest.fixture(scope="module")
def app(tiny_lm: Callable[[str], LanguageModel]) -> Iterator[AppContext]:
    with context_of(tiny_lm("llama"), model=MODEL) as context:
        context.pool.load(MODEL)
        yield context


@pytest.fixture(scope="module")
def address(app: AppContext) -> Iterator[str]:
    with served(app) as (_, address):
        yield address


def open_tab(browser: Browser, address: str, width: int, height: int, scheme: str = "light") -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page.set_default_timeout(PATIENCE)
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
    earlier = page.locator("#strings-earlier [data-earlier]")
    expect(earlier).to_have_count(0)
    page.fill("#strings-request textarea", "I like the")
    expect(earlier).to_contain_text("I love the")
    page.locator("#strings-example input").focus()
    page.keyboard.press("Tab")  # a list that is left without a choice undoes nothing
    page.wait_for_timeout(500)
    expect(page.locator("#strings-request textarea")).to_have_value("I like the")
    page.fill("#strings-request textarea", "I love the")
    expect(earlier).to_have_count(0)
    assert not problems
    page.close()


@pytest.mark.browser
def test_files_and_folders_are_given_and_chosen_in_the_browser(browser: Browser, address: str, tmp_path: Path) -> None:
    page = open_tab(browser, address, 1440, 900)
    folder = tmp_path / "prompts"
    (folder / "more").mkdir(parents=True)
    paths = write_files(tmp_path, a__json=json.dumps(STRINGS_RECORD), b__json="{", c__txt="q\nr\ns")
    write_files(folder, d__json=json.dumps({**STRINGS_RECORD, "request": "You love the"}), readme__md="no target")
    write_files(folder / "more", e__json=json.dumps({**STRINGS_RECORD, "request": "They love the"}))
    request, lines, example = (page.locator(f"#strings-{name}") for name in ("request", "lines", "example"))

    def give(button: str, files: list[str] | Path) -> None:
        with page.expect_file_chooser() as waiting:
            page.click(button)
        waiting.value.set_files(files)

    give("#strings-files", paths)
    expect(request.locator("textarea")).to_have_value("I love the")
    expect(page.locator("#strings-facts [data-outcomes='2']")).to_be_visible()
    expect(page.locator("#strings-facts .is-error")).to_contain_text("'b.json' is not valid JSON")
    expect(example.locator("input")).to_have_value("a.json")
    example.locator("input").click()
    page.get_by_role("option", name="c.txt").click()
    expect(lines.locator("textarea")).to_have_value("q\nr\ns")
    give("#strings-folder", folder)
    expect(request.locator("textarea")).to_have_value("You love the")
    expect(page.locator("#strings-facts .is-error")).to_have_count(0)
    example.locator("input").click()
    for name in ("d.json", "e.json", "a.json", "c.txt", FIRST):
        expect(page.get_by_role("option", name=name, exact=True)).to_be_visible()
    page.get_by_role("option", name="e.json").click()
    expect(request.locator("textarea")).to_have_value("They love the")
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
