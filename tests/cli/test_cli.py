"""The command line as its users call it, judged by its output and exit code; the first of each kind as a process."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

from dpexplore.cli import main
from dpexplore.cli.common import accept
from dpexplore.models import LanguageModel
from dpexplore.models.default_model import PACKAGED
from tests.tiny_models import ARCHITECTURES

Folders = Callable[[str], Path]
Call = Callable[..., subprocess.CompletedProcess[str]]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As a process, but without the seconds that each takes to import torch."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(arguments))
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def call_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dpexplore", *arguments], capture_output=True, text=True, check=False)


def records(done: subprocess.CompletedProcess[str]) -> list[dict]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def refused(*arguments: str, call: Call = call) -> str:
    """The one line that bad input gets."""
    done = call(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("dpexplore: ")
    assert "Traceback" not in done.stderr
    return lines[-1]


@pytest.fixture(scope="module")
def folder(tiny_folders: Folders) -> str:
    assert "gpt2" in ARCHITECTURES
    return str(tiny_folders("gpt2"))


def test_models_lists_the_papers(folder: str) -> None:
    listed = {record["name"]: record for record in records(call("models", "--json"))}
    papers = {"gpt2", "llama-3.2-1b", "llama-3.2-1b-instruct", "falcon-7b", "llama-3-8b"}
    papers |= {"qwen2.5-0.5b", "qwen2.5-0.5b-instruct", "qwen2.5-1.5b", "qwen2.5-1.5b-instruct"}
    assert papers <= set(listed)
    assert [name for name, record in listed.items() if record["is_default"]] == ["smollm2-135m-instruct"]
    assert listed["llama-3-8b"]["gated"]
    assert all(record["bytes_needed"] > 2 * record["parameters"] for record in listed.values())


def test_target_says_what_it_built(folder: str, tmp_path: Path) -> None:
    out = tmp_path / "t.npz"
    (record,) = records(
        call_process("target", "--model", folder, "--target", "entropy(bits=3.5, seed=2)", "--out", str(out), "--json")
    )
    assert record["entropy_bits"] == pytest.approx(3.5, abs=0.01)
    assert record["entropy_nats"] == pytest.approx(record["entropy_bits"] * math.log(2))
    assert record["recipe"] == "entropy(bits=3.5, seed=2)"
    probs = np.load(out)["probs"]
    assert probs.shape == (record["vocab_size"],)
    assert probs.sum() == pytest.approx(1)
    order = np.argsort(-probs, kind="stable")[: len(record["top"])]
    assert [row["p"] for row in record["top"]] == pytest.approx(probs[order].tolist(), rel=1e-6)
    (again,) = records(call("target", "--model", folder, "--target", f"file({str(out)!r})", "--json"))
    assert again["entropy_nats"] == pytest.approx(record["entropy_nats"], rel=1e-6)


def test_floor_is_below_what_tuning_reaches(folder: str, tmp_path: Path) -> None:
    ask = ("--model", folder, "--target", "entropy(bits=5, seed=0)", "--json")
    (floor,) = records(call("floor", *ask))
    capsule = tmp_path / "capsule.json"
    *steps, result = records(call("tune", *ask, "--restarts", "2", "--steps", "6", "--out", str(capsule)))
    assert floor["unconstrained_kl_nats"] - 1e-6 <= floor["kl_nats"]
    assert floor["kl_nats"] - floor["lower_bound_nats"] < 1e-3
    hard = records(call("tune", *ask, "--method", "hard", "--restarts", "2", "--steps", "6"))[-1]
    for tuned in (result, hard):
        assert 0 <= floor["lower_bound_nats"] <= min(tuned["kl_nats_per_restart"])
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert all(step["event"] == "step" and len(step["kl_nats"]) == len(step["entropy_nats"]) == 2 for step in steps)
    assert result["event"] == "result"
    assert result["status"] == "max_steps"
    assert result["slots"] == "soft*5"
    assert result["prompt_ids"] is None
    assert result["kl_nats"] == pytest.approx(min(result["kl_nats_per_restart"]), abs=1e-5)
    assert json.loads(capsule.read_text()) == result["capsule"]


def test_hard_result_on_the_default_model_recomputes(default_lm: LanguageModel) -> None:
    """The issue's own command; `kl_nats` from `prompt_ids` by transformers alone."""
    *_, result = records(
        call("tune", "--target", 'capture("I love")', "--method", "hard", "--restarts", "2", "--steps", "40", "--json")
    )
    with torch.no_grad():
        love = default_lm.tokenizer("I love", return_tensors="pt").input_ids
        log_p = default_lm.model(love).logits[0, -1].double().log_softmax(-1)
        log_q = default_lm.model(torch.tensor([result["prompt_ids"]])).logits[0, -1].double().log_softmax(-1)
    assert result["kl_nats"] == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), abs=1e-3)
    assert len(result["prompt_ids"]) == 5
    assert result["prompt_text"] == default_lm.tokenizer.decode(result["prompt_ids"])


def test_soft_tuning_reaches_a_one_bit_target_on_the_default_model(default_lm: LanguageModel) -> None:
    *_, result = records(
        call(
            *("tune", "--target", "entropy(bits=1, seed=0)", "--method", "soft"),
            *("--restarts", "1", "--steps", "120", "--seed", "0", "--json"),
        )
    )
    assert result["kl_nats"] <= 0.05
    assert result["entropy_bits"] == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_must_end_keeps_the_best_so_far(folder: str, sign: signal.Signals) -> None:
    endless = ("--steps", "100000", "--patience", "100000")
    arguments = ("tune", "--model", folder, "--target", "entropy(bits=5)", *endless)
    event = {}
    with subprocess.Popen(
        [sys.executable, "-m", "dpexplore", *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "step" and event["step"] == 3:
                process.send_signal(sign)
        assert event["event"] == "result"
        assert event["status"] == "cancelled"
        assert process.wait() == 0


def test_a_capsule_replays_and_goes_on(folder: str, tmp_path: Path) -> None:
    path, further = tmp_path / "capsule.json", tmp_path / "further.json"
    hard = ("--preset", "fast", "--method", "hard", "--restarts", "2", "--steps", "4", "--candidates", "8")
    words = ("--objective", "js", "--policy", "words", "--round-trip", "--screen", "2")
    ask = ("--model", folder, "--target", "entropy(bits=5, seed=0)", *hard, *words)
    *steps, result = records(call("tune", *ask, "--out", str(path), "--json"))
    assert result["objective"] == "js"
    assert set(result["distances"]) == {"kl", "reverse_kl", "js", "tv"}
    assert result["kl_reencoded_nats"] == pytest.approx(result["kl_nats"], abs=1e-4)
    assert all(before < after for before, after in zip(steps[0]["evaluations"], steps[-1]["evaluations"], strict=True))
    (replayed,) = records(call("tune", "--replay", str(path), "--json"))
    assert replayed["agrees"]
    assert replayed["kl_nats"] == pytest.approx(result["kl_nats"], abs=1e-3)
    *_, again = records(call("tune", "--resume", str(path), "--steps", "6", "--out", str(further), "--json"))
    assert again["distances"]["js"] <= result["distances"]["js"] + 1e-5
    assert json.loads(further.read_text())["resumed_from"]["evaluations"] == result["evaluations"]


def test_reach_answers_for_one_word_an_order_and_a_resumed_vocabulary(folder: str, tmp_path: Path) -> None:
    (word,) = records(call("reach", "--model", folder, "--first", "e", "--head", str(tmp_path / "head.npz"), "--json"))
    assert word["first"] == "e"
    assert word["can"] is True
    assert word["margin"] > word["resolution"]
    assert word["on_model"]["margin"] > 0
    assert len(word["u"]) == 32
    assert np.load(tmp_path / "head.npz")["matrix"].shape[1] == 32
    (order,) = records(call("reach", "--model", folder, "--order", "e,a", "--json"))
    assert order["order"] == ["e", "a"]
    assert "The model can say 'e' first" in call("reach", "--model", folder, "--first", "e").stdout

    listing = tmp_path / "listing.jsonl"
    *tokens, summary = records(call("reach", "--model", folder, "--all", "--out", str(listing), "--json"))
    assert summary["tokens"] == len(tokens)
    assert [token["ids"] for token in tokens] == [[i] for i in range(len(tokens))]
    assert summary["cannot"] == [i for i, token in enumerate(tokens) if token["can"] is False]
    lines = listing.read_bytes().splitlines(keepends=True)
    listing.write_bytes(b"".join(lines[:100]) + lines[100][:20])  # killed while it wrote
    *again, _ = records(call("reach", "--model", folder, "--all", "--out", str(listing), "--json"))
    assert [token["can"] for token in again] == [token["can"] for token in tokens]
    assert len(listing.read_bytes().splitlines()) == len(lines)
    listing.write_text('{"head": {}}\n')
    assert "another model" in refused("reach", "--model", folder, "--all", "--out", str(listing))


def test_dtype_is_recorded_and_replayed(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "capsule.json"
    done = call("tune", "--model", folder, "--target", "entropy(bits=3, seed=0)", "--restarts", "2", "--steps", "3",
                "--dtype", "bfloat16", "--out", str(file), "--json")  # fmt: skip
    result = records(done)[-1]
    model = json.loads(file.read_text())["model"]
    assert (model["dtype"], model["dtype_reason"]) == ("bfloat16", "bfloat16: as requested.")
    assert result["scored_in"] == "float32"
    assert "in bfloat16: as requested." in done.stderr
    again = records(call("tune", "--replay", str(file), "--json"))[-1]
    assert again["kl_nats"] == pytest.approx(result["kl_nats"], abs=1e-4)
    assert "use float32 or bfloat16" in refused(
        "target", "--model", folder, "--target", "entropy(bits=3)", "--dtype", "int4"
    )


def test_people_get_text(folder: str) -> None:
    done = call("tune", "--model", folder, "--target", "entropy(bits=5)", "--method", "hard", "--steps", "3")
    assert done.returncode == 0
    assert "KL(p‖q)" in done.stdout
    assert "ids [" in done.stdout
    assert "step 3: best KL" in done.stderr
    assert "certified" in call("floor", "--model", folder, "--target", "entropy(bits=5)").stdout
    assert "5.0" in call("target", "--model", folder, "--target", "entropy(bits=5)").stdout
    assert "gpt2" in call("models").stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tune", "--target", "entropy(bits=2)", "--method", "magic"), "'soft', 'hard', 'hybrid'"),
        (("tune", "--target", "entropy(bits=2)", "--preset", "quick"), "'paper'"),
        (("tune", "--target", "entropy(bits=2)", "--slots", "sift*2"), "sift"),
        (("tune", "--target", "entropy(bits=2)", "--length", "65"), "at most 64"),
        (("tune", "--target", "entropy(bits=2)", "--out", "/no/such/folder/c.json"), "does not exist"),
        (("tune", "--target", "entropy(bits=2)", "--policy", "nice"), "'printable'"),
        (("tune", "--target", "entropy(bits=2)", "--objective", "cosine"), "'reverse_kl'"),
        (("tune", "--target", "entropy(bits=2)", "--soft-rule", "sgd"), "'lbfgs'"),
        (("tune", "--replay", "/no/such/capsule.json"), "cannot be read"),
        (("tune", "--replay", "/no/such/capsule.json", "--steps", "3"), "--steps cannot be changed"),
        (("target", "--target", "entropy(bits=99)"), "99"),
        (("target", "--target", "entropy(bits=2"), "never closed"),
        (("target", "--target", "__import__('os')"), "__import__"),
        (("target", "--target", "capture('')"), "empty"),
        (("tune", "--target", "entropy(bits=2)", "--restarts", "many"), "'--restarts'"),
        (("tune",), "--target"),
        (("reach", "--first", "e", "--all"), "one of --first, --order and --all"),
        (("reach", "--first", "no one token"), "not one token"),
        (("reach", "--order", "e,,a"), "empty word"),
        (("fly",), "fly"),
        ((), "command"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(folder: str, arguments: tuple[str, ...], sentence: str) -> None:
    model = ("--model", folder) if len(arguments) > 1 else ()
    assert sentence in refused(*arguments, *model)


def test_no_such_model_is_one_line() -> None:
    wrong = ("target", "--model", "no-such-model", "--target", "entropy(bits=2)")
    assert "no-such-model" in refused(*wrong, call=call_process)


@pytest.mark.parametrize(("init", "told"), [("lookup", "Looking up tokens"), ("soft", "Tuning soft tokens")])
def test_tune_tells_what_it_does_before_the_first_step(folder: str, init: str, told: str) -> None:
    task = ["tune", "--model", folder, "--target", "entropy(bits=3)", "--method", "hard", "--hard-rule", "gcg"]
    done = call(*task, "--init", init, "--steps", "20", "--restarts", "1", "--json")
    assert records(done)[-1]["prompt_ids"] is not None
    assert told in done.stderr


def test_a_captured_prompt_is_recovered_at_its_own_length(folder: str) -> None:
    task = ["tune", "--model", folder, "--target", "random_prompt(length=2, seed=3)", "--method", "hard"]
    done = call(*task, "--preset", "thorough", "--json")
    result = records(done)[-1]
    assert result["kl_nats"] <= 1e-4
    assert result["recovered"] is True
    assert result["bounds"].startswith("Recovered")
    assert "captured from 2 tokens" in done.stderr
    assert "Learning how tokens move" in done.stderr


def test_out_is_checked_before_and_a_result_that_cannot_be_written_is_shown(tmp_path: Path) -> None:
    asked = ("tune", "--model", "random:bytes-llama", "--target", "entropy(bits=2)", "--length", "1", "--steps", "1")
    (tmp_path / "folder").mkdir()
    done = call(*asked, "--out", str(tmp_path / "folder"))
    assert done.returncode == 2
    assert "is a folder" in done.stderr
    assert "step 1" not in done.stderr
    done = call(*asked, "--restarts", "1", "--json", "--out", "/dev/full")
    assert done.returncode == 2
    assert "could not be written" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["capsule"]["result"]["kl_nats"] > 0


def test_terms_are_accepted_for_a_model_in_any_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dpexplore.models.packaged.cache_folder", lambda: tmp_path)
    monkeypatch.delenv("DPEXPLORE_ACCEPT_TERMS", raising=False)
    terms = PACKAGED["gemma-3-270m"].terms
    assert terms is not None
    assert not terms.accepted
    accept("smollm2-135m-instruct")
    assert not terms.accepted
    accept("Gemma-3-270m@bfloat16")
    assert terms.accepted


@pytest.mark.parametrize(("encoding", "shown"), [({}, []), ({"PYTHONIOENCODING": "ascii"}, ["--json"])])
def test_an_accent_is_read_and_written_in_locale_c(encoding: dict[str, str], shown: list[str]) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **encoding}
    asked = ["target", "--model", "random:bytes-llama", "--target", 'capture("é")', *shown]
    done = subprocess.run(
        [sys.executable, "-m", "dpexplore", *asked], capture_output=True, check=False, env=os.environ | plain
    )
    assert done.returncode == 0, done.stderr
    if shown:
        assert json.loads(done.stdout)["recipe"] == 'capture("é")'
    else:
        assert b"bits" in done.stdout
