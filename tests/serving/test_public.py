"""Attacks on a running public server, over HTTP: what a stranger must not be able to do."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import signal
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from dpexplore.models import LanguageModel
from dpexplore.models.default_model import cache_folder
from dpexplore.serving.journal import Journal
from dpexplore.space import load_manifest
from tests.benchmarks.fuzz import fuzz
from tests.raw_client import ROOT, PublicServer, RawClient, public_server

SECRET = "hf_kept_by_the_owner"
TELLTALES = ("Traceback", 'File "', "site-packages", SECRET, str(ROOT), "root:x:")
MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def server(default_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublicServer]:
    """`default_lm` is asked for so that its files are there."""
    with public_server(tmp_path_factory.mktemp("public"), HF_TOKEN=SECRET) as running:
        yield running


@pytest.fixture
def visitor(server: PublicServer) -> Iterator[RawClient]:
    with RawClient(server.url) as client:
        yield client
        assert server.process.poll() is None
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200


def harmless(answer: str) -> str:
    assert not [telltale for telltale in TELLTALES if telltale in answer], answer[:2000]
    return answer


def each_handler(visitor: RawClient, attack: Callable[[dict[str, Any]], object]) -> None:
    """Several at a time: most of an answer's time is waiting for its turn in the queue."""
    handlers = [dependency for dependency in visitor.config["dependencies"] if dependency["backend_fn"]]
    assert len(handlers) > 20
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attack, handlers))


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


# Models.


@pytest.mark.parametrize(
    "model",
    ["/etc/passwd", "../app.py", "evil/repository", "llama-3-8b", "random:gpt2", "random:/etc", "x.gguf", MODEL + "/."],
)
def test_only_the_listed_models_load(visitor: RawClient, model: str) -> None:
    for answer in (
        visitor.refusal("target", "entropy(bits=3)", model),
        visitor.refusal("floor", "entropy(bits=3)", model),
        visitor.refusal("tune", "entropy(bits=3)", "soft", 1, 1, 1, 0, "", model, "paper", None),
        visitor.refusal("target", f'capture("I love", model="{model}")', ""),
    ):
        assert "its own list of models" in harmless(answer)


# Files.


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=Spacefile",
        "gradio_api/file=../../../../etc/passwd",
        f"gradio_api/file={ROOT}/app.py",
        f"gradio_api/file={ROOT}/README.md",
        "file=/etc/passwd",
        "gradio_api/file=/proc/self/environ",
        "static/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "assets/../../../../../../etc/passwd",
        "gradio_api/proxy=http://127.0.0.1:1/",
        "gradio_api/proxy=file:///etc/passwd",
        "custom_component/x/client/component/../../../../etc/passwd",
    ],
)
def test_no_file_of_the_machine_is_served(server: PublicServer, path: str) -> None:
    answer = httpx.get(f"{server.url}/{path}", follow_redirects=True)
    assert answer.status_code >= 400 or "dpexplore" in answer.text  # unknown pages are the page itself
    harmless(answer.text.replace(path.partition("=")[2] or path, ""))  # a refusal names what was asked for
    assert "requires-python" not in answer.text


def test_no_recipe_reads_a_file_of_the_machine(visitor: RawClient) -> None:
    for path in ("/etc/passwd", "assets/pos_words.tsv.gz", "/proc/self/environ", f"{ROOT}/x.npz"):
        assert "uploaded files only" in visitor.refusal("target", f'file("{path}")', "")


def test_no_handler_takes_a_file_that_was_not_uploaded(visitor: RawClient) -> None:
    forged = {"path": "/etc/passwd", "orig_name": "passwd.csv", "meta": {"_type": "gradio.FileData"}}
    each_handler(visitor, lambda handler: harmless(visitor.handler(handler["id"], [forged] * len(handler["inputs"]))))


# Uploads.


def uploaded(visitor: RawClient, name: str, data: bytes) -> str:
    path = visitor.upload(name, data)
    assert path.endswith(name), path
    return visitor.refusal("target", f'file("{path}")', "")


def test_hostile_files_are_refused_in_a_sentence(visitor: RawClient, server: PublicServer) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    bomb = npz(probs=np.zeros(200_000_000 // 8))  # 200 MB that pack into 200 kB
    pickled = io.BytesIO()
    with zipfile.ZipFile(pickled, "w") as archive:
        array = np.empty(1, object)
        array[0] = {"a": 1}
        member = io.BytesIO()
        np.lib.format.write_array(member, array, allow_pickle=True)
        archive.writestr("probs.npy", member.getvalue())
    attacks = {
        "bomb.npz": (bomb, "vocabulary"),
        "pickled.npz": (pickled.getvalue(), "row of numbers"),
        "plain.npz": (pickle.dumps({"probs": 1}), "no .npz file"),
        "wide.csv": (b"a," * 1_000_000 + b"1\n", "columns"),
        "deep.json": (b"[" * 100_000, "no JSON file"),
        "bytes.json": (b"\xff\xfe\x00", "not UTF-8"),
        "model.bin": (b"\x80\x04", "target file; one ends in"),
    }
    for name, (data, told) in attacks.items():
        assert told in harmless(uploaded(visitor, name, data)), name
    assert process.memory_info().rss - before < 300 * 2**20


def test_bodies_are_bounded(visitor: RawClient, server: PublicServer) -> None:
    assert visitor.upload("large.npz", bytes(26 * 2**20)).startswith("413")
    answer = visitor.http.post("/call/target", content=b'{"data": ["' + b"a" * (5 * 2**20))
    assert answer.status_code == 413

    def endless() -> Iterator[bytes]:
        yield b'{"data": ["'
        for _ in range(100):
            yield b"a" * 2**20

    before = psutil.Process(server.process.pid).memory_info().rss
    with contextlib.suppress(httpx.HTTPError):  # the server may hang up
        assert visitor.http.post("/call/target", content=endless()).status_code >= 400
    assert psutil.Process(server.process.pid).memory_info().rss - before < 60 * 2**20


# Recipes, prompts, sizes of runs.


def test_oversized_questions_are_refused_in_a_sentence(visitor: RawClient) -> None:
    deep = "entropy(bits=1)" + ".mix(entropy(bits=1), 0.5)" * 1000
    nested = "entropy(bits=1)"
    for _ in range(1000):
        nested = f"entropy(bits=1).mix({nested}, 0.5)"
    for recipe, told in {
        deep: "at most",
        nested: "at most",
        "(" * 1000: "deep",
        'capture("' + "a" * 100_000 + '")': "at most 20,000",
        "random_prompt(length=100000)": "at most 64",
        f'strings({{"{"7" * 19_900}": 1}}, request="x")': "longest outcome has",
        ".mix(".join(["capture('x')"] + [f"capture('{'7' * 700}'), 0.5)"] * 20): "through a model",
        "[" * 10_000: "deep",
        "\u0000": "cannot be read",
        "__import__('os').system('id')": "column",
    }.items():
        assert told in harmless(visitor.refusal("target", recipe, "")), recipe[:60]


@pytest.mark.parametrize(
    "asked",
    [
        {"restarts": 1000},
        {"steps": 10**9},
        {"length": 100_000},
        {"method": "hybrid", "slots": "soft*1000 hard*1000"},
        {"method": "hybrid", "slots": '"' + "a " * 3000 + '" soft*1'},
        {"method": "hard", "settings": {"hard_rule": "gcg", "candidates": 1_000_000}},
        {"settings": {"screen": 1_000_000}},
        {"settings": {"evaluations": 10**12}},
        {"settings": {"__class__": "x"}},
        {"settings": {"seconds": "forever"}},
        {"settings": [1]},
        {"restarts": float("inf")},
        {"seed": -1},
        {"method": ["soft"]},
    ],
)
def test_oversized_runs_are_refused_in_a_sentence(visitor: RawClient, asked: dict[str, Any]) -> None:
    fields = {"method": "soft", "length": 1, "restarts": 1, "steps": 1, "seed": 0, "slots": "", "model": ""} | asked
    settings = fields.pop("settings", None)
    body = json.dumps({"data": ["entropy(bits=3)", *fields.values(), "paper", settings]})
    answer = visitor.http.post("/call/tune", content=body, headers={"Content-Type": "application/json"})
    if answer.status_code == 200:
        events = visitor.http.get(f"/call/tune/{answer.json()['event_id']}").text
        assert "event: error" in events
        assert "event: complete" not in events
        assert "null" not in events.split("event: error")[1]  # a sentence
    harmless(answer.text)


def test_a_run_is_bounded_in_time(visitor: RawClient) -> None:
    events = visitor.call("tune", "entropy(bits=3)", "soft", 1, 1, 1, 0, "", "", "paper", None)
    _, text = events[-2] if events[-1][1] in ("null", "[]") else events[-1]
    (row,) = json.loads(text)
    assert row["capsule"]["config"]["seconds"] == load_manifest().limits["cpu"].seconds
    harmless(text)


# Everything else there is.


def test_whatever_is_sent_to_any_handler_the_answers_give_nothing_away(visitor: RawClient) -> None:
    """Each handler of the page, by the raw queue, with data that the page would never send."""
    sent: list[Any] = [None, "../../etc/passwd", {"a": [1]}, 1e308, "<script>alert(1)</script>"]
    types = {component["id"]: component["type"] for component in visitor.config["components"]}

    def attack(handler: dict[str, Any]) -> None:
        # A box that is edited shows its text as text: it may give back what its writer put in.
        only_boxes = {types[output] for output in handler["outputs"]} == {"textbox"}
        for value in sent:
            answer = harmless(visitor.handler(handler["id"], [value] * len(handler["inputs"])))
            # What Gradio's own checks refuse is told to the sender alone, and cleaned by its page.
            assert "<script>alert" not in answer or only_boxes or '"success":false' in answer

    each_handler(visitor, attack)
    assert "Traceback" not in visitor.handler(10**6, [])


def test_the_page_tells_nothing_about_its_machine(server: PublicServer) -> None:
    for path in ("", "config", "gradio_api/info", "health", "gradio_api/startup-events", "docs", "openapi.json"):
        harmless(httpx.get(f"{server.url}/{path}", timeout=60).text)
    assert httpx.get(f"{server.url}/monitoring/summary").status_code >= 400


def test_requests_by_schema_end_without_a_failure_of_the_server(server: PublicServer) -> None:
    ends = fuzz(server.url, requests=120)
    assert sum(ends.values()) == 120
    assert {"complete", "error"} & set(ends)


def test_logs_hold_json_without_what_visitors_wrote(visitor: RawClient, server: PublicServer) -> None:
    visitor.refusal("target", 'capture("my private words", model="my-private-model")', "")
    visitor.handler(0, ["my private words"] * 3)
    text = server.log.read_text(encoding="utf-8")
    assert "my private" not in text
    assert SECRET not in text
    for line in text.splitlines():
        assert json.loads(line)["level"] in ("info", "warning", "error")


def test_sigterm_ends_a_server_cleanly_and_journals_its_running_runs(default_lm: LanguageModel, tmp_path: Path) -> None:
    with public_server(tmp_path) as server, RawClient(server.url) as visitor:
        asked = ["entropy(bits=3)", "soft", 5, 2, 1000, 0, "", "", "paper", {"patience": None}]
        event = visitor.http.post("/call/tune", json={"data": asked}).json()["event_id"]
        with visitor.http.stream("GET", f"/call/tune/{event}") as stream:
            row = next(json.loads(line[6:])[0] for line in stream.iter_lines() if line.startswith('data: [{"event"'))
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=120) == 0
        harmless(server.log.read_text(encoding="utf-8"))
    journaled = Journal(cache_folder() / "runs").read(row["run"])
    assert journaled is not None
    assert not journaled.interrupted
    assert journaled.capsule is not None
    assert journaled.capsule["result"]["status"] == "cancelled"
