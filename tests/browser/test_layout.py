"""How the page fits screens and rooms: no label cut at any width, lessons alone by address, the presenter's view."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from dpexplore.models import LanguageModel
from tests.browser.driver import PATIENCE
from tests.served import GRADIO_LEAVES_OPEN, context_of, served

pytestmark = [pytest.mark.browser, *GRADIO_LEAVES_OPEN]

CUT = """() => {
  const seen = (e) => e.checkVisibility({ visibilityProperty: true }) && e.getBoundingClientRect().width > 0;
  const texts = (e) => {
    const walker = document.createTreeWalker(e, NodeFilter.SHOW_TEXT), found = [];
    while (walker.nextNode()) {
      const parent = walker.currentNode.parentElement;
      const apart = parent.closest(".icon, .visually-hidden, .overflow-dropdown"); // turned ▼, copies of tabs
      if (!walker.currentNode.textContent.trim() || !seen(parent) || apart) continue;
      const range = document.createRange();
      range.selectNodeContents(walker.currentNode);
      found.push(range.getBoundingClientRect());
    }
    return found;
  };
  const out = (inner, outer) => inner.right > outer.right + 1 || inner.left < outer.left - 1;
  const labels = "h1, h2, h3, .dpx-card button, .dpx-card label > span, .dpx-header button, #examples button, p";
  const clips = (e) => e.matches(".dpx-card") || ["hidden", "clip"].includes(getComputedStyle(e).overflowX);
  return [...document.querySelectorAll(labels)].filter(seen).filter((e) => {
    const around = [{ left: 0, right: innerWidth }, e.getBoundingClientRect()];
    for (let up = e; up; up = up.parentElement) if (clips(up)) around.push(up.getBoundingClientRect());
    return texts(e).some((text) => text.width > 0 && around.some((box) => out(text, box)));
  }).map((e) => `${e.tagName} ${e.id} ${e.textContent.trim().slice(0, 40)}`);
}"""
"""Visible labels and buttons whose text leaves its box, what clips it, its card or the screen."""


@pytest.fixture(scope="module")
def address(lm: LanguageModel) -> Iterator[str]:
    with context_of(lm, model="tiny") as app, served(app) as (_, address):
        yield address


def open_page(browser: Browser, address: str, width: int, height: int) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    return page


def assert_fits(page: Page) -> None:
    """Nothing to scroll sideways, no label cut; controls and live charts on one screen, where it is a wide one."""
    # Gradio measures its row of tabs, then folds what does not fit: wait until that has settled.
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth", timeout=PATIENCE // 4)
    size = page.viewport_size
    assert size is not None
    for part in ("#recipe", "#tune", "#live-chart", "#achieved-chart") if size["width"] >= 1440 else ():
        box = page.locator(part).bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= size["height"]
    assert page.evaluate(CUT) == []


@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024), (1024, 768), (1440, 900), (1920, 1080)])
def test_the_page_fits_its_window_and_no_label_is_cut(browser: Browser, address: str, width: int, height: int) -> None:
    page = open_page(browser, address, width, height)
    expect(page.locator("#floor [data-floor]")).to_be_visible()
    assert page.locator("h1").count() == 1
    assert_fits(page)
    page.click("[data-dark]")
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    assert_fits(page)
    page.get_by_role("tab", name="Lessons").click()
    expect(page.locator("#lesson-softmax .dpx-bars")).to_be_visible()
    assert page.evaluate(CUT) == []
    page.close()


def test_a_lesson_stands_alone_by_address(browser: Browser, address: str) -> None:
    page = open_page(browser, f"{address}?view=lesson-3", 1024, 768)
    expect(page.locator("#lesson-kl")).to_be_visible()
    for hidden in ("#lesson-softmax", "#lesson-together", "#header", "#nav > .tab-wrapper", "#lesson-kl .dpx-teacher"):
        expect(page.locator(hidden)).not_to_be_visible()
    page.close()


def test_the_first_minute_opens_by_address_and_can_be_skipped(browser: Browser, address: str) -> None:
    page = open_page(browser, f"{address}?view=first-minute", 390, 844)
    expect(page.locator("#first-coin")).to_be_visible()
    expect(page.locator("[data-invitation]")).to_be_hidden()
    assert page.evaluate(CUT) == []
    page.get_by_role("button", name="Skip to the workbench").click()
    expect(page.locator("#tune-card")).to_be_visible()
    page.close()


def test_parts_are_hidden_by_address_and_unknown_names_change_nothing(browser: Browser, address: str) -> None:
    page = open_page(browser, f"{address}?hide=examples,why,%7D%20body%20%7B", 1440, 900)
    expect(page.locator("#tune-card")).to_be_visible()
    expect(page.locator("#examples")).not_to_be_visible()
    expect(page.locator("#why-card")).not_to_be_visible()
    page.close()


def test_the_presenters_view_is_in_the_address_and_larger(browser: Browser, address: str) -> None:
    page = open_page(browser, address, 1920, 1080)
    expect(page.locator("#floor [data-floor]")).to_be_visible()
    size = "() => parseFloat(getComputedStyle(document.querySelector('.dpx-ladder')).fontSize)"
    before = page.evaluate(size)
    page.get_by_role("button", name="Presenter's view").click()
    assert "present=1" in page.url
    assert page.evaluate(size) > before
    expect(page.locator("#why-card")).not_to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="Presenter's view")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Presenter's view").click()
    assert "present=1" not in page.url
    page.close()
