"""The page as a person uses it: Chromium against a running server with the real default model."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from gradio_client import Client
from playwright.sync_api import Browser, Error, Page, expect

import dpexplore
from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.journal import Journal
from dpexplore.ui.components.lesson_steps import LESSONS
from tests.browser.driver import PATIENCE, never_ending
from tests.served import GRADIO_LEAVES_OPEN, context_of, served

pytestmark = [pytest.mark.browser, *GRADIO_LEAVES_OPEN]
GRAVE = ("serious", "critical")


@pytest.fixture(scope="module")
def app(default_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppContext]:
    journal = Journal(tmp_path_factory.mktemp("runs"))
    with context_of(default_lm, journal=journal, grace_seconds=1.0) as context:
        yield context


@pytest.fixture(scope="module")
def address(app: AppContext) -> Iterator[str]:
    with served(app) as (_, address):
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    context.set_default_timeout(PATIENCE)
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
    page.get_by_label("hard", exact=True).check()
    never_ending(page)  # however busy the machine is, it moves until it is stopped
    settings(page, length=3, restarts=2)
    page.click("#tune")
    live = page.locator("#live-chart [data-chart]")
    expect(live).to_have_attribute("data-points", re.compile(r"^([3-9]|\d\d+)$"))
    expect(page.locator("#achieved-chart [data-chart]")).to_have_attribute(
        "data-frames", re.compile(r"^[1-9]"), timeout=PATIENCE
    )
    expect(page.locator("#live-chart .dpx-entropy")).to_contain_text("target")
    expect(page.locator("#status")).to_contain_text("Running")

    # 4. Stop: within a step, and the best so far is kept.
    page.click("#stop")
    expect(page.locator("#status [data-status]")).to_have_attribute("data-status", "cancelled")

    # 5. The result: chips with ids, both KLs, the table, the capsule.
    result = page.locator("#result .dpx-result")
    ids = json.loads(page.locator("#result .dpx-chips").get_attribute("data-ids") or "")
    expect(page.locator("#result .dpx-chip")).to_have_count(len(ids))
    expect(result).to_contain_text("at the ids")
    expect(result).to_contain_text("re-encoded")
    expect(page.locator("#microscope tbody tr").first).to_be_visible()
    with page.expect_download() as waiting:
        page.click("#capsule")
    waiting.value.save_as(tmp_path / "capsule.json")
    capsule = json.loads((tmp_path / "capsule.json").read_text(encoding="utf-8"))
    assert capsule["result"]["prompt_ids"] == ids
    assert capsule["target"]["recipe"] == 'capture("The capital of France is")'
    assert capsule["result"]["kl_nats"] == pytest.approx(float(result.get_attribute("data-kl") or "nan"), abs=1e-5)
    expect(page.locator("#tune")).to_be_enabled()


def serious_violations(page: Page) -> list[str]:
    """What axe-core finds that keeps somebody from using the page."""
    page.add_style_tag(content="* { transition: none !important; animation: none !important }")  # colours at rest
    found = Axe().run(page).response["violations"]
    return [f"{item['id']}: {item['nodes'][0]['html'][:160]}" for item in found if item["impact"] in GRAVE]


def finish_a_run(page: Page, recipe: str, **numbers: int) -> None:
    page.fill("#recipe textarea", recipe)
    expect(page.locator("#target-problem p")).to_have_count(0)
    settings(page, **numbers)
    page.click("#tune")
    expect(page.locator("#status [data-status]")).to_be_visible()
    expect(page.locator("#microscope [data-follow]").first).to_be_visible()


def test_a_finished_run_is_gone_back_over_looked_into_and_continued(page: Page) -> None:
    finish_a_run(page, 'capture("I love")', length=2, restarts=1, steps=12)
    assert serious_violations(page) == []

    # The scrubber, by keyboard: back to the first recorded step, and on to the last.
    chart = page.locator("#achieved-chart [data-chart]")
    last = chart.get_attribute("data-shown")
    scrubber = page.get_by_role("slider", name="Recorded step")
    scrubber.focus()
    page.keyboard.press("Home")
    expect(chart).to_have_attribute("data-shown", "1")
    expect(page.locator(".dpx-scrub output")).to_contain_text("step 1 · KL")
    page.keyboard.press("End")
    expect(chart).to_have_attribute("data-shown", last or "")

    # The microscope: both ways, and any token can be followed.
    lens = page.locator("#microscope .dpx-microscope")
    expect(lens).to_contain_text("Said too little")
    expect(lens).to_contain_text("Said too much")
    expect(lens).to_contain_text("Head or tail")
    expect(lens.locator(".dpx-bands tbody tr")).to_have_count(6)
    assert page.locator("[data-title^='Share']").count() == 0  # Plotly's button that uploads a chart to its cloud
    before = (lens.get_attribute("data-followed") or "").split()
    other = lens.locator("[data-follow]").nth(3)
    other.focus()
    page.keyboard.press("Enter")
    chosen = other.get_attribute("data-follow") or ""
    expect(lens).to_have_attribute("data-followed", " ".join([*before, chosen][-3:]))
    expect(other).to_have_attribute("aria-pressed", "true")
    expect(lens.locator(".dpx-follow .scatterlayer .trace")).to_have_count(2 * len([*before, chosen][-3:]))

    # What the model says next, by a seed: the same one twice.
    page.fill("#continue-tokens input", "4")
    page.keyboard.press("Tab")
    page.click("#continue")
    said = page.locator("#continuation .dpx-continuations")
    expect(said.locator("li")).to_have_count(3)
    first = said.inner_text()
    page.fill("#continue-seed input", "7")
    page.keyboard.press("Tab")
    page.click("#continue")
    expect(said).not_to_have_text(first)


def test_an_example_is_one_click(page: Page) -> None:
    page.click("#example-die")
    expect(page.locator("#notice")).to_contain_text("fair die")
    expect(page.locator("#recipe textarea")).to_have_value(re.compile(r"tokens\(.*\"6\": 1"))
    expect(page.locator("#preset input")).to_have_value("custom")
    expect(page.locator("#status")).to_contain_text("Running")
    page.click("#stop")
    expect(page.locator("#status [data-status]")).to_be_visible()
    expect(page.locator("#floor [data-floor]")).to_have_class(re.compile("is-free"))


def test_an_example_pressed_while_a_run_moves_leaves_stop_to_the_new_run(page: Page) -> None:
    page.click("#example-moderate")
    chart = page.locator("#live-chart [data-chart]")
    expect(chart).to_have_attribute("data-run", re.compile("."))
    first = chart.get_attribute("data-run") or ""
    page.click("#example-uniform")
    expect(page.locator("#recipe textarea")).to_have_value("entropy(bits=15.55, seed=0)")
    expect(chart).not_to_have_attribute("data-run", first)
    expect(page.locator("#status [data-moving]")).to_be_visible()
    expect(page.locator("#stop")).to_be_enabled()
    with suppress(Error):  # an example's run is short: on a busy machine it may end before the click
        page.click("#stop", timeout=2000)
    expect(page.locator("#status [data-status]")).to_contain_text("bits=15.55")
    expect(page.locator("#stop")).to_be_disabled()
    expect(page.locator("#tune")).to_be_enabled()


def test_every_knob_is_behind_the_fold_and_slots_are_chips_and_text(page: Page) -> None:
    page.locator("#advanced > button").click()
    expect(page.locator("#knob-learning_rate")).to_contain_text("Paper: 0.1.")
    page.fill("#steps input", "2")
    page.click("#tune")  # with every setting as it is shown
    expect(page.locator("#status [data-status='max_steps']")).to_be_visible()
    page.click("#preset input")
    page.get_by_role("option", name="fast", exact=True).click()
    expect(page.locator("#knob-evaluations input")).to_have_value("1500")
    page.fill("#knob-patience input", "7")
    expect(page.locator("#preset input")).to_have_value("custom")

    page.get_by_label("hybrid", exact=True).check()
    slots = page.locator("#slots textarea, #slots input").first
    expect(page.locator(".dpx-slot")).to_have_count(2)
    page.get_by_role("button", name="+ text").click()
    page.get_by_label("Fixed text of slot 3").fill(" A:")
    expect(slots).to_have_value('soft*3 hard*2 " A:"')
    page.get_by_label("Move left slot 3").click()
    expect(slots).to_have_value('soft*3 " A:" hard*2')
    page.get_by_label("soft tokens of slot 1").fill("1")
    expect(slots).to_have_value('soft*1 " A:" hard*2')
    page.get_by_label("Take off slot 2").click()
    expect(slots).to_have_value("soft*1 hard*2")
    slots.fill('"Q:" hard*4')
    expect(page.locator(".dpx-slot.is-text input")).to_have_value("Q:")
    expect(page.locator(".dpx-slot.is-hard input")).to_have_value("4")
    slots.fill('"Q: hard*4')
    expect(page.locator("#status")).to_contain_text("Slots are written like")
    page.click("#fig4 input")
    page.get_by_role("option", name="2 soft, 3 hard").click()
    expect(slots).to_have_value("soft*2 hard*3")
    expect(page.locator(".dpx-slot")).to_have_count(2)


def test_the_first_minute_ends_at_a_floor_in_the_workbench_and_is_not_offered_again(page: Page) -> None:
    invitation = page.locator("[data-invitation]")
    invitation.get_by_role("button", name="Begin").click()
    expect(invitation).to_be_hidden()
    expect(page.locator("#first-die")).to_have_count(0)  # one question at a time
    page.locator("#first-coin").get_by_label("Almost exactly").check()
    expect(page.locator("#first-coin .is-right")).to_contain_text("50.0%")
    page.locator("#first-die").get_by_label("No, some numbers stay likelier").check()
    expect(page.locator("#first-die .dpx-answer")).to_contain_text("Not this time: As exactly as the coin.")
    page.locator("#first-shuffled").get_by_label("No prompt ever will").check()
    expect(page.locator("#first-shuffled .is-right")).to_contain_text("a proof, not a failed search")
    page.click("#first-go")
    expect(page.locator("#recipe textarea")).to_have_value('capture("I love").shuffle(seed=1)')
    expect(page.locator("#target-facts")).to_be_visible()
    expect(page.locator("#floor [data-floor]")).not_to_have_class(re.compile("is-free"))
    page.reload()
    expect(page.locator("#target-facts [data-bits]")).to_be_visible()
    expect(invitation).to_be_hidden()


def test_a_newcomer_finishes_lessons(page: Page, default_lm: LanguageModel) -> None:
    page.get_by_role("tab", name="Lessons").click()
    expect(page.locator(".dpx-lesson")).to_have_count(len(LESSONS))
    expect(page.locator("#lesson-model .dpx-bars")).to_contain_text("Paris")

    softmax = page.locator("#lesson-softmax")
    softmax.get_by_role("button", name="Check").click()
    expect(softmax).to_contain_text("Choose an answer first")
    assert softmax.locator(".dpx-answer").count() == 0
    softmax.get_by_label("The largest one grows").check()
    softmax.get_by_role("button", name="Check").click()
    expect(softmax.locator(".dpx-answer")).to_contain_text("Not this time: They stay the same.")
    softmax.get_by_label("They stay the same").check()
    softmax.get_by_role("button", name="Check").click()
    expect(softmax.locator(".is-right")).to_contain_text("Right.")

    model = page.locator("#lesson-model")
    model.locator("textarea, input[type=text]").first.fill("Two plus two is")
    target = dpexplore.capture("Two plus two is").build(default_lm)
    expect(model).to_contain_text(f"Entropy: {target.entropy_bits:.2f} bits")

    together = page.locator("#lesson-together")
    together.get_by_label("It rises well above 0").check()
    together.get_by_role("button", name="Check").click()
    shuffled = dpexplore.parse_recipe('capture("I love").shuffle(seed=1)').build(default_lm)
    floor = dpexplore.softmax_floor(default_lm, shuffled).lower_bound_nats
    expect(together.locator(".is-right")).to_contain_text(f"{floor:.1f}")
    assert serious_violations(page) == []
    page.click("[data-dark]")
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    assert serious_violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_tab(browser: Browser, address: str, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#floor [data-floor]")).to_be_visible()
    found = {}
    for tab in ("Explore", "First minute", "Compare", "Strings", "Experiments", "About"):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
        found[tab] = serious_violations(page)
    assert not any(found.values()), found
    context.close()


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
    never_ending(page)
    settings(page, restarts=1)
    page.click("#tune")
    expect(page.locator("#status")).to_contain_text("Running")
    (live,) = app.sessions._runs.values()
    run = live.run
    page.goto("about:blank")
    deadline = time.monotonic() + 120
    while not run.finished and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.finished
    assert run.cancel_requested


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
