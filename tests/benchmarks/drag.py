"""How soon a dragged slider shows a certified number: a lower bound on KL(p‖q) for the target under the hand.

    python -m tests.benchmarks.drag                 # 50 positions, the default model
    python -m tests.benchmarks.drag --browser       # the same on the page, in Chromium

Each position is a new entropy, `--step` bits from the last one, as a hand moves a slider; nobody waits for the floor of
the one before. Timed from the recipe to the first bound above 0, the target's building included; with --browser from
the slider's event to the first change of the page that shows a bound of that very target.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import closing

import torch
from playwright.sync_api import Page, sync_playwright

import dpexplore as dp
from dpexplore.floor import FloorResult
from dpexplore.serving.floors import Floors
from dpexplore.targets import parse_recipe
from dpexplore.ui.components.floor_panel import NEGLIGIBLE_NATS
from tests.browser.driver import chromium_path
from tests.served import context_of, served

WATCH = """
() => { const seen = () => {
    const shown = document.querySelector("#floor [data-target] :is([data-rising], [data-floor])");
    if (window.dpxWanted && shown && shown.closest("[data-target]").dataset.target.includes(window.dpxWanted)) {
      window.dpxWanted = ""; window.dpxShown = performance.now(); } };
  new MutationObserver(seen).observe(document.querySelector("#floor"), { childList: true, subtree: true }); }
"""
MOVE = """
(bits) => { const range = document.querySelector("#entropy-bits input[type=range]");
  window.dpxWanted = `bits=${bits},`; window.dpxShown = 0; window.dpxMoved = performance.now();
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(range, bits);
  range.dispatchEvent(new Event("input", { bubbles: true })); }
"""


def positions(count: int, step: float, start: float) -> list[float]:
    """There and back again in hundredths of a bit, the slider's step; no position comes twice."""
    turn = (count + 1) // 2
    return [round(start + step * (i if i <= turn else 2 * turn - i + 0.5), 2) for i in range(1, count + 1)]


def first_bound(lm: dp.LanguageModel, floors: Floors, bits: float) -> float:
    """Seconds from a recipe to the first bound that says something."""
    began = time.perf_counter()
    target = parse_recipe(f"entropy(bits={bits}, seed=0)").build(lm)
    with closing(floors.rising(lm, target)) as rising:
        for now in rising:
            bound = now.lower_bound_nats if isinstance(now, FloorResult) else now
            if bound >= NEGLIGIBLE_NATS:
                break
    return time.perf_counter() - began


def on_page(page: Page, bits: float) -> float:
    """The same, seen by the person who drags."""
    page.evaluate(MOVE, bits)
    page.wait_for_function("window.dpxShown > 0", timeout=60_000)
    return page.evaluate("window.dpxShown - window.dpxMoved") / 1000


def tell(name: str, taken: list[float]) -> None:
    ordered = sorted(taken)
    print(
        f"{name}: median {1e3 * statistics.median(taken):.0f} ms over {len(taken)} positions, "
        f"9 of 10 within {1e3 * ordered[int(0.9 * (len(ordered) - 1))]:.0f} ms, worst {1e3 * ordered[-1]:.0f} ms",
        flush=True,
    )


def measured(places: list[float], measure: Callable[[float], float], pause: float) -> list[float]:
    taken = []
    for bits in places:
        taken.append(measure(bits))
        time.sleep(pause)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=dp.DEFAULT_MODEL)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--start", type=float, default=6.0, help="entropy of the first position, bits")
    parser.add_argument("--step", type=float, default=0.1, help="bits between two positions")
    parser.add_argument("--pause", type=float, default=0.05, help="seconds that the hand rests at each")
    parser.add_argument("--browser", action="store_true", help="measure on the page, in Chromium")
    options = parser.parse_args()
    places = positions(options.count, options.step, options.start)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {options.model}")
    lm = dp.load_model(options.model, device="cpu")
    floors = Floors()
    first = dp.entropy(bits=options.start, seed=0).build(lm)
    began = time.perf_counter()
    with closing(floors.rising(lm, first)) as rising:  # looked at all along: else a slow machine gives it up
        next(now for now in rising if isinstance(now, FloorResult))
    print(f"the first floor, the head's preparation included: {time.perf_counter() - began:.1f} s", flush=True)
    tell("first certified number", measured(places, lambda bits: first_bound(lm, floors, bits), options.pause))
    floors.close()
    if options.browser:
        with context_of(lm) as app, served(app) as (_, address), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(address)
            page.wait_for_selector("#floor [data-floor]", timeout=120_000)
            page.evaluate(WATCH)
            tell("on the page", measured(places, lambda bits: on_page(page, bits), options.pause))
            browser.close()


if __name__ == "__main__":
    main()
