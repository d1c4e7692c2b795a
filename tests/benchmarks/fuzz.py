"""Requests drawn from the endpoints' own schema, right and wrong, against a public server.

    python -m tests.benchmarks.fuzz --requests 10000

Ends with exit code 0 if no answer was a 5xx, none gave a traceback away, and the server lives.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.raw_client import RawClient, public_server

RECIPES = (
    "entropy(bits=3, seed=0)",
    "entropy(bits=2, outliers=3)",
    'capture("I love")',
    'capture("I love").shuffle(seed=1).mix(entropy(bits=1), 0.5)',
    "random_prompt(length=3)",
    'tokens({" yes": 0.7, " no": 0.3})',
    'strings({"{1}": 1, "{2}": 1}, request="Pick", response="")',
    "pos('NOUN')",
    "entropy(bits=40)",
    'file("/etc/passwd")',
)
ODD: tuple[Any, ...] = (
    None, "", " ", "\x00", "\ud83d\ude00" * 50, "a" * 5000, "(" * 500, "../../etc/passwd", "<script>alert(1)</script>",
    0, -1, 1e308, 2**63, 0.5, True, [], [[[[]]]], {}, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
)  # fmt: skip
WORKERS = 8


def draw(rng: random.Random, parameter: dict[str, Any]) -> Any:
    """A value for a parameter of the schema: likely one, one of its type, or anything."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(ODD)
    name, declared = parameter["parameter_name"], json.dumps(parameter["type"])
    if name == "recipe":
        recipe = rng.choice(RECIPES)
        at = rng.randrange(len(recipe))
        return recipe if kind < 0.7 else recipe[:at] + rng.choice("()'\"{},.=x\\9") + recipe[at + 1 :]
    if name == "model":
        return "" if kind < 0.9 else rng.choice(["gpt2", "/etc", "random:gpt2", "smollm2-135m-instruct"])
    if name == "method":
        return rng.choice(["soft", "hard", "hybrid", "harder"])
    if "integer" in declared or "number" in declared:
        return rng.choice([1, 2, 3, 0, -5, 10**9])
    if "string" in declared:
        return "".join(rng.choices("soft*hard 123\"'\\{}<>é", k=rng.randrange(12)))
    return rng.choice([None, {}, {"patience": 3}, {"nothing": 1}, {"candidates": 10**9}])


def attack(client: RawClient, endpoints: dict[str, Any], seed: int) -> tuple[str, str]:
    """One request and all of its answer: how it ended, and its text."""
    rng = random.Random(seed)
    name = rng.choice([*endpoints, "target", "nothing"])
    data = [draw(rng, parameter) for parameter in endpoints.get(name, {}).get("parameters", [])]
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data) + 1)] + rng.choices(ODD, k=rng.randrange(3))
    try:
        events = client.call(name, *data, most=3)
    except httpx.HTTPError as error:
        return type(error).__name__, ""
    except (ValueError, TypeError):  # what JSON cannot write
        return "not sent", ""
    end = events[-1][0] if events else "empty"
    return end, "\n".join(text for _, text in events)


def fuzz(url: str, requests: int, seed: int = 0) -> Counter[str]:
    """How so many requests ended. AssertionError for a 5xx, a traceback, or a dead server."""
    with RawClient(url) as client:
        named = client.http.get("/info").json()["named_endpoints"]
        endpoints = {name.removeprefix("/"): schema for name, schema in named.items()}
        ends: Counter[str] = Counter()
        with ThreadPoolExecutor(WORKERS) as pool:
            seeds = range(seed * requests, (seed + 1) * requests)
            for end, text in pool.map(lambda one: attack(client, endpoints, one), seeds):
                ends[end] += 1
                assert not end.startswith("http 5"), text
                assert "Traceback" not in text, text
        assert client.http.get(f"{url}/health", timeout=60).status_code == 200
    return ends


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, public_server(Path(folder)) as server:
        ends = fuzz(server.url, options.requests, options.seed)
    print(f"{options.requests} requests, seed {options.seed}: no 5xx, no traceback, the server lives")
    for end, count in ends.most_common():
        print(f"  {count:>6}  {end}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
