"""The documents' pictures, taken from the page itself after a real run: `python -m tests.benchmarks.screenshots`.

Writes assets/screenshot.png (light), screenshot-dark.png, screenshot-hard.png, screenshot-microscope.png,
screenshot-geometry.png, screenshot-dials.png, screenshot-compare.png, screenshot-lessons.png and screenshot-phone.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from dpexplore.serving.app_context import AppContext
from tests.browser.driver import chromium_path
from tests.served import served

ASSETS = Path(__file__).resolve().parents[2] / "assets"
PATIENCE = 600_000
DESKTOP, PHONE = (1440, 900), (390, 844)


@contextmanager
def serve() -> Iterator[str]:
    app = AppContext()
    try:
        app.pool.load(app.model)
        with served(app) as (_, address):
            yield address
    finally:
        app.close()


def open_page(browser: Browser, url: str, size: tuple[int, int], dark: bool) -> Page:
    scale = 2 if size == PHONE else 1.5
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]},
        device_scale_factor=scale,
        color_scheme="dark" if dark else "light",
    )
    page.goto(url)
    expect(page.locator("#floor [data-floor]")).to_be_visible()
    return page


def run(page: Page, recipe: str, **settings: int | str) -> None:
    """Set the target and the numbers, press Tune, wait for the result and its rung on the ladder."""
    page.fill("#recipe textarea", recipe)
    expect(page.locator("#target-problem p")).to_have_count(0)
    page.get_by_label(str(settings.pop("method", "soft")), exact=True).check()
    page.click("#preset input")
    page.get_by_role("option", name=str(settings.pop("preset", "fast")), exact=True).click()
    page.wait_for_timeout(5000)  # the preset writes its numbers; ours come after them
    for name, value in settings.items():
        page.fill(f"#{name} input", str(value))
        page.keyboard.press("Tab")
    page.click("#tune")
    expect(page.locator("#status [data-status]")).to_have_count(0)
    expect(page.locator("#status [data-status]")).to_be_visible()
    expect(page.locator("#ladder")).to_contain_text("best")
    page.mouse.move(5, 5)
    page.wait_for_timeout(800)


def picture(page: Page, name: str) -> None:
    page.screenshot(path=ASSETS / name, animations="disabled")
    print(f"assets/{name}", flush=True)


def part(page: Page, selector: str, name: str) -> None:
    page.mouse.move(5, 5)
    page.wait_for_timeout(800)
    page.locator(selector).screenshot(path=ASSETS / name, animations="disabled")
    print(f"assets/{name}", flush=True)


def geometry(page: Page) -> None:
    """Where the run's states ended up, beside three words; and the dials."""
    page.click("#disc-draw")
    expect(page.locator(".dpx-disc .main-svg").first).to_be_visible()
    part(page, "#geometry", "screenshot-geometry.png")
    page.click("#dials-draw")
    expect(page.locator("#dials-told [data-tokens]")).to_be_visible()
    part(page, "#dials-card", "screenshot-dials.png")


def lessons(page: Page) -> None:
    """The lesson on the head, with its answer."""
    page.get_by_role("tab", name="Lessons").click()
    card = page.locator("#lesson-head")
    expect(card.locator("[data-floor]")).to_be_visible()
    card.get_by_label("8 bits").check()
    card.get_by_role("button", name="Check").click()
    expect(card.locator(".dpx-answer")).to_be_visible()
    card.evaluate("element => element.scrollIntoView({ block: 'center' })")
    page.wait_for_timeout(500)
    picture(page, "screenshot-lessons.png")


def compare(page: Page, recipe: str) -> None:
    """The same target, soft, hybrid and hard."""
    for method in ("hybrid", "hard"):
        run(page, recipe, method=method, restarts=2, steps=30)
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#compare-table tbody tr")).to_have_count(4)
    page.get_by_label("Take run B off").click()  # what was tuned before for another picture
    expect(page.locator("#compare-kl .scatterlayer .trace")).to_have_count(3)
    page.mouse.move(5, 5)
    page.wait_for_timeout(800)
    picture(page, "screenshot-compare.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--restarts", type=int, default=4)
    options = parser.parse_args()
    soft = 'entropy(bits=7, seed=0, method="temperature")'
    with serve() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        expect.set_options(timeout=PATIENCE)
        page = open_page(browser, url, DESKTOP, dark=False)
        run(page, soft, preset="fast", steps=options.steps, restarts=options.restarts)
        picture(page, "screenshot.png")
        page.click("[data-dark]")
        page.wait_for_timeout(800)
        picture(page, "screenshot-dark.png")
        page.click("[data-dark]")
        page.locator("#microscope-card").scroll_into_view_if_needed()
        page.locator("#microscope [data-follow]").nth(2).click()
        part(page, "#microscope-card", "screenshot-microscope.png")
        geometry(page)
        page.evaluate("scrollTo(0, 0)")
        run(page, 'capture("I love")', method="hard", steps=min(15, options.steps), restarts=2)
        page.click("#continue")
        expect(page.locator(".dpx-continuations li")).to_have_count(3)
        page.mouse.move(5, 5)
        page.wait_for_timeout(500)
        page.evaluate("scrollTo(0, 0)")
        picture(page, "screenshot-hard.png")
        compare(page, soft)
        lessons(page)
        phone = open_page(browser, url, PHONE, dark=False)
        run(phone, 'capture("I love")', steps=min(40, options.steps), restarts=2)
        phone.locator("#tune").scroll_into_view_if_needed()
        phone.evaluate("document.querySelector('#tune-card').scrollIntoView()")
        picture(phone, "screenshot-phone.png")
        browser.close()


if __name__ == "__main__":
    main()
