"""The page as a person uses it: Chromium against a running server with the real default model."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from playwright.sync_api import Browser, Page, expect, sync_playwright

import dpexplore
from dpexplore.models import LanguageModel
from dpexplore.ui.context import AppContext
from dpexplore.ui.model_pool import ModelPool
from dpexplore.ui.page import build, launch_settings
from tests.browser import find_chromium

pytestmark = [
    pytest.mark.browser,
    # Gradio and its client leave sockets and event loops to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PATIENCE = 60_000
"""Milliseconds for what a busy machine of two cores may take."""


@pytest.fixture(scope="module")
def app(default_lm: LanguageModel) -> Iterator[AppContext]:
    context = AppContext(pool=ModelPool(lambda _name, progress: default_lm))
    yield context
    context.close()


@pytest.fixture(scope="module")
def address(app: AppContext) -> Iterator[str]:
    demo = build(app)
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, **launch_settings())
    yield url
    demo.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        reason = "no Chromium was found; install one or name it in DPEXPLORE_CHROMIUM"
        pytest.fail(reason) if os.environ.get("DPEXPLORE_REQUIRE_BROWSER") == "1" else pytest.skip(reason)
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE)
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    expect(page.locator("#target-facts [data-bits]")).to_be_visible(timeout=PATIENCE)
    yield page
    context.close()
    assert not problems


def settings(page: Page, **numbers: int) -> None:
    for name, value in numbers.items():
        page.fill(f"#{name} input", str(value))
        page.keyboard.press("Tab")


def test_five_steps_from_model_to_prompt(page: Page, tmp_path: Path) -> None:
    # 1. The model is there, and another one that does not load leaves it in place.
    expect(page.locator("#model-picker")).to_contain_text("smollm2-135m-instruct")
    expect(page.locator("#model-picker")).to_contain_text("ready")

    # 2. The target follows the slider, then a pasted prompt; the preview draws at once.
    page.fill("#entropy-bits input[type=number]", "5")
    expect(page.locator("#target-facts")).to_contain_text("5.00 bits = 3.47 nats")
    expect(page.locator("#recipe textarea")).to_have_value("entropy(bits=5, seed=0)")
    page.get_by_role("tab", name="Prompt").click()
    page.fill("#prompt-text textarea", "The capital of France is")
    expect(page.locator("#recipe textarea")).to_have_value('capture("The capital of France is")')
    expect(page.locator("#target-tokens")).to_contain_text("Paris")
    assert int(page.locator("#target-chart [data-chart]").get_attribute("data-points") or 0) > 50

    # 3. Tune: KL and entropy stream for every restart, the achieved distribution overlays the target.
    page.get_by_label("hard").check()
    settings(page, length=3, restarts=2, steps=4000)
    page.click("#tune")
    live = page.locator("#live-chart [data-chart]")
    expect(live).to_have_attribute("data-points", re.compile(r"^([3-9]|\d\d+)$"))
    expect(page.locator("#achieved-chart [data-chart]")).to_have_attribute(
        "data-frames", re.compile(r"^[1-9]"), timeout=PATIENCE
    )
    expect(page.locator("#live-chart .dpx-entropy")).to_contain_text("target")
    expect(page.locator("#status")).to_contain_text("Running")

    # 4. Stop: within a step, and the best so far is kept.
    if page.locator("#stop").is_enabled():
        page.click("#stop")
    status = page.locator("#status [data-status]")
    expect(status).to_have_attribute("data-status", re.compile("cancelled|converged"))

    # 5. The result: chips with ids, both KLs, the table, the capsule.
    result = page.locator("#result .dpx-result")
    ids = json.loads(page.locator("#result .dpx-chips").get_attribute("data-ids") or "")
    expect(page.locator("#result .dpx-chip")).to_have_count(len(ids))
    expect(result).to_contain_text("at the ids")
    expect(result).to_contain_text("re-encoded")
    expect(page.locator("#shares tbody tr").first).to_be_visible()
    with page.expect_download() as waiting:
        page.click("#capsule")
    waiting.value.save_as(tmp_path / "capsule.json")
    capsule = json.loads((tmp_path / "capsule.json").read_text(encoding="utf-8"))
    assert capsule["result"]["prompt_ids"] == ids
    assert capsule["target"]["recipe"] == 'capture("The capital of France is")'
    assert capsule["result"]["kl_nats"] == pytest.approx(float(result.get_attribute("data-kl") or "nan"), abs=1e-5)
    expect(page.locator("#tune")).to_be_enabled()


def test_mistakes_are_answered_on_the_page_and_lose_nothing(page: Page) -> None:
    before = page.locator("#target-tokens").inner_text()
    page.fill("#recipe textarea", "entropy(bits=7, sed=0)")
    expect(page.locator("#target-problem")).to_contain_text("takes no `sed`")
    assert page.locator("#target-tokens").inner_text() == before
    page.fill("#recipe textarea", "entropy(bits=40)")
    expect(page.locator("#target-problem")).to_contain_text("from 0 to 15.58")
    page.click("#tune")
    expect(page.locator("#status")).to_contain_text("from 0 to 15.58")
    page.fill("#recipe textarea", "entropy(bits=6, seed=2).shuffle(seed=1)")
    expect(page.locator("#target-problem")).not_to_contain_text("15.58")
    expect(page.locator("#entropy-bits input[type=number]")).to_have_value("6")
    expect(page.locator("#transform-stack")).to_contain_text("shuffle(seed=1)")


def test_the_floor_follows_the_slider_and_its_curve_is_one_click(page: Page, default_lm: LanguageModel) -> None:
    for bits in (10, 4):
        page.fill("#entropy-bits input[type=number]", str(bits))
        target = dpexplore.entropy(bits=bits, seed=0).build(default_lm)
        expected = dpexplore.softmax_floor(default_lm, target).lower_bound_nats
        page.wait_for_function(
            "nats => Math.abs(document.querySelector('#floor [data-floor]')?.dataset.floor - nats) < 2e-3",
            arg=expected,
            timeout=PATIENCE,
        )
        expect(page.locator("#floor")).to_contain_text("No prompt, of any length, can bring this model closer than")
    expect(page.locator("#ladder")).to_contain_text("head optimum")
    page.click("#draw-curve")
    expect(page.locator("#floor-curve [data-chart]")).to_have_attribute("data-points", re.compile(r"^[1-9]"))


def test_a_closed_tab_stops_its_run(page: Page, app: AppContext) -> None:
    settings(page, restarts=1, steps=100_000)
    page.click("#tune")
    expect(page.locator("#status")).to_contain_text("Running")
    (run,) = app.sessions._runs.values()
    page.goto("about:blank")
    deadline = time.monotonic() + 30
    while not run.finished and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.finished
    assert run.cancel_requested


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window(browser: Browser, address: str, width: int, height: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#target-facts [data-bits]")).to_be_visible(timeout=PATIENCE)
    # Gradio measures its row of tabs, then folds what does not fit: wait until that has settled.
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth", timeout=PATIENCE // 4)
    assert page.locator("h1").count() == 1
    if width > 1000:  # controls and live charts on one screen
        for part in ("#recipe", "#tune", "#live-chart", "#achieved-chart"):
            box = page.locator(part).bounding_box()
            assert box is not None
            assert box["y"] + box["height"] <= height
    context.close()


def test_a_program_tunes_through_the_named_endpoints(address: str) -> None:
    client = Client(address, verbose=False)
    assert "smollm2-135m-instruct" in {row["name"] for row in client.predict(api_name="/models")}
    target = client.predict('capture("I love")', api_name="/target")
    assert target["vocab_size"] == 49_152
    assert sum(row["p"] for row in target["top"]) < 1
    job = client.submit('capture("I love")', "hard", 2, 1, 4, api_name="/tune")
    rows: list[Any] = list(job)
    assert rows[-1]["event"] == "result"
    assert len(rows[-1]["prompt_ids"]) == 2
    assert {row["event"] for row in rows[:-1]} <= {"step"}
    client.close()
