"""Many people tuning at the same time on one model: how many updates a second does each of them see?

    python -m tests.benchmarks.browsers [--pages 4] [--clients 26] [--seconds 60]

Starts a server, opens pages in one headless Chromium and streams of gradio_client beside them, lets each tune one
restart of a target of its own, and checks at the end that everybody got their own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

from gradio_client import Client
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser import chromium_path
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
    parser.add_argument("--clients", type=int, default=26, help="streams of gradio_client beside them")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long everybody tunes at the same time")
    options = parser.parse_args()
    port = free_port()
    server = start_server(port)
    try:
        return measure(server, f"http://127.0.0.1:{port}", options)
    finally:
        server.kill()
        server.wait()


def measure(server: subprocess.Popen[bytes], address: str, options: argparse.Namespace) -> int:
    Client(address, verbose=False).predict("entropy(bits=7, seed=0)", api_name="/target")  # the model is there
    together = options.seconds + SETTLING_SECONDS
    streams = [Stream(address, number, together) for number in range(options.clients)]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        pages = [open_page(chromium, address, 1000 + number) for number in range(options.pages)]
        for stream in streams:
            stream.thread.start()
        for page in pages:
            page.click("#tune")
        time.sleep(SETTLING_SECONDS)
        begin = time.monotonic()
        for page in pages:
            page.evaluate(_COUNT)
        time.sleep(options.seconds)
        drawn = [page.evaluate("window.drawn.length") for page in pages]
        end = time.monotonic()
        leaks = [leak for number, page in enumerate(pages) if (leak := foreign(page, 1000 + number))]
        chromium.close()
    for stream in streams:
        stream.thread.join()
    seen = [sum(begin <= when <= end for when in stream.times) / (end - begin) for stream in streams]
    leaks += [leak for stream in streams if (leak := stream.foreign())]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {options.seconds:.0f} s, one restart each")
    _tell("pages, redraws of the live chart a second", [count / (end - begin) for count in drawn])
    _tell("clients, rows a second", seen)
    print(f"somebody else's target, settings or result: {len(leaks)} of {len(pages) + len(streams)}")
    for leak in leaks:
        print(f"  {leak}")
    return 1 if leaks or server.poll() is not None else 0


class Stream:
    """One session of gradio_client, tuning a target of its own until the clock ends it."""

    def __init__(self, address: str, number: int, seconds: float) -> None:
        self.number, self.seconds = number, seconds
        self.recipe = f"entropy(bits=7, seed={number})"
        self.times: list[float] = []
        self.last: dict[str, Any] = {}
        self.thread = threading.Thread(target=self._run, args=(address,), daemon=True)

    def foreign(self) -> str:
        """What this one got that is not its own; empty if nothing."""
        if self.last.get("event") != "result":
            return f"client {self.number} got no result: {self.last}"
        capsule = self.last["capsule"]
        told = capsule["target"]["recipe"], capsule["config"]["seed"]
        return "" if told == (self.recipe, self.number) else f"client {self.number} got {told}"

    def _run(self, address: str) -> None:
        client = Client(address, verbose=False)
        settings = {"patience": None, "seconds": round(self.seconds)}
        job: Any = client.submit(
            self.recipe, restarts=1, steps=10**6, seed=self.number, settings=settings, api_name="/tune"
        )
        for row in job:
            self.times.append(time.monotonic())
            self.last = row
        client.close()


def open_page(chromium: Browser, address: str, number: int) -> Page:
    """A page of its own session, set to a target of its own."""
    page = chromium.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address, timeout=PATIENCE_MS)
    page.locator("#target-facts [data-bits]").wait_for()
    page.fill("#recipe textarea", f"entropy(bits=7, seed={number})")
    for name, value in (("restarts", 1), ("steps", 100_000), ("seed", number)):
        page.fill(f"#{name} input", str(value))
    page.keyboard.press("Tab")
    page.wait_for_function("!document.querySelector('#tune').disabled")
    return page


def foreign(page: Page, number: int) -> str:
    """What a page shows that is not its own, once its run has been stopped; empty if nothing."""
    if page.locator("#stop").is_enabled():
        page.click("#stop")
    page.locator("#status [data-status]").wait_for()
    told = page.locator("#status").inner_text()
    return "" if f"entropy(bits=7, seed={number})" in told else f"page {number} shows {told!r}"


def _tell(what: str, values: list[float]) -> None:
    if values:
        print(f"{what}: lowest {min(values):.2f}, median {statistics.median(values):.2f}, highest {max(values):.2f}")


if __name__ == "__main__":
    sys.exit(main())
