"""Requests that no page sends, to a server of this process: a sentence, never a 5xx, never a run that nobody reads."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.journal import Journal
from dpexplore.serving.model_pool import ModelPool
from dpexplore.space import VisitorRules, load_manifest
from dpexplore.targets import sources
from dpexplore.ui.readers import CALL
from dpexplore.ui.server import start
from dpexplore.wanted import NotWanted, check_wanted
from tests.live_server import free_port

ENDLESS = ["entropy(bits=3)", "soft", 2, 1, 1000, 0, "", "", "paper", {"patience": None}]


@pytest.fixture(scope="module")
def app(tiny_lm: Callable[[str], LanguageModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppContext]:
    lm = tiny_lm("llama")
    pool, rules = ModelPool(lambda _name, progress: lm), VisitorRules(load_manifest(), "cpu")
    journal = Journal(tmp_path_factory.mktemp("runs"))
    context = AppContext(pool=pool, model="tiny", journal=journal, rules=rules, grace_seconds=1.0)
    context.pool.load("tiny")
    yield context
    context.close()


@pytest.fixture(scope="module")
def client(app: AppContext) -> Iterator[httpx.Client]:
    port = free_port()
    demo = start(app, "127.0.0.1", port, mcp_server=True)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/gradio_api", timeout=60) as http:
        yield http
    demo.close(verbose=False)


@pytest.mark.parametrize("path", ["call/target", "call/v2/target", "run/target", "queue/join", "call/v2/nothing"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"7",
        b"[]",
        b'"x"',
        b"[" * 100_000,
        b'{"data":' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"data": [NaN, 1e999]}',
        b'{"data": {"a": 1}}',
        b'{"recipe": {"a": [1]}, "model": 7, "other": null}',
        b'{"data": [1], "fn_index": "x", "session_hash": 7}',
        b'{"data": [], "fn_index": -1, "session_hash": "s"}',
        b"\xff\xfe",
    ],
)
def test_malformed_bodies_get_a_sentence(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, path: str, body: bytes
) -> None:
    with caplog.at_level(logging.WARNING):
        answer = client.post(f"/{path}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code < 500, answer.text
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    if answer.status_code != 200:
        assert answer.json()["detail"]


def test_a_long_message_is_refused_before_it_is_parsed(client: httpx.Client) -> None:
    assert client.post("/call/target", json={"data": ["a" * 300_000, ""]}).status_code == 413


def test_runs_whose_replies_nobody_reads_end_by_the_time_of_grace(client: httpx.Client, app: AppContext) -> None:
    for _ in range(3):
        assert client.post("/call/tune", json={"data": ENDLESS}).status_code == 200
    wait_until(lambda: len(app.pool.owners) == 3)
    event = client.post("/call/tune", json={"data": ENDLESS}).json()["event_id"]
    with client.stream("GET", f"/call/tune/{event}") as stream:
        lines = stream.iter_lines()
        wait_until(lambda: len(app.pool.owners) == 1, read=lambda: next(lines))
        for _ in range(20):  # the one that is read goes on
            next(lines)
        assert len(app.pool.owners) == 1
    wait_until(lambda: not app.pool.owners)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """The work on a vanilla target has no end of its own; the events say that it has begun, and been given up."""
    begun, ended = threading.Event(), threading.Event()

    def endless(*_: object) -> None:
        begun.set()
        try:
            while True:
                check_wanted()
                time.sleep(0.005)
        except NotWanted:
            ended.set()
            raise

    monkeypatch.setattr(sources, "vanilla_target", endless)
    return begun, ended


@pytest.mark.parametrize("endpoint", ["target", "floor"])
@pytest.mark.parametrize("reads", [True, False])
def test_work_ends_when_its_client_leaves(
    client: httpx.Client, endless: tuple[threading.Event, threading.Event], endpoint: str, reads: bool
) -> None:
    """Whether the client breaks off in the middle of the answer, or never fetches one."""
    begun, ended = endless
    event = client.post(f"/call/{endpoint}", json={"data": ["entropy(bits=2.5)", ""]}).json()["event_id"]
    if reads:
        with client.stream("GET", f"/call/{endpoint}/{event}"):
            assert begun.wait(60)
            assert not ended.is_set()
    assert ended.wait(60)


STREAMS = ("heartbeat", "/queue/data", "upload_progress", "{event_id}")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 10**6) | st.floats() | st.text(max_size=20),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=8), part, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["data", "fn_index", "session_hash", "event_id", "component_id", "fn_name", "trigger_id", "api_name", "recipe"]
)


@pytest.fixture(scope="module")
def offered(client: httpx.Client) -> list[tuple[str, str]]:
    """Method and path of all that the app offers, by its own OpenAPI document, but for streams without an end."""
    paths = client.get(client.base_url.join("/openapi.json")).json()["paths"]
    found = [(method, path) for path in sorted(paths) for method in paths[path]]
    assert ("post", "/gradio_api/call/v2/{api_name}") in found
    return [(method, path) for method, path in found if not any(part in path for part in STREAMS)]


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_that_the_openapi_document_offers_fails_inside(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, offered: list[tuple[str, str]], data: st.DataObject
) -> None:
    """Any path with any body: below 500, and nothing in the log."""
    method, path = data.draw(st.sampled_from(offered))
    segment = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).map(partial(quote, safe=""))
    path = re.sub(r"\{\w+\}", lambda _: data.draw(segment | st.sampled_from(["target", "tune"])), path)
    body = data.draw(JSON | st.dictionaries(FIELDS, JSON, max_size=5))
    sent = None if method == "get" else json.dumps(body)
    with caplog.at_level(logging.WARNING):
        answer = client.request(
            method, client.base_url.join(path), content=sent, headers={"Content-Type": "application/json"}
        )
    assert answer.status_code < 500, answer.text
    assert not [record for record in caplog.records if record.exc_info], caplog.text


def over_mcp(tool: str, arguments: object) -> dict[str, Any]:
    """Arguments of `httpx` for a call to a tool."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
    kinds = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    return {"url": "/mcp/", "json": call, "headers": kinds}


def test_an_agent_is_known_by_its_address_and_its_work_ends_when_it_leaves(
    client: httpx.Client, app: AppContext, endless: tuple[threading.Event, threading.Event]
) -> None:
    """Although Gradio asks itself for it, from this machine's own address, and waits for the answer."""
    begun, ended = endless
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=client.base_url, timeout=60, transport=transport) as agent:
        with agent.stream("POST", **over_mcp("floor", {"recipe": "entropy(bits=2.75)"})):
            assert begun.wait(60)
            assert not ended.is_set()
        assert ended.wait(60)
    session = next(reversed(app.sessions._addresses))
    assert app.owner(session).group == "127.0.0.2"
    assert client.post("/call/target", json={"data": []}, headers={CALL: "guessed"}).status_code == 410


@pytest.mark.parametrize("depth", [40, 60, 30_000])
@pytest.mark.parametrize("called", ["target", "tune", "no such tool"])
def test_deep_json_over_mcp_gets_a_sentence(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, depth: int, called: str
) -> None:
    """Within the gate's limit the endpoint refuses it, beyond the gate; in both cases without a 5xx or a traceback."""
    value = "[" * depth + "]" * depth
    call = f'{{"name": "{called}", "arguments": {{"recipe": {value}, "settings": {value}}}}}'
    body = f'{{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {call}}}'
    kinds = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    with caplog.at_level(logging.WARNING):
        answer = client.post("/mcp/", content=body, headers=kinds)
    assert answer.status_code == (200 if depth < 50 else 400)
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    assert ("isError" if depth < 50 else "deep") in answer.text


def test_a_neighbour_tunes_on_beside_attacks(client: httpx.Client, app: AppContext) -> None:
    """Her run, beside requests of every kind that is refused and clients that leave, ends as it does alone."""
    asked = ["entropy(bits=3)", "soft", 2, 2, 150, 7, "", "", "paper", {"patience": None}]

    def tuned() -> dict[str, Any]:
        event = client.post("/call/tune", json={"data": asked}).json()["event_id"]
        lines = client.get(f"/call/tune/{event}").text.splitlines()
        rows = [json.loads(line[6:]) for line in lines if line.startswith("data: [{")]
        return rows[-1][0]

    alone = tuned()
    attacks = 0
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(tuned)
        while not beside.done() or attacks < 20:
            client.post("/call/target", content=b"[" * 100_000, headers={"Content-Type": "application/json"})
            client.post("/call/tune", json={"data": [*asked[:3], 10**6, *asked[4:]]})
            event = client.post("/call/floor", json={"data": [f"entropy(bits=4, seed={attacks})", ""]})
            with client.stream("GET", f"/call/floor/{event.json()['event_id']}"):
                pass  # and leaves
            client.post(**over_mcp("target", {"recipe": "(" * 1000}))
            assert client.get(client.base_url.join("/health")).json()["status"] == "ok"
            attacks += 1
    assert alone["event"] == "result"
    assert beside.result()["prompt_ids"] == alone["prompt_ids"]
    assert beside.result()["kl_nats"] == pytest.approx(alone["kl_nats"], abs=1e-4)
    assert beside.result()["steps"] == alone["steps"]


def wait_until(reached: Callable[[], bool], read: Callable[[], object] = lambda: None) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        read()
        time.sleep(0.02)
