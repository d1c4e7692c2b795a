"""What a page keeps: zoom, axes, units, links, capsules, runs to compare; and the keyboard alone reaches all of it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, TimeoutError, expect

import dpexplore
from dpexplore.models import LanguageModel
from dpexplore.serving.journal import Journal
from tests.browser.driver import PATIENCE, never_ending
from tests.served import GRADIO_LEAVES_OPEN, context_of, served

pytestmark = [pytest.mark.browser, *GRADIO_LEAVES_OPEN]
SPEC = """
title: Mine
sizes:
  small:
    models: [smollm2-135m-instruct]
    restarts: 1
    tune: {method: soft, steps: 2}
    groups:
      vanilla:
        recipe: entropy(bits=$bits, seed=0)
        over: {bits: [3]}
"""
RECIPE = "entropy(bits=7, seed=0)"
KL, ENTROPY, RANKS = "#live-chart .dpx-kl", "#live-chart .dpx-entropy", "#achieved-chart .dpx-ranks"


@pytest.fixture(scope="module")
def demo(default_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[gr.Blocks]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))  # where sweeps that are started from the page write
        journal = Journal(tmp_path_factory.mktemp("runs"))
        with context_of(default_lm, journal=journal, grace_seconds=120.0) as app, served(app) as (demo, _):
            yield demo


@pytest.fixture(scope="module")
def address(demo: gr.Blocks) -> str:
    return str(demo.local_url)


@contextmanager
def opened(browser: Browser, address: str) -> Iterator[Page]:
    """A page of a browser profile of its own, once its first target is shown; no script on it may fail."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    context.set_default_timeout(PATIENCE)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page, problems = context.new_page(), list[str]()
    page.on("pageerror", lambda error: problems.append(error.stack or str(error)))
    page.goto(address)
    expect(page.locator("#target-facts [data-bits]")).to_be_visible()
    yield page
    context.close()
    assert not problems


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with opened(browser, address) as page:
        yield page


def begin(page: Page, recipe: str, method: str = "soft", **numbers: int) -> None:
    page.fill("#recipe textarea", recipe)
    expect(page.locator("#target-problem p")).to_have_count(0)
    page.get_by_label(method, exact=True).check()
    for name, value in numbers.items():
        page.fill(f"#{name} input", str(value))
        page.keyboard.press("Tab")
    page.click("#tune")


def finish(page: Page, recipe: str, method: str = "soft", **numbers: int) -> str:
    """Tune to the end; the run's name."""
    chart = page.locator("#live-chart [data-chart]")
    before = chart.get_attribute("data-run") or "none"
    begin(page, recipe, method, **numbers)
    expect(chart).not_to_have_attribute("data-run", before)
    expect(page.locator("#status [data-status]")).to_be_visible()
    expect(page.locator("#result .dpx-result")).to_be_visible()
    return chart.get_attribute("data-run") or ""


def axis(page: Page, plot: str, name: str = "yaxis") -> dict[str, Any]:
    """Kind, range and title of an axis, as it is drawn now."""
    script = "([plot, name]) => { const a = document.querySelector(plot)._fullLayout[name];"
    return page.evaluate(script + " return { type: a.type, range: a.range, title: a.title.text } }", [plot, name])


_KEPT = "Object.entries(localStorage).filter(([k]) => k.includes('compare')).map(([, v]) => v).join('').length"
"""How long the browser's list of runs to compare is: Gradio encrypts it, and it grows with every run."""


def zoom_into(page: Page, plot: str) -> None:
    """Drag over the middle of a chart, again where a busy page has missed it."""
    for _ in range(5):
        box = page.locator(f"{plot} .nsewdrag").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.7 * box["height"], steps=12)
        page.mouse.up()
        with suppress(TimeoutError):
            page.wait_for_function(
                "plot => document.querySelector(plot)._fullLayout.yaxis.autorange === false", arg=plot, timeout=10_000
            )
            return
    pytest.fail(f"{plot} cannot be zoomed into.")


def test_what_is_zoomed_into_stays_while_the_run_goes_on(page: Page) -> None:
    never_ending(page)
    begin(page, RECIPE, restarts=1)
    chart = page.locator("#live-chart [data-chart]")
    expect(chart).to_have_attribute("data-points", re.compile(r"^([5-9]|\d\d+)$"))
    zoom_into(page, KL)
    zoomed = axis(page, KL), axis(page, KL, "xaxis")
    points = int(chart.get_attribute("data-points") or 0)
    page.wait_for_function(
        "points => document.querySelector('#live-chart [data-chart]').dataset.points > points + 3", arg=points
    )
    assert (axis(page, KL), axis(page, KL, "xaxis")) == zoomed
    page.click("[data-dark]")  # colours change, the view does not
    page.wait_for_timeout(300)
    assert axis(page, KL)["range"] == zoomed[0]["range"]
    page.click("#stop")
    expect(page.locator("#status [data-status]")).to_be_visible()
    assert axis(page, KL)["range"] == zoomed[0]["range"]


def test_every_chart_has_both_axes_and_both_units(page: Page) -> None:
    finish(page, RECIPE, restarts=2, steps=5, length=2)
    switches = {KL: "Axis of KL", ENTROPY: "Axis of entropy", RANKS: "Axis of probability"}
    for plot, label in switches.items():
        group = page.get_by_role("group", name=label)
        for name, kind in (("log", "log"), ("linear", "linear"), ("log", "log")):
            group.get_by_role("button", name=name).click()
            page.wait_for_function(
                "([plot, kind]) => document.querySelector(plot)._fullLayout.yaxis.type === kind", arg=[plot, kind]
            )
    lowest = float(page.locator("#result .dpx-result").get_attribute("data-kl") or "nan")
    bounds = axis(page, KL)["range"]
    assert 10 ** bounds[0] <= lowest <= 10 ** bounds[1]
    for unit, titles in (
        ("nats", ("(nats)", "(nats)")),
        ("bits", ("(bits)", "(bits)")),
        ("mixed", ("(nats)", "(bits)")),
    ):
        page.click(f"[data-units={unit}]")
        for plot, title in zip((KL, ENTROPY), titles, strict=True):
            page.wait_for_function(
                "([plot, title]) => document.querySelector(plot)._fullLayout.yaxis.title.text.endsWith(title)",
                arg=[plot, title],
            )


def test_a_link_restores_model_target_and_settings(page: Page, browser: Browser, address: str) -> None:
    page.fill("#recipe textarea", 'capture("I love").shuffle(seed=3)')
    expect(page.locator("#target-problem p")).to_have_count(0)
    page.get_by_label("hybrid", exact=True).check()
    page.locator("#slots textarea, #slots input").first.fill('"Q:" soft*2 hard*1')
    expect(page.locator(".dpx-slot")).to_have_count(3)
    for name, value in (("restarts", 2), ("steps", 7), ("seed", 11)):
        page.fill(f"#{name} input", str(value))
        page.keyboard.press("Tab")
    expect(page.locator("#preset input")).to_have_value("custom")
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#share")).to_contain_text("Link to this setup copied")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(address.rstrip("/"))
    with opened(browser, link) as other:
        expect(other.locator("#recipe textarea")).to_have_value('capture("I love").shuffle(seed=3)')
        expect(other.get_by_label("hybrid", exact=True)).to_be_checked()
        expect(other.locator("#slots textarea, #slots input").first).to_have_value('"Q:" soft*2 hard*1')
        for name, value in (("restarts", 2), ("steps", 7), ("seed", 11)):
            expect(other.locator(f"#{name} input")).to_have_value(str(value))
        expect(other.locator("#preset input")).to_have_value("custom")
        expect(other.locator("#transform-stack")).to_contain_text("shuffle(seed=3)")
    with opened(browser, f"{address}?d=1nonsense") as third:
        expect(third.locator("#share-note")).to_contain_text("link")


def test_a_reloaded_page_picks_its_run_up_and_its_link_shows_the_result(page: Page, browser: Browser) -> None:
    never_ending(page)
    begin(page, RECIPE, restarts=1, length=2)
    chart = page.locator("#live-chart [data-chart]")
    expect(chart).to_have_attribute("data-points", re.compile(r"^([3-9]|\d\d+)$"))
    run = chart.get_attribute("data-run") or ""
    page.wait_for_function("run => new URLSearchParams(location.search).get('run') === run", arg=run)
    page.reload()
    expect(chart).to_have_attribute("data-run", run)
    expect(page.locator("#status")).to_contain_text("Running")
    page.click("#stop")
    expect(page.locator("#status [data-status=cancelled]")).to_be_visible()
    kl = page.locator("#result .dpx-result").get_attribute("data-kl")
    page.get_by_role("button", name="Copy run link").click()
    expect(page.locator("#share")).to_contain_text("Link to the run copied")
    with opened(browser, page.evaluate("navigator.clipboard.readText()")) as other:
        expect(other.locator("#result .dpx-result")).to_have_attribute("data-kl", kl or "")
        expect(other.locator("#live-chart [data-chart]")).to_have_attribute("data-run", run)
        expect(other.locator("#recipe textarea")).to_have_value(RECIPE)


def test_a_page_that_the_server_has_forgotten_goes_on(page: Page, demo: gr.Blocks) -> None:
    demo.state_holder.session_data.clear()  # as if very many others had come since
    finish(page, RECIPE, restarts=1, steps=2)
    page.click("#continue")
    expect(page.locator(".dpx-continuations li").first).to_be_visible()


def test_a_capsule_restores_the_run_with_its_floor(
    page: Page, browser: Browser, address: str, default_lm: LanguageModel, tmp_path: Path
) -> None:
    finish(page, RECIPE, "hard", restarts=1, steps=3, length=2)
    with page.expect_download() as waiting:
        page.click("#capsule")
    path = tmp_path / "capsule.json"
    waiting.value.save_as(path)
    ids = json.loads(path.read_text(encoding="utf-8"))["result"]["prompt_ids"]
    kl = page.locator("#result .dpx-result").get_attribute("data-kl")
    floor = dpexplore.softmax_floor(default_lm, dpexplore.parse_recipe(RECIPE).build(default_lm)).lower_bound_nats
    with opened(browser, address) as other:
        with other.expect_file_chooser() as choosing:
            other.click("#open-capsule")
        choosing.value.set_files(path)
        expect(other.locator("#result .dpx-result")).to_have_attribute("data-kl", kl or "")
        assert json.loads(other.locator("#result .dpx-chips").get_attribute("data-ids") or "") == ids
        expect(other.get_by_label("hard", exact=True)).to_be_checked()
        expect(other.locator(f"{KL} .annotation-text").first).to_contain_text(f"certified floor {floor:.2f}")
        (tmp_path / "broken.json").write_text("{}", encoding="utf-8")
        with other.expect_file_chooser() as choosing:
            other.click("#open-capsule")
        choosing.value.set_files(tmp_path / "broken.json")
        expect(other.locator("#share-note")).to_contain_text("capsule")
        expect(other.locator("#result .dpx-result")).to_have_attribute("data-kl", kl or "")


def test_runs_are_compared_taken_away_and_kept(page: Page, address: str, tmp_path: Path) -> None:
    kept, runs = page.evaluate(_KEPT), []
    for method in ("soft", "hard"):
        runs.append(finish(page, RECIPE, method, restarts=2, steps=4, length=2))
        # Kept as it ends, before anybody looks at Compare.
        page.wait_for_function(f"kept => {_KEPT} > kept", arg=kept, timeout=PATIENCE)
        kept = page.evaluate(_KEPT)
    page.goto(address)
    page.get_by_role("tab", name="Compare").click()
    table = page.locator("#compare-table")
    expect(table.locator("tbody tr")).to_have_count(2)
    lines = page.locator("#compare-kl .scatterlayer .trace")
    expect(lines).to_have_count(2)

    # Axes and units.
    page.locator("#compare-kl").get_by_role("button", name="log").click()
    page.wait_for_function("document.querySelector('#compare-kl .dpx-figure')._fullLayout.yaxis.type === 'log'")
    told = page.evaluate("document.querySelector('#compare-kl .dpx-figure').data[0].y")
    page.click("[data-units=bits]")
    page.wait_for_function(
        "document.querySelector('#compare-kl .dpx-figure')._fullLayout.yaxis.title.text.endsWith('(bits)')"
    )
    bits = page.evaluate("document.querySelector('#compare-kl .dpx-figure').data[0].y")
    assert bits == pytest.approx([nats / 0.6931471805599453 for nats in told])
    page.click("[data-units=mixed]")
    page.get_by_label("prompts scored").check()
    page.wait_for_function(
        "document.querySelector('#compare-kl .dpx-figure')._fullLayout.xaxis.title.text.startsWith('prompts')"
    )

    # One table, to take away in every form.
    kls = [float(cell.get_attribute("data-kl") or "nan") for cell in table.locator("[data-kl]").all()]
    for name in ("csv", "parquet"):
        for what in ("runs", "curves"):
            with page.expect_download() as waiting:
                page.click(f"#compare-{what}-{name}")
            waiting.value.save_as(tmp_path / f"{what}.{name}")
    with (tmp_path / "runs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run_id"] for row in rows] == runs
    assert [float(row["kl_nats"]) for row in rows] == pytest.approx(kls, abs=1e-5)
    assert list(pd.read_parquet(tmp_path / "runs.parquet")["method"]) == ["soft", "hard"]
    assert len(pd.read_parquet(tmp_path / "curves.parquet")) == len(pd.read_csv(tmp_path / "curves.csv"))
    for kind, begins in (("png", b"\x89PNG"), ("svg", b"<svg")):
        with page.expect_download() as waiting:
            page.click(f"[data-image='compare-kl:{kind}']")
        waiting.value.save_as(tmp_path / f"picture.{kind}")
        assert (tmp_path / f"picture.{kind}").read_bytes().startswith(begins)

    # Untick, take off; the browser keeps what is left.
    page.get_by_label("Show run A").uncheck()
    expect(lines).to_have_count(1)
    page.get_by_label("Take run B off").click()
    expect(table.locator("tbody tr")).to_have_count(1)
    page.goto(address)
    page.get_by_role("tab", name="Compare").click()
    expect(table.locator("tbody tr")).to_have_count(1)
    expect(page.get_by_label("Show run A")).not_to_be_checked()
    table.get_by_role("link", name="soft").click()
    expect(page.locator("#live-chart [data-chart]")).to_have_attribute("data-run", runs[0])


def test_the_keyboard_alone_goes_from_target_to_result_and_on(page: Page) -> None:
    def reach(selector: str, key: str = "Tab", text: str = "") -> None:
        here = "([selector, text]) => { const e = document.activeElement;"
        here += " return e.matches(selector) && e.textContent.includes(text) }"
        for _ in range(120):
            if page.evaluate(here, [selector, text]):
                return
            page.keyboard.press(key)
        pytest.fail(f"{selector} is not reached by {key}")

    page.locator("body").focus()
    reach("#entropy-bits input[type=number]")
    page.keyboard.press("Control+A")
    page.keyboard.type("3")
    expect(page.locator("#recipe textarea")).to_have_value("entropy(bits=3, seed=0)")
    reach("#recipe textarea")
    page.keyboard.press("Control+A")
    page.keyboard.type("entropy(bits=2, seed=1)")
    expect(page.locator("#target-facts")).to_contain_text("2.00 bits")
    reach("#method input[value=hard]")
    page.keyboard.press("Space")
    expect(page.get_by_label("hard", exact=True)).to_be_checked()
    for name, value in (("length", "2"), ("restarts", "1"), ("steps", "3")):
        reach(f"#{name} input")
        page.keyboard.press("Control+A")
        page.keyboard.type(value)
    reach("#tune")
    page.keyboard.press("Enter")
    expect(page.locator("#status [data-status]")).to_be_visible()
    assert "bits=2" in page.locator("#status").inner_text()
    reach("[data-switch='live-chart:scale:log']")
    page.keyboard.press("Space")
    expect(page.locator("#live-chart [data-chart]")).to_have_attribute("data-scale", "log")
    reach(".dpx-scrub input")
    page.keyboard.press("Home")
    expect(page.locator("#achieved-chart [data-chart]")).to_have_attribute("data-shown", "1")
    reach("[data-copy]")
    page.keyboard.press("Enter")
    expect(page.locator("#result")).to_contain_text("Copied")
    reach("#microscope [data-follow]")
    page.keyboard.press("Enter")
    reach("#nav button[role=tab]", "Shift+Tab", "Compare")
    page.keyboard.press("Enter")
    expect(page.locator("#compare-table tbody tr")).to_have_count(1)


def test_an_experiment_is_started_watched_and_stopped(page: Page, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Experiments").click()
    expect(page.locator("#sweep-plan")).to_contain_text("204 problems (0 done)")
    expect(page.locator("#gallery-figure [data-chart]")).to_have_attribute("data-points", re.compile(r"^[1-9]"))
    page.get_by_label("Fig. 5", exact=True).check()
    expect(page.locator("#gallery-told")).to_contain_text("Fig. 5")
    page.get_by_label("computed on this machine").check()
    expect(page.locator("#gallery-empty")).to_contain_text("Nothing has been computed on this machine yet")
    page.click("#sweep-start")
    progress = page.locator("#sweep-progress")
    expect(progress).to_contain_text("of 204 problems")
    expect(page.locator("#sweep-start")).to_be_disabled()
    page.click("#sweep-stop")
    expect(page.locator("#sweep-start")).to_be_enabled()
    expect(progress).to_contain_text("stopped")

    # A spec of one's own: what is wrong with it, then its figure.
    path = tmp_path / "mine.yaml"
    for text, told in ((SPEC.replace("bits=$bits", "bits=$bit"), "bit"), (SPEC, "1 problem (0 done)")):
        path.write_text(text, encoding="utf-8")
        with page.expect_file_chooser() as choosing:
            page.click("#sweep-own")
        choosing.value.set_files(path)
        expect(page.locator("#sweep-plan")).to_contain_text(told)
    page.click("#sweep-start")
    expect(progress).to_contain_text("mine-small finished: 1 problem computed")
