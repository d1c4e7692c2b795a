"""The list of runs in a browser: one click asks for three more, names are typed over, a reload keeps it all."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from dpexplore.models import LanguageModel
from dpexplore.serving.journal import Journal
from tests.browser.driver import PATIENCE
from tests.served import GRADIO_LEAVES_OPEN, context_of, served

pytestmark = [pytest.mark.browser, *GRADIO_LEAVES_OPEN]


@pytest.fixture(scope="module")
def address(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    journal = Journal(tmp_path_factory.mktemp("runs"))
    with context_of(lm, model="tiny", journal=journal, grace_seconds=60.0) as app, served(app) as (_, address):
        yield address


def test_runs_are_asked_for_named_and_shown_and_outlive_a_reload(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    expect(page.locator("#target-facts [data-bits]")).to_be_visible()
    for field, number in (("steps", 60), ("restarts", 1)):
        page.fill(f"#{field} input", str(number))
        page.keyboard.press("Tab")
    page.click("#tune")
    runs = page.locator("#runs [data-run-item]")
    expect(runs).to_have_count(1)
    expect(page.locator("#status [data-status]")).to_be_visible()
    page.get_by_role("button", name="The same run with: three entropies").click()
    expect(runs).to_have_count(4)
    name = page.get_by_label("Name of run D")
    name.fill("the flattest")
    page.keyboard.press("Enter")
    expect(name).not_to_be_focused()
    expect(page.locator("#runs [data-kl]")).to_have_count(4)
    expect(page.locator("#runs [data-moving]")).to_have_count(0)
    expect(page.locator("#runs-chart [data-chart]")).to_have_attribute("data-points", "4")

    page.reload()
    expect(runs).to_have_count(4)
    expect(page.get_by_label("Name of run D")).to_have_value("the flattest")
    page.get_by_role("button", name="Show on this page: run D").click()
    expect(page.locator("#recipe textarea")).to_have_value("entropy(bits=6.31, seed=0)")
    expect(page.locator("#status")).to_contain_text("bits=6.31")

    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#compare-table [data-run-id]")).to_have_count(4)
    expect(page.locator("#compare-table")).to_contain_text("the flattest")
    for width in (1440, 390):  # the whole caption can be read
        page.set_viewport_size({"width": width, "height": 900})
        caption = page.locator("#compare-table caption span").bounding_box()
        assert caption is not None
        assert caption["x"] >= 0
        assert caption["x"] + caption["width"] <= width
    assert re.search(r"run=[\w-]{22}", page.url)
    page.close()
