"""Thirty sessions for five minutes, starting, stopping and breaking off at random: does the server stay as it was?

    python -m tests.benchmarks.soak [--sessions 30] [--minutes 5]

Every session loops: it starts a run of random settings, then lets it end, cancels it, or breaks the connection off in
the middle. After a time of warming up, and again at the end, the server is left alone and its memory, threads, open
files and runs that still move are counted. Every row of every stream is checked.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import psutil
from gradio_client import Client
from gradio_client.client import Job

from dpexplore.ui.page import SESSIONS_KEPT
from tests.live_server import free_port, start_server

WARM_UP_SECONDS = 60.0
MOST_SETTLING_SECONDS = 120.0
IDLE_SECONDS = 12.0
"""Longer than the ten seconds after which idle threads of the server's pool are let go, at its next call."""
IDLE_SHARE = 0.1
"""Of one core: a server that uses less has nothing left to do, though Gradio's queue looks for work all the time."""
POLL_SECONDS = 0.02
TOLERANCE = 0.05
BAD: dict[str, Any] = {"recipe": "entropy(bits=99)"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--model", default="", help="name or folder (default: the default model)")
    options = parser.parse_args()
    port = free_port()
    server = start_server(port, *(["--model", options.model] if options.model else []))
    try:
        return soak(server, f"http://127.0.0.1:{port}", options.sessions, 60 * options.minutes)
    finally:
        server.kill()
        server.wait()


def soak(server: subprocess.Popen[bytes], address: str, sessions: int, seconds: float) -> int:
    Client(address, verbose=False).predict("entropy(bits=7, seed=0)", api_name="/target")  # the model is there
    process = psutil.Process(server.pid)
    _say(f"warming up for {WARM_UP_SECONDS:.0f} s")
    bare = process.memory_info().rss
    for _ in range(SESSIONS_KEPT):  # so many are remembered at any time, and cost memory
        _visit(address)
    _say(f"{(process.memory_info().rss - bare) / SESSIONS_KEPT / 2**20:.2f} MiB for each session that Gradio remembers")
    _let_loose(address, sessions, WARM_UP_SECONDS, seed=0)
    before = _counts(process, address)
    _say(f"{sessions} sessions for {seconds:.0f} s")
    tally = _let_loose(address, sessions, seconds, seed=1)
    after = _counts(process, address)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {sessions} sessions for {seconds:.0f} s")
    print(", ".join(f"{name} {count:,}" for name, count in sorted(tally.items()) if not name.startswith("!")))
    for name, unit in (("memory", "MiB"), ("threads", ""), ("files", "")):
        change = (after[name] - before[name]) / before[name]
        print(f"{name}: {before[name]:,.0f} {unit} before, {after[name]:,.0f} {unit} after ({change:+.1%})")
    print(f"runs that still move: {before['runs']:.0f} before, {after['runs']:.0f} after")
    problems = [name for name in tally if name.startswith("!")]
    for name in problems:
        print(f"{tally[name]} times: {name[1:]}")
    memory_back = abs(after["memory"] / before["memory"] - 1) <= TOLERANCE
    leaks = any(after[name] > before[name] + 2 for name in ("threads", "files")) or after["runs"] > 0
    print("well" if memory_back and not leaks and not problems else "NOT well")
    return 0 if memory_back and not leaks and not problems else 1


def _counts(process: psutil.Process, address: str) -> dict[str, float]:
    """The server's memory, threads and open files once it has been left alone until it has nothing left to do."""
    deadline = time.monotonic() + MOST_SETTLING_SECONDS
    _say("left alone")
    process.cpu_percent()
    while time.monotonic() < deadline and (used := process.cpu_percent(IDLE_SECONDS)) > 100 * IDLE_SHARE:
        _say(f"{used / 100:.2f} cores, {_runs(address)} runs")
    Client(address, verbose=False).predict(api_name="/models")
    return {
        "memory": process.memory_info().rss / 2**20,
        "threads": process.num_threads(),
        "files": process.num_fds(),
        "runs": _runs(address),
    }


def _visit(address: str) -> None:
    """A program that asks one short question."""
    url = f"{address}/gradio_api/call/models"
    request = urllib.request.Request(url, b'{"data": []}', {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}", timeout=60) as answer:
        answer.read()


def _runs(address: str) -> int:
    with urllib.request.urlopen(f"{address}/health", timeout=60) as answer:
        return json.load(answer)["runs"]


def _say(text: str) -> None:
    print(f"{time.strftime('%X')} {text}", file=sys.stderr, flush=True)


def _let_loose(address: str, sessions: int, seconds: float, seed: int) -> Counter[str]:
    """All sessions at once; what they did, and, with a `!` in front, what they found wrong."""
    tally, gate, end = Counter[str](), threading.Lock(), time.monotonic() + seconds

    def note(name: str) -> None:
        with gate:
            tally[name] += 1

    def session(number: int) -> None:
        draw = random.Random(1000 * seed + number)
        while time.monotonic() < end:
            act = draw.choices((finish, cancel, break_off, ask_for_too_much), (4, 3, 3, 1))[0]
            try:
                problem = act(address, draw, note)
            except Exception as error:
                problem = f"{act.__name__}: {type(error).__name__}: {error}"
            note(act.__name__.replace("_", " "))
            if problem:
                note(f"!{problem}")

    threads = [threading.Thread(target=session, args=(number,), daemon=True) for number in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def _settings(draw: random.Random, steps: int) -> dict[str, Any]:
    return {
        "recipe": f"entropy(bits={draw.choice((2, 5, 8))}, seed={draw.randrange(40)})",
        "method": draw.choice(("soft", "soft", "hard")),
        "length": draw.choice((2, 5)),
        "restarts": draw.choice((1, 1, 2)),
        "steps": steps,
        "seed": draw.randrange(1000),
    }


def _told(job: Job) -> Iterator[Any]:
    """What a job tells, and its error, if it ends with one: its own iterator then waits for ever."""
    seen = 0
    while True:
        ended, told = job.done(), job.outputs()
        yield from told[seen:]
        seen = len(told)
        if ended:
            job.result()
            return
        time.sleep(POLL_SECONDS)


def finish(address: str, draw: random.Random, note: Any) -> str:
    """A run from beginning to end."""
    asked = _settings(draw, steps=draw.choice((3, 8)))
    client = Client(address, verbose=False)
    checker = Checker(asked)
    for row in _told(client.submit(**asked, api_name="/tune")):
        checker.take(row)
        note("rows")
    client.close()
    return checker.problem or ("" if checker.ended else "a stream ended without its result")


def cancel(address: str, draw: random.Random, note: Any) -> str:
    """A run that is cancelled after some rows."""
    asked = _settings(draw, steps=100_000)
    client, checker, most = Client(address, verbose=False), Checker(asked), draw.randrange(6)
    job = client.submit(**asked, api_name="/tune")
    try:
        for row in _told(job):
            checker.take(row)
            note("rows")
            if checker.rows > most:
                job.cancel()
                break
    except CancelledError:
        pass
    client.close()
    return checker.problem


def break_off(address: str, draw: random.Random, note: Any) -> str:
    """A program that dies in the middle: its connection is closed without a word."""
    asked = _settings(draw, steps=100_000)
    names = ("recipe", "method", "length", "restarts", "steps", "seed")
    rest = ["", "", "paper", None]  # slots, model, preset, settings: plain HTTP has no defaults
    body = json.dumps({"data": [*(asked[name] for name in names), *rest]}).encode()
    url = f"{address}/gradio_api/call/tune"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        event = json.load(answer)["event_id"]
    most = draw.randrange(1, 20)
    with urllib.request.urlopen(f"{url}/{event}", timeout=300) as stream:
        for number, line in enumerate(stream):
            if line.startswith(b"event: error"):
                return f"a stream ended with {stream.readline()!r}"
            if number > most:
                break
    return ""


def ask_for_too_much(address: str, draw: random.Random, note: Any) -> str:
    """What cannot be is answered by a sentence."""
    client = Client(address, verbose=False)
    try:
        list(_told(client.submit(**BAD, api_name="/tune")))
        client.predict(**BAD, api_name="/target")
    except Exception as error:
        return "" if "99" in str(error) else f"a bad recipe is answered with {error}"
    finally:
        client.close()
    return "a bad recipe is taken"


class Checker:
    """Whether the rows of a stream are what they should be, and its own."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked = asked
        self.rows = self._step = 0
        self.ended = False
        self.problem = ""

    def take(self, row: dict[str, Any]) -> None:
        self.rows += 1
        if self.ended:
            self.problem = "a row came after the result"
        elif row["event"] == "result":
            self.ended = True
            told = {**row["capsule"]["config"], "recipe": row["capsule"]["target"]["recipe"]}
            if any(told[name] != value for name, value in self.asked.items()):
                self.problem = f"somebody else's result: {told}"
        elif row["event"] != "step" or row["step"] <= self._step:
            self.problem = f"a row out of order: {row}"
        else:
            self._step = row["step"]
            numbers = [kl for kl in row["kl_nats"] if kl is not None]
            if len(row["kl_nats"]) != self.asked["restarts"] or not all(map(math.isfinite, numbers)):
                self.problem = f"a row with wrong numbers: {row}"


if __name__ == "__main__":
    sys.exit(main())
