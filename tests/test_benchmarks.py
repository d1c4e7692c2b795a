"""The benchmarks run: the card's on a tiny model, so that its code is exercised where there is no card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dpexplore.models import LanguageModel
from tests.benchmarks import architectures, gpu, host, recovery


def test_a_cards_figures_come_as_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu", "--tiny", "--limit", "5", "--parts", "precision", "large"]) == 0
    first, *records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first["card"] == "cpu"
    assert {record["part"] for record in records} == {"precision", "large"}
    assert not any("error" in record for record in records)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_the_host_costs(capsys: pytest.CaptureFixture[str]) -> None:
    host.main(["--runs", "4", "--pairs", "1", "--profile"])
    output = capsys.readouterr().out
    found = json.loads(output.splitlines()[1])
    assert found["runs"] == 4
    assert min(found["ratio"], found["submitted_a_second"]) > 0
    assert "run_backward" in output  # the profile is of a step


def test_recovery_is_measured_once(tiny_lm: Callable[[str], LanguageModel], tmp_path: Path) -> None:
    """A model that is saved nowhere else is loaded from its folder; a second call measures nothing again."""
    lm = tiny_lm("gpt2")
    out = tmp_path / "found.jsonl"
    asked = ["--model", lm.name, "--out", str(out), "--lengths", "2", "--seeds", "3", "--kinds", "random"]
    for methods, teraflop in ((["recover"], 3e-3), (["search", "gcg", "soda"], 2e-5)):
        recovery.main([*asked, "--teraflop", str(teraflop), "--methods", *methods])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["method"] for line in lines] == list(recovery.METHODS)
    assert lines[0]["exact"]
    assert all(line["teraflop"] < line["budget"] + 2e-5 for line in lines)
    recovery.main([*asked, "--teraflop", str(2e-5), "--methods", "search", "gcg", "soda"])
    assert len(out.read_text().splitlines()) == len(lines)


def test_work_is_counted_as_documented(tiny_lm: Callable[[str], LanguageModel]) -> None:
    """Two operations for each weight and position, three times with a gradient; the unembedding at one position."""
    lm = tiny_lm("gpt2")
    work = recovery.Work(lm)
    embeds = lm.embed(lm.ordinary_ids[:6].view(2, 3)).detach()
    body = sum(weight.numel() for name, weight in lm.model.named_parameters() if "wte" not in name)
    with work.counted(), torch.no_grad():
        lm.log_probs(embeds)
    assert work.flops == 2 * (6 * body + 2 * lm.vocab_size * lm.hidden_size)
    with work.counted():
        lm.log_probs(embeds.requires_grad_())
    assert work.flops == 4 * 2 * (6 * body + 2 * lm.vocab_size * lm.hidden_size)


def test_architectures_are_tried_and_what_fails_has_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """Gemma 4 looks its ids up by their embeddings, so no other vector may be put in; XLNet looks ahead.

    Qwen 4, the text part of a model that sees, mixes several streams of another width after its last norm.
    """
    assert architectures.main(["gemma4_text", "xlnet", "qwen4_exp"]) == 0
    output = capsys.readouterr().out
    assert "| gemma4_text | yes | [1] | yes | [1] |" in output
    assert "| xlnet | [2] | [2] | [2] | [2] |" in output
    assert "| qwen4_exp | yes | yes | [3] | yes |" in output
    assert "1. The model does not take input embeddings" in output
    assert "2. The model is not a left-to-right model" in output
    assert "3. No floor for this model: no RMSNorm or LayerNorm stands right before its unembedding" in output
