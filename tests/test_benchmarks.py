"""The benchmarks run: the card's on a tiny model, so that its code is exercised where there is no card."""

from __future__ import annotations

import json

import pytest
import torch

from tests.benchmarks import architectures, gpu, host


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
    assert "engine.py" in output


def test_architectures_are_tried_and_what_fails_has_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """Gemma 4 looks its ids up by their embeddings, so no other vector may be put in; XLNet looks ahead."""
    assert architectures.main(["gemma4_text", "xlnet"]) == 0
    output = capsys.readouterr().out
    assert "| gemma4_text | yes | [1] | yes | [1] |" in output
    assert "| xlnet | [2] | [2] | [2] | [2] |" in output
    assert "1. The model does not take input embeddings" in output
    assert "2. The model is no left-to-right model" in output
