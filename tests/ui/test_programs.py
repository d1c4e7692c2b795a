"""A real server and programs beside it: the documents' examples as they stand there, and an agent over MCP."""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from dpexplore.models import LanguageModel
from dpexplore.models.default_model import cache_folder
from dpexplore.serving.journal import Journal
from tests.live_server import ROOT, free_port, start_server

DOCUMENTED_ADDRESS = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def address(default_lm: LanguageModel) -> Iterator[str]:
    """`python app.py --mcp` on the default model."""
    port = free_port()
    server = start_server(port, "--mcp")
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


# The examples of docs/http.md.


def example(address: str, language: str, word: str) -> list[str]:
    """What the one example of a language that holds a word prints, line by line."""
    page = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", page, re.M | re.S)
    (program,) = [text for kind, text in blocks if kind == language and word in text]
    assert DOCUMENTED_ADDRESS in program
    command = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
    program = program.replace(DOCUMENTED_ADDRESS, address)
    done = subprocess.run([*command, program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_documented_example_for_gradio_client_runs(address: str) -> None:
    lines = example(address, "python", "gradio_client")
    entropy, floor, *rows = [line for line in lines if not line.startswith("Loaded as API")]
    assert float(entropy) == pytest.approx(7.49, abs=0.01)  # "I love" of the table in docs/page.md
    assert 3 < float(floor) < 4
    kinds = [row.split()[0] for row in rows]
    assert kinds[-1] == "result"
    assert set(kinds[:-1]) == {"step"}
    assert math.isfinite(float(rows[-1].split()[-1]))


def test_the_documented_example_for_curl_runs(address: str) -> None:
    lines = example(address, "bash", "curl")
    assert [line for line in lines if line.startswith("event:")][-1] == "event: complete"
    rows = [json.loads(line.removeprefix("data: "))[0] for line in lines if line.startswith("data: [")]
    assert rows[-1]["event"] == "result"
    assert rows[-1]["capsule"]["config"]["steps"] == 10


def test_the_documented_example_for_agents_runs(address: str) -> None:
    tools, floor = example(address, "python", "mcp")
    assert tools == "['models', 'reach', 'reach_all', 'target', 'floor', 'single_token', 'tune']"
    assert json.loads(floor)["status"] == "converged"


# An agent.


def ask(address: str, tool: str, **arguments: Any) -> tuple[bool, str]:
    """Whether a tool refuses, and its answer."""

    async def call() -> tuple[bool, str]:
        async with (
            streamable_http_client(f"{address}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            answer = await session.call_tool(tool, arguments)
        (content,) = answer.content
        assert content.type == "text"
        return answer.isError, content.text

    return asyncio.run(call())


def test_an_agent_gets_json(address: str) -> None:
    models = json.loads(ask(address, "models")[1])
    assert [model["name"] for model in models if model["loaded"]] == ["smollm2-135m-instruct"]
    target = json.loads(ask(address, "target", recipe='tokens({" yes": 3, " no": 1})')[1])
    assert [(row["token"], row["p"]) for row in target["top"][:2]] == [(" yes", 0.75), (" no", 0.25)]


def test_an_agent_tunes_and_finds_its_run_again(address: str) -> None:
    refused, text = ask(address, "tune", recipe="entropy(bits=2, seed=0)", length=2, restarts=2, steps=3)
    result = json.loads(text)
    assert not refused
    assert len(text) < 2000  # an agent reads all of it
    assert (result["event"], result["status"]) == ("result", "max_steps")
    assert result["kl_nats"] == pytest.approx(min(result["kl_nats_per_restart"]), abs=1e-4)
    kept = Journal(cache_folder() / "runs").read(result["run"])  # what the run's link shows
    assert kept is not None
    assert kept.capsule is not None
    assert kept.capsule["result"]["kl_nats"] == result["kl_nats"]


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("target", {"recipe": "entropy(bits=99)"}, "99 was asked for"),
        ("floor", {"recipe": "nothing(1)"}, "nothing"),
        ("tune", {"recipe": "entropy(bits=2)", "method": "loud"}, "method is 'loud'"),
        ("tune", {"recipe": "entropy(bits=2)", "settings": {"colour": 1}}, "unknown field 'colour'"),
        ("target", {"model": "smollm2-135m-instruct"}, "'recipe' is a required property"),
    ],
)
def test_an_agents_mistakes_are_answered_by_a_sentence(address: str, tool: str, arguments: dict, words: str) -> None:
    refused, text = ask(address, tool, **arguments)
    assert refused
    assert words in text
    assert "\n" not in text
    assert "Traceback" not in text
