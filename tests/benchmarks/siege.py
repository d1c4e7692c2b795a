"""A public server with 3 GiB of memory: honest visitors, and hostile ones that try every attack that is known.

    python -m tests.benchmarks.siege --minutes 5

The server is a process of its own (`app.py --public`) in a cgroup of so much memory, as a container would be; where
none can be made (that takes root), or with `--ulimit`, under RLIMIT_DATA, which counts what is reserved: weights that
lie in a mapped file and the stacks of threads, too. Each
visitor has an address of its own, which the server takes from the header of a trusted proxy. For a fifth of the time
the honest ones are alone, then the hostile ones come. Printed are the honest ones' waiting times, how fast a run moves
that goes on beside them, and the server's memory, threads and open files before, during and after. Ends with exit
code 0 if no answer was wrong, a 5xx or a traceback, and nothing is held afterwards.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import socket
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from dpexplore import TuneConfig, load_model, parse_recipe, tune
from dpexplore.models import DEFAULT_MODEL
from tests.benchmarks.fuzz import attack as fuzz_once
from tests.benchmarks.soak import Checker
from tests.raw_client import PublicServer, RawClient, public_server

ALONE = 0.2
"""Share of the time before the hostile ones come."""
SETTLING_SECONDS = 40.0
"""Longer than the time of grace of runs, and than a silent connection may last."""
THINKING_SECONDS = (1.0, 4.0)
LIMIT_GIB = 3.0
KEPT = 1.25
"""Memory afterwards, in parts of what it was while the honest ones were alone, that is no leak: charts and targets."""
TARGETS = ("entropy(bits={}, seed={})", "entropy(bits={}, outliers=2, seed={})")
ENDLESS = ["entropy(bits=3)", "soft", 5, 1, 1000, 0, "", "", "paper", {"patience": None}]


class Log:
    """What everybody saw, in two phases."""

    def __init__(self) -> None:
        self.phase = "alone"
        self.waits: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.counts: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self._gate = threading.Lock()

    def wait(self, kind: str, seconds: float) -> None:
        with self._gate:
            self.waits[self.phase, kind].append(seconds)

    def count(self, name: str) -> None:
        with self._gate:
            self.counts[f"{self.phase}: {name}"] += 1

    def problem(self, what: str) -> None:
        with self._gate:
            self.problems[what[:300]] += 1


# Honest visitors.


def ask_target(client: RawClient, draw: random.Random) -> str:
    bits = draw.choice((2.0, 5.0, 8.0))
    name, text = client.call("target", draw.choice(TARGETS).format(bits, draw.randrange(50)), "")[-1]
    if name != "complete":
        return text
    told = json.loads(text)[0]["entropy_bits"]
    return "" if abs(told - bits) < 1e-3 else f"!a target of {bits} bits has {told}"


def ask_floor(client: RawClient, draw: random.Random) -> str:
    name, text = client.call("floor", TARGETS[0].format(draw.choice((3, 6, 9)), draw.randrange(10)), "")[-1]
    if name != "complete":
        return text
    told = json.loads(text)[0]
    return "" if told["lower_bound_nats"] <= told["kl_nats"] + 1e-6 else f"!a floor above what is reached: {told}"


def ask_reach(client: RawClient, draw: random.Random) -> str:
    name, text = client.call("reach", draw.choice((" the", " sea", " Paris")), "", "")[-1]
    return (
        text if name != "complete" else "" if json.loads(text)[0]["can"] else f"!a common word cannot be said: {text}"
    )


def ask_run(client: RawClient, draw: random.Random) -> str:
    recipe = TARGETS[0].format(draw.choice((2, 5)), 1)
    asked = {"recipe": recipe, "method": "soft", "length": 2, "restarts": 1, "steps": 4, "seed": draw.randrange(99)}
    checker = Checker(asked | {"recipe": str(parse_recipe(recipe))})
    for name, text in client.call("tune", *asked.values(), "", "", "paper", None):
        if name == "error":
            return text
        for row in json.loads(text) if text != "null" else ():
            if not checker.ended:  # the last row comes again with the end
                checker.take(row)
    return f"!{checker.problem}" if checker.problem else "" if checker.ended else "!a run without a result"


HONEST: dict[str, tuple[Callable[[RawClient, random.Random], str], int]] = {
    "target": (ask_target, 6),
    "floor": (ask_floor, 2),
    "reach": (ask_reach, 1),
    "short run": (ask_run, 2),
}


def honest(url: str, number: int, log: Log, end: threading.Event) -> None:
    draw = random.Random(number)
    with visitor(url, f"10.0.0.{number + 1}") as client:
        while not end.wait(draw.uniform(*THINKING_SECONDS)):
            (kind,) = draw.choices(list(HONEST), [weight for _, weight in HONEST.values()])
            phase, began = log.phase, time.monotonic()
            try:
                told = HONEST[kind][0](client, draw)
            except (httpx.HTTPError, LookupError, ValueError, TypeError) as error:
                told = f"!{kind}: {type(error).__name__}: {error}"
            if end.is_set():
                return
            if told.startswith("!"):
                log.problem(told[1:])
            elif told:
                log.count(f"{kind} refused")
            elif phase == log.phase:
                log.wait(kind, time.monotonic() - began)


def ask_health(url: str, log: Log, end: threading.Event) -> None:
    with httpx.Client() as client:
        while not end.wait(1.0):
            began = time.monotonic()
            try:
                client.get(f"{url}/health", timeout=60).raise_for_status()
            except httpx.HTTPError as error:
                log.problem(f"/health: {type(error).__name__}: {error}")
            else:
                log.wait("/health", time.monotonic() - began)


def tune_on(url: str, log: Log, end: threading.Event) -> None:
    """A visitor who keeps tuning: the time between steps of her run."""
    with visitor(url, "10.0.2.1") as client:
        while not end.is_set():
            try:
                event = client.http.post("/call/tune", json={"data": ENDLESS}).json()["event_id"]
                with client.http.stream("GET", f"/call/tune/{event}") as stream:
                    before: tuple[float, int] | None = None
                    for line in stream.iter_lines():
                        if end.is_set():
                            return
                        if line.startswith('data: [{"event": "step"'):
                            now = time.monotonic(), json.loads(line[6:])[0]["step"]
                            if before is not None and now[1] > before[1]:
                                log.wait("a step of a run", (now[0] - before[0]) / (now[1] - before[1]))
                            before = now
            except (httpx.HTTPError, ValueError, KeyError) as error:
                if not end.is_set():
                    log.problem(f"a long run: {type(error).__name__}: {error}")


# Hostile visitors.


class Weapons:
    """What attacks send, made once."""

    def __init__(self) -> None:
        lm = load_model(DEFAULT_MODEL)
        target = parse_recipe("entropy(bits=3)").build(lm)
        config = TuneConfig(method="hard", length=2, restarts=1, steps=2)
        self.capsule = tune(lm, target, config).result.capsule

    def with_ids(self, count: int) -> bytes:
        result = {**self.capsule["result"], "prompt_ids": [5] * count}
        return json.dumps({**self.capsule, "result": result}).encode()

    def with_history(self, rows: int) -> bytes:
        history = {name: column[:1] * rows for name, column in self.capsule["history"].items()}
        return json.dumps({**self.capsule, "history": history}).encode()


Attack = Callable[[RawClient, random.Random, Weapons], object]


def long_outcome(client: RawClient, draw: random.Random, _weapons: Weapons) -> None:
    client.call("target", f'strings({{"{"7" * draw.choice((300, 2_000, 19_900))}": 1}}, request="x")', "")


def long_prompt_in_a_capsule(client: RawClient, draw: random.Random, weapons: Weapons) -> None:
    open_capsule(client, weapons.with_ids(draw.choice((100, 4_000))))


def large_tables(client: RawClient, draw: random.Random, _weapons: Weapons) -> None:
    name, data = draw.choice(
        (
            ("one.json", b'{"' + b"a" * 18_000_000 + b'": 1}'),
            ("many.csv", b"id,p\n" + b"1,1\n" * draw.choice((100_000, 2_000_000))),
            ("deep.json", b"[" * 1_000_000),
        )
    )
    client.call("target", f'file("{client.upload(name, data)}")', "")


def long_texts(client: RawClient, draw: random.Random, _weapons: Weapons) -> None:
    captures = ".mix(".join(["capture('x')"] + [f"capture('{'7' * 700}'), 0.5)"] * draw.choice((2, 24)))
    client.call("target", draw.choice((captures, f'capture("{"7" * 1_800}")', "order(" + '" a",' * 40 + '" b")')), "")
    client.call("tune", *ENDLESS[:9], {"init": "text", "init_text": "a" * draw.choice((10_000, 200_000, 3_900_000))})


def large_capsules_to_compare(client: RawClient, draw: random.Random, weapons: Weapons) -> None:
    data = weapons.with_history(draw.choice((5_000, 600_000)))
    path = client.upload("large.json", data)
    files = [{"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "large.json"}] * 12
    press(client, "compare-add", files)


def runs_that_nobody_reads(client: RawClient, _draw: random.Random, _weapons: Weapons) -> None:
    for _ in range(66):
        client.http.post("/call/tune", json={"data": ENDLESS})


def uploads_without_a_length(client: RawClient, draw: random.Random, _weapons: Weapons) -> None:
    def endless() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.npz"\r\n\r\n'
        for _ in range(draw.choice((3, 60))):
            yield b"a" * 2**20

    kind = {"Content-Type": "multipart/form-data; boundary=x", "X-Forwarded-For": f"9.9.9.{draw.randrange(255)}"}
    client.http.post("/upload", content=endless(), headers=kind)


def many_floors(client: RawClient, draw: random.Random, _weapons: Weapons) -> None:
    for seed in range(74):
        client.http.post("/call/floor", json={"data": [TARGETS[0].format(4, draw.randrange(10**6) + seed), ""]})


def foreign_models(client: RawClient, draw: random.Random, _weapons: Weapons) -> None:
    client.call("target", "entropy(bits=3)", draw.choice(("random:gpt2", "/dev/zero", "../..", "evil/model")))
    client.http.post("/login", data={"username": "admin", "password": str(draw.random())})


def malformed(client: RawClient, draw: random.Random, _weapons: Weapons) -> None:
    body = draw.choice(
        (b"[" * 100_000, b'{"data": [NaN]}', b'{"data": {"a": 1}}', b"\xff", b'{"data": "' + b"a" * 10**6)
    )
    path = draw.choice(("/call/target", "/call/v2/target", "/run/target", "/queue/join", "/mcp/"))
    answer = client.http.post(path, content=body, headers={"Content-Type": "application/json"})
    if answer.status_code >= 500:
        raise AssertionError(f"{path}: {answer.status_code}")


def slow_bodies(client: RawClient, draw: random.Random, _weapons: Weapons) -> None:
    place = urlsplit(str(client.http.base_url))
    sockets = [socket.create_connection((place.hostname, place.port)) for _ in range(40)]
    head = b"POST /gradio_api/call/target HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
    for one in sockets:
        one.sendall(head + (b"\r\n{" if draw.random() < 0.5 else b""))
    time.sleep(draw.uniform(1, 30))
    for one in sockets:
        one.close()


def oversized_runs(client: RawClient, draw: random.Random, _weapons: Weapons) -> None:
    for place, value in ((3, 100_000), (4, 10**9), (2, 100_000), (6, "soft*1000 hard*1000")):
        client.call("tune", *ENDLESS[:place], value, *ENDLESS[place + 1 :], most=3)


def leave_in_the_middle(client: RawClient, draw: random.Random, _weapons: Weapons) -> None:
    recipe = draw.choice(('order(" the", " a", " an")', f'capture("{"7" * 1_800}")', "entropy(bits=7, step=0.01)"))
    for _ in range(10):
        event = client.http.post("/call/floor", json={"data": [recipe, ""]}).json()["event_id"]
        with client.http.stream("GET", f"/call/floor/{event}"):
            time.sleep(0.2)


def random_requests(client: RawClient, draw: random.Random, _weapons: Weapons) -> None:
    named = client.http.get("/info").json()["named_endpoints"]
    endpoints = {name.removeprefix("/"): schema for name, schema in named.items()}
    for _ in range(10):
        end, text = fuzz_once(client, endpoints, draw.randrange(10**9))
        if end.startswith("http 5") or "Traceback" in text:
            raise AssertionError(f"{end}: {text}")


ATTACKS: dict[Attack, tuple[int, ...]] = {
    long_outcome: (1,),
    long_prompt_in_a_capsule: (2,),
    large_tables: (3,),
    long_texts: (3,),
    large_capsules_to_compare: (4, 8),
    runs_that_nobody_reads: (5,),
    uploads_without_a_length: (6,),
    many_floors: (7,),
    foreign_models: (10, 11),
    malformed: (15,),
    slow_bodies: (16,),
    oversized_runs: (18,),
    leave_in_the_middle: (2,),
    random_requests: (15,),
}
"""Attack -> rows of the list of attacks. The others need another server, its disk or a signal: 9, 12, 13, 14, 17."""


def open_capsule(client: RawClient, data: bytes) -> None:
    path = client.upload("sent.json", data)
    press(client, "open-capsule", {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "sent.json"})


def press(client: RawClient, elem_id: str, value: Any) -> None:
    """Send a value to every handler that reads the component."""
    (number,) = [one["id"] for one in client.config["components"] if one["props"].get("elem_id") == elem_id]
    for handler in client.config["dependencies"]:
        if handler["backend_fn"] and number in handler["inputs"]:
            client.handler(handler["id"], [value if each == number else None for each in handler["inputs"]])


def hostile(url: str, number: int, weapons: Weapons, log: Log, end: threading.Event) -> None:
    draw = random.Random(1000 + number)
    with visitor(url, f"10.0.1.{number + 1}") as client:
        while not end.is_set():
            attack = draw.choice(list(ATTACKS))
            log.count(attack.__name__.replace("_", " "))
            try:
                attack(client, draw, weapons)
            except AssertionError as error:
                log.problem(f"{attack.__name__}: {error}")
            except (httpx.HTTPError, OSError, LookupError, ValueError, TypeError):  # the server may hang up on it
                pass


def visitor(url: str, address: str) -> RawClient:
    client = RawClient(url)
    client.http.headers["X-Forwarded-For"] = address
    return client


# The server.


@contextmanager
def bounded(most: int, *, ulimit: bool = False) -> Iterator[tuple[str, Callable[[], object]]]:
    """How a process's memory is bounded, and what it calls first for that."""
    if ulimit:
        yield "RLIMIT_DATA", lambda: resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        return
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    kind, limit = ("memory", "memory.limit_in_bytes") if "memory" in own else ("", "memory.max")
    group = Path("/sys/fs/cgroup") / kind / own[kind].lstrip("/") / f"siege-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(most))
    except OSError:
        yield "RLIMIT_DATA", lambda: resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        return
    try:
        yield f"cgroup, {limit}", lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        with suppress(OSError):
            group.rmdir()


def held(server: PublicServer) -> dict[str, float]:
    process = psutil.Process(server.process.pid)
    with process.oneshot():
        memory = process.memory_info().rss / 2**20
        return {"memory MiB": memory, "threads": process.num_threads(), "open files": process.num_fds()}


def siege(server: PublicServer, visitors: int, enemies: int, seconds: float, weapons: Weapons) -> int:
    log, end, at_most = Log(), threading.Event(), defaultdict[str, float](float)
    parts = [threading.Thread(target=honest, args=(server.url, number, log, end)) for number in range(visitors)]
    parts += [threading.Thread(target=each, args=(server.url, log, end)) for each in (ask_health, tune_on)]
    for part in parts:
        part.start()
    before: dict[str, float] = {}
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds and server.process.poll() is None:
        if log.phase == "alone" and now > ALONE * seconds:
            before, log.phase = held(server), "besieged"
            foes = [
                threading.Thread(target=hostile, args=(server.url, number, weapons, log, end), daemon=True)
                for number in range(enemies)
            ]
            for foe in foes:
                foe.start()
        for name, value in held(server).items():
            at_most[name] = max(at_most[name], value)
        time.sleep(0.5)
    end.set()
    if server.process.poll() is not None:
        print(f"the server ended with {server.process.returncode}")
        return 1
    for part in parts:
        part.join(120)
    time.sleep(SETTLING_SECONDS)
    after = held(server)
    runs = runs_of(server, log)
    return report(log, before, dict(at_most), after, runs, server.log.read_text(encoding="utf-8"))


def runs_of(server: PublicServer, log: Log) -> int:
    """Runs that still move; -1 if the server does not say."""
    try:
        return httpx.get(f"{server.url}/health", timeout=60).json()["runs"]
    except (httpx.HTTPError, ValueError) as error:
        log.problem(f"/health at the end: {type(error).__name__}: {error}")
        return -1


def error_of(line: dict[str, Any]) -> str:
    """An error of the server's log: what happened, and where."""
    return f"logged: {line['event'].splitlines()[0]} ({line.get('error', '')} at {line.get('at', [''])[-1]})"


def report(
    log: Log, before: dict[str, float], at_most: dict[str, float], after: dict[str, float], runs: int, text: str
) -> int:
    print(f"{'seconds':<18}{'phase':<10}{'answers':>8}{'median':>8}{'90 %':>8}{'99 %':>8}{'worst':>8}")
    for (phase, kind), waits in sorted(log.waits.items(), key=lambda item: (item[0][1], item[0][0])):
        inorder = sorted(waits)
        shares = [inorder[math.ceil(part * len(waits)) - 1] for part in (0.5, 0.9, 0.99, 1)]
        print(f"{kind:<18}{phase:<10}{len(waits):>8}" + "".join(f"{wait:>8.2f}" for wait in shares))
    for name in before:
        print(f"{name}: {before[name]:,.0f} before, {at_most[name]:,.0f} at most, {after[name]:,.0f} after")
    print(f"runs that still move: {runs}")
    print(", ".join(f"{name} {count}" for name, count in sorted(log.counts.items())))
    lines = [json.loads(line) for line in text.splitlines()]
    logged = Counter(error_of(line) for line in lines if line["level"] == "error")
    for name, count in (log.problems + logged).items():
        print(f"{count} times: {name}")
    kept = after["memory MiB"] <= KEPT * before["memory MiB"]
    back = after["threads"] <= before["threads"] + 4 and after["open files"] <= before["open files"] + 4
    well = kept and back and runs == 0 and not log.problems and not logged
    print("well" if well else "NOT well")
    return 0 if well else 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--visitors", type=int, default=30)
    parser.add_argument("--enemies", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=LIMIT_GIB, help="of memory, for the server")
    parser.add_argument("--ulimit", action="store_true", help="bound it as `ulimit -d` does, not as a container")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        weapons, most = Weapons(), round(options.gigabytes * 2**30)
        trusted = ("--trusted-proxies", "127.0.0.1")
        with (
            bounded(most, ulimit=options.ulimit) as (how, prepare),
            public_server(Path(name), *trusted, prepare=prepare) as server,
        ):
            print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.gigabytes:g} GiB ({how})")
            print(f"{options.visitors} honest visitors, {options.enemies} hostile ones, {options.minutes:g} minutes")
            return siege(server, options.visitors, options.enemies, 60 * options.minutes, weapons)


if __name__ == "__main__":
    sys.exit(main())
