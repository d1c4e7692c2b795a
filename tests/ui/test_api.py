"""The named endpoints as programs use them: gradio_client, plain HTTP, and what the documents show."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.serving.journal import Journal
from dpexplore.tuning import TuneConfig
from dpexplore.ui.api import tune_config
from tests.served import GRADIO_LEAVES_OPEN, context_of, served

pytestmark = GRADIO_LEAVES_OPEN


@pytest.fixture(scope="module")
def address(tiny_lm: Callable[[str], LanguageModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    lm, folder = tiny_lm("llama"), tmp_path_factory.mktemp("runs")
    with context_of(lm, model="tiny", journal=Journal(folder)) as app, served(app) as (_, address):
        yield address.rstrip("/")


REST = (0, "", "", "paper", None)
"""Seed, slots, model, preset and settings: plain HTTP has no defaults."""


def call(address: str, name: str, *arguments: Any) -> list[tuple[str, Any]]:
    """What plain HTTP gets: pairs of event and data, as `curl -N` would print them."""
    url, body = f"{address}/gradio_api/call/{name}", json.dumps({"data": arguments}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}", timeout=120) as stream:
        lines = stream.read().decode().splitlines()
    pairs = zip(lines[::3], lines[1::3], strict=True)
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in pairs]


def test_every_endpoint_is_named_and_described(address: str) -> None:
    api: Any = Client(address, verbose=False).view_api(return_format="dict", print_info=False)
    endpoints = api["named_endpoints"]
    assert set(endpoints) == {"/models", "/target", "/floor", "/single_token", "/reach", "/reach_all", "/tune"}
    for name in ("/target", "/floor", "/tune"):
        assert endpoints[name]["parameters"][0]["parameter_name"] == "recipe"


def test_tune_streams_small_rows_and_takes_every_setting(address: str) -> None:
    client = Client(address, verbose=False)
    asked = {"method": "hard", "length": 2, "restarts": 2, "steps": 4, "seed": 3, "preset": "fast"}
    rows: list[Any] = list(client.submit("entropy(bits=2)", **asked, settings={"candidates": 5}, api_name="/tune"))
    *steps, result = rows
    assert result["event"] == "result"
    assert len({row["run"] for row in rows}) == 1
    config = TuneConfig.from_dict(result["capsule"]["config"])
    assert config == TuneConfig.preset("fast", **{k: v for k, v in asked.items() if k != "preset"}, candidates=5)
    assert [row["step"] for row in steps] == sorted({row["step"] for row in steps})
    assert all(len(json.dumps(row)) < 400 for row in steps)
    client.close()


def test_a_direct_run_tells_a_program_what_bounds_its_target(address: str) -> None:
    client = Client(address, verbose=False)
    asked = {"preset": "direct", "length": 1, "restarts": 1}
    rows: list[Any] = list(client.submit("entropy(bits=3, seed=0)", **asked, api_name="/tune"))
    result = rows[-1]
    assert result["floor_nats"] <= result["head_optimum_nats"] <= result["kl_nats"] + 1e-4
    assert result["kl_nats"] <= result["head_optimum_nats"] + 1e-3
    assert result["direct_note"] is None
    assert result["bounds"] == result["capsule"]["result"]["bounds"]
    client.close()


def test_plain_http_is_enough(address: str) -> None:
    ((kind, (target,)),) = call(address, "target", "entropy(bits=3, seed=0)", "")
    assert kind == "complete"
    assert target["entropy_bits"] == pytest.approx(3, abs=0.01)
    ((kind, (floor,)),) = call(address, "floor", "entropy(bits=3, seed=0)", "")
    assert kind == "complete"
    assert floor["lower_bound_nats"] <= floor["kl_nats"] + 1e-9
    *_, (_, (result,)), (last, _) = call(address, "tune", "entropy(bits=3, seed=0)", "soft", 2, 1, 4, *REST)
    assert last == "complete"
    assert result["event"] == "result"
    assert result["kl_nats"] >= floor["lower_bound_nats"]


def test_every_token_alone_is_scored_and_the_best_one_told(address: str) -> None:
    *_, (_, (best,)), (kind, _) = call(address, "single_token", "entropy(bits=3, seed=0)", "")
    assert kind == "complete"
    assert best["done"]
    ((_, (floor,)),) = call(address, "floor", "entropy(bits=3, seed=0)", "")
    assert best["kl_nats"] >= floor["lower_bound_nats"]
    assert best["prompt_ids"][-1] == best["token_id"]


def test_reach_answers_with_its_proof(address: str) -> None:
    ((kind, (found,)),) = call(address, "reach", "e", "", "")
    assert kind == "complete"
    assert (found["first"], found["can"], found["kind"]) == ("e", True, "sphere")
    assert found["margin"] > found["resolution"]
    ((kind, (found,)),) = call(address, "reach", "", "e,a", "")
    assert found["order"] == ["e", "a"]
    *_, (_, (last,)), (kind, _) = call(address, "reach_all", "")
    assert kind == "complete"
    assert last["done"]
    assert all(record["can"] is False for record in last["cannot"])
    with pytest.raises(Exception, match="one of `first` and `order`"):
        Client(address, verbose=False).predict("", "", api_name="/reach")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("entropy(bits=99)",), "99 was asked for"),
        (("",), "use a text"),
        (("entropy(bits=2)", "loud"), "method is 'loud'"),
        (("entropy(bits=2)", "soft", 2, 0), "`restarts` is 0"),
        (("entropy(bits=2)", "soft", 2, 1, 4, 0, "", "", "slow"), "preset is 'slow'"),
        (("entropy(bits=2)", "soft", 2, 1, 4, 0, "", "", "paper", {"colour": 1}), "unknown field 'colour'"),
    ],
)
def test_mistakes_are_answered_by_a_sentence(address: str, arguments: tuple, words: str) -> None:
    with pytest.raises(Exception, match=words):
        Client(address, verbose=False).predict(*arguments, api_name="/tune")
    assert call(address, "tune", *arguments)[-1][0] == "error"


@pytest.mark.parametrize("settings", [["patience"], "patience", 3])
def test_settings_are_an_object(settings: Any) -> None:
    with pytest.raises(InputError, match="an object"):
        tune_config("paper", settings, method="soft")


def test_mcp_is_a_flag_that_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parents[2]
    code = (
        "import importlib.util as u, sys; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'mcp' else f(n, *a)"
    )
    program = f"{code}; from dpexplore.cli import main; sys.exit(main(['app', '--mcp', '--port', '7958']))"
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "pip install 'mcp" in done.stderr
