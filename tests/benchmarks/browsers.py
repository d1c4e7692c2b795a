"""Thirty people tuning at the same time on one model: how many updates a second does each of them see?

    python -m tests.benchmarks.browsers [--pages 4] [--others 26] [--seconds 60]

Starts a server, lets everybody set a target of their own, with its floor, and then tune one restart of it. Some are
real pages in headless Chromium, which draw; the others press the same button of the same page over the same queue and
read what the browser would read, without drawing, since people bring machines of their own to draw on. At the end
everybody must have got their own. Before it the engine alone steps as many rows, which no server can better.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import psutil
from gradio_client import Client
from gradio_client.utils import apply_diff
from playwright.sync_api import Browser, Page, sync_playwright

from dpexplore.models import DEFAULT_MODEL, load_model
from dpexplore.targets import entropy
from dpexplore.tuning import Engine, TuneConfig
from dpexplore.tuning.engine.fairness import Owner
from tests.browser.driver import chromium_path
from tests.live_server import free_port, start_server

SETTLING_SECONDS = 10.0
"""Until the last one has begun; then it is counted."""
PATIENCE_MS = 300_000
_COUNT = """() => {
  window.drawn = [];
  const chart = document.querySelector('#live-chart [data-chart]');
  new MutationObserver(() => window.drawn.push(performance.now() / 1000))
    .observe(chart, { attributes: true, attributeFilter: ['data-points'] });
}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=4, help="real pages in one headless Chromium")
    parser.add_argument("--others", type=int, default=26, help="pages that do not draw")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long everybody tunes at the same time")
    options = parser.parse_args()
    print(f"the engine alone: {engine_alone(options.pages + options.others):.2f} steps a second", flush=True)
    port = free_port()
    server = start_server(port)
    try:
        return measure(server, f"http://127.0.0.1:{port}", options)
    finally:
        server.kill()
        server.wait()


def engine_alone(rows: int, steps: int = 10) -> float:
    """Steps a second of so many people's rows, without a page."""
    lm = load_model(DEFAULT_MODEL)
    engine = Engine(lm)
    for seed in range(rows):
        config = TuneConfig(restarts=1, steps=10**6, seed=seed, patience=None)
        engine.submit(entropy(bits=7, seed=seed).build(lm), config, owner=Owner(str(seed)))
    engine.step()
    begin = time.perf_counter()
    for _ in range(steps):
        engine.step()
    return steps / (time.perf_counter() - begin)


def measure(server: subprocess.Popen[bytes], address: str, options: argparse.Namespace) -> int:
    together = options.seconds + SETTLING_SECONDS + 5
    others = [Other(address, number, together) for number in range(options.others)]
    for other in others:  # a page asks for its target's floor when the target is set, long before Tune
        Client(address, verbose=False).predict(other.recipe, api_name="/floor")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        pages = [open_page(chromium, address, 1000 + number) for number in range(options.pages)]
        for other in others:
            other.thread.start()
        for page in pages:
            page.click("#tune")
        time.sleep(SETTLING_SECONDS)
        for page in pages:
            page.evaluate(_COUNT)
        begin, used = time.monotonic(), processor_seconds(server.pid)
        time.sleep(options.seconds)
        end, used_then = time.monotonic(), processor_seconds(server.pid)
        drawn = [page.evaluate("[...window.drawn]") for page in pages]
        leaks = [leak for number, page in enumerate(pages) if (leak := foreign(page, 1000 + number))]
        chromium.close()
    for other in others:
        other.thread.join()
    leaks += [leak for other in others if (leak := other.foreign())]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {end - begin:.0f} s, one restart each")
    for who, seconds in used_then.items():
        print(f"{who}: {(seconds - used[who]) / (end - begin):.2f} cores")
    _tell("pages", drawn, end - begin)
    told = [[when for when in other.times if begin <= when <= end] for other in others]
    _tell("that do not draw", told, end - begin)
    print(f"somebody else's target, settings or result: {len(leaks)} of {len(pages) + len(others)}")
    for leak in leaks:
        print(f"  {leak}")
    return 1 if leaks or server.poll() is not None else 0


def processor_seconds(server: int) -> dict[str, float]:
    """Processor time used so far by the server and by all that looks at it."""
    here, used = psutil.Process(), {"server": 0.0, "browser": 0.0, "others": 0.0}
    for process in [here, *here.children(recursive=True)]:
        kind = "server" if process.pid == server else "others" if process == here else "browser"
        times = process.cpu_times()
        used[kind] += times.user + times.system
    return used


class Other:
    """A page without a picture: a session of its own that presses Tune with a target of its own and reads on."""

    def __init__(self, address: str, number: int, seconds: float) -> None:
        self.number = number
        self.recipe = f"entropy(bits=7, seed={number})"
        self.times: list[float] = []
        self.asked = {"recipe": self.recipe, "restarts": 1, "steps": 10**6, "seed": number}
        self.asked |= {"model-name": DEFAULT_MODEL, "knob-patience": None, "knob-seconds": round(seconds)}
        self.status = ""
        self.thread = threading.Thread(target=self._run, args=(address,), daemon=True)

    def foreign(self) -> str:
        """What this one got that is not its own; empty if nothing."""
        return "" if self.recipe in self.status else f"{self.number} of those that do not draw got {self.status!r}"

    def _run(self, address: str) -> None:
        with httpx.Client(base_url=address, timeout=300) as http:
            config, session = http.get("/config").json(), uuid.uuid4().hex
            for _ in _messages(http, session, *_handler(config, "model-choice", "input", {})):
                pass
            live = None
            for told, _, status, *_ in _messages(http, session, *_handler(config, "tune", "click", self.asked)):
                before = live  # at first the values themselves come, then what changes in them
                live = told if live is None else apply_diff(live, told)
                self.status = status if before is None else apply_diff(self.status, status)
                if live != before:
                    self.times.append(time.monotonic())


def _handler(config: dict[str, Any], name: str, event: str, asked: dict[str, Any]) -> tuple[int, list[Any]]:
    """The handler of a control's event, and its data: what is asked, and the other controls as they stand."""
    controls = {component["id"]: component["props"] for component in config["components"]}
    (control,) = [number for number, props in controls.items() if props.get("elem_id") == name]
    (handler,) = [one for one in config["dependencies"] if [control, event] in one["targets"]]
    inputs = [controls[number] for number in handler["inputs"]]
    return handler["id"], [asked.get(props.get("elem_id"), props.get("value")) for props in inputs]


def _messages(http: httpx.Client, session: str, handler: int, data: list[Any]) -> Iterator[list[Any]]:
    """What a handler tells a session's page, until it has ended."""
    asked = {"fn_index": handler, "data": data, "event_data": None, "trigger_id": None, "session_hash": session}
    http.post("/gradio_api/queue/join", json=asked).raise_for_status()
    with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            message: dict[str, Any] = json.loads(line[5:]) if line.startswith("data:") else {"msg": ""}
            if message["msg"] == "close_stream":
                return
            if message["msg"] == "process_generating":
                yield message["output"]["data"]


def open_page(chromium: Browser, address: str, number: int) -> Page:
    """A page of its own session, set to a target of its own."""
    page = chromium.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address, timeout=PATIENCE_MS)
    page.locator("#target-facts [data-bits]").wait_for()
    page.fill("#recipe textarea", f"entropy(bits=7, seed={number})")
    for name, value in (("restarts", 1), ("steps", 100_000), ("seed", number)):
        page.fill(f"#{name} input", str(value))
    page.get_by_role("button", name="Advanced").click()
    page.fill("#knob-patience input", "0")
    page.get_by_role("button", name="Advanced").click()
    page.wait_for_function("!document.querySelector('#tune').disabled")
    return page


def foreign(page: Page, number: int) -> str:
    """What a page shows that is not its own, once its run has been stopped; empty if nothing."""
    if page.locator("#stop").is_enabled():
        page.click("#stop")
    page.locator("#status [data-status]").wait_for()
    told = page.locator("#status").inner_text()
    return "" if f"entropy(bits=7, seed={number})" in told else f"page {number} shows {told!r}"


def _tell(who: str, updates: list[list[float]], seconds: float) -> None:
    """How often they were told something, and how long they waited for it at most."""
    if not updates:
        return
    rates = [len(times) / seconds for times in updates]
    waits = [max((later - sooner for sooner, later in pairwise(times)), default=seconds) for times in updates]
    print(
        f"{len(updates)} {who}: updates a second: lowest {min(rates):.2f}, median {statistics.median(rates):.2f}; "
        f"longest wait of each: median {statistics.median(waits):.2f} s, longest {max(waits):.2f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
