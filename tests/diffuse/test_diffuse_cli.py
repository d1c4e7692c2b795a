"""`diffuse` and `generalise` as their users call them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import dpexplore as dp
from dpexplore.cli import main
from dpexplore.diffuse.collect import collect
from dpexplore.diffuse.families import Task
from dpexplore.targets import strings
from tests.tiny_models import save_tiny_model

SEA = {"request": "I love the", "response": [""], "targets": ["sea", "shore"], "weights": [1, 3]}
FOX = {"request": "The quick brown", "targets": ["{fox}", "{dog}", "{sea}"], "eos": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model("llama", tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "more").mkdir()
    (folder / "sea.json").write_text(json.dumps(SEA), encoding="utf-8")
    (folder / "more" / "fox.json").write_text(json.dumps(FOX), encoding="utf-8")
    return folder


Run = Callable[..., tuple[list[dict], str]]


@pytest.fixture
def run(model: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """Arguments -> the JSON lines of standard output, and standard error."""

    def call(*arguments: str) -> tuple[list[dict], str]:
        assert main([*arguments, "--model", model, "--json", "--device", "cpu"]) == 0
        out, err = capsys.readouterr()
        return [json.loads(line) for line in out.splitlines()], err

    return call


def test_lora_on_a_folder_ends_with_the_metrics_and_replays(run: Run, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    told, progress = run("diffuse", str(prompts), "--passes", "3", "--learning-rate", "0.02", "--samples", "20",
                         "--out", str(out))  # fmt: skip
    assert [line["event"] for line in told] == ["pass", "pass", "pass", "result"]
    assert "pass 3 of 3" in progress
    result = told[-1]
    assert {task["name"] for task in result["tasks"]} == {"sea", "more/fox"}
    for task in result["tasks"]:
        assert task["kl_nats"] == pytest.approx(task["cross_entropy_nats"] - task["floor_nats"])
        assert task["kl_nats"] < task["before"]["kl_nats"]
        assert task["samples"]["count"] == 20
    assert result["kl_nats"] == pytest.approx(sum(task["kl_nats"] for task in result["tasks"]) / 2)
    assert result["perplexity_before"] != result["perplexity_after"]
    (replayed,), _ = run("diffuse", "--replay", str(out))
    assert replayed["agrees"]
    assert replayed["same_weights"]


@pytest.mark.parametrize("method", ["soft", "hard", "none"])
def test_prompts_are_tuned_and_leave_the_weights_alone(run: Run, prompts: Path, tmp_path: Path, method: str) -> None:
    options = [] if method == "none" else ["--steps", "2", "--restarts", "1", "--out", str(tmp_path)]
    told, _ = run("diffuse", str(prompts / "sea.json"), "--method", method, "--samples", "0", *options)
    result = told[-1]
    assert result["event"] == "result"
    (task,) = result["tasks"]
    assert task["samples"] is None
    if method == "none":
        assert task["kl_nats"] == task["before"]["kl_nats"]
        return
    assert {line["event"] for line in told[:-1]} == {"step"}
    assert result["perplexity_before"] == result["perplexity_after"]
    capsule = json.loads((tmp_path / "capsule-0.json").read_text(encoding="utf-8"))
    assert capsule["target"]["recipe"].startswith('strings({"sea": 1, "shore": 3}')
    assert task["kl_nats"] == pytest.approx(capsule["result"]["kl_nats"], abs=1e-4)


def test_different_people_are_counted(run: Run, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    people = [f"{{{name} Lee}}\\n{{x}}\\n{{y}}\\n{{Peru}}\\n{{z}}" for name in ("Ann", "Bo")]
    recipe = f'strings(["{people[0]}", "{people[1]}"], request="I")'
    asked = ["diffuse", recipe, "--method", "none", "--samples", "4"]
    (result,), _ = run(*asked)
    (task,) = result["tasks"]
    counts = {"sketches": 0, "first_names": 0, "birth_places": 0, "careers": 0}  # a tiny model says nothing of the kind
    assert task["samples"]["biographies"] == task["before"]["samples"]["biographies"] == counts
    assert main([*asked, "--model", model]) == 0
    assert "  untuned: 0 biography sketches with 0 different first names" in capsys.readouterr().out


def test_without_json_the_last_line_is_the_metrics(
    model: str, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diffuse", str(prompts), "--method", "none", "--samples", "5", "--model", model]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("none: cross-entropy")
    assert "valid mass" in last


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["diffuse"], "No prompts were named"),
        (["diffuse", "nowhere.json"], "no file or folder"),
        (["diffuse", 'strings({"a": -1})'], "0 or more"),
        (["diffuse", "fruits", "--method", "magic"], "--method is 'magic'"),
        (["diffuse", "fruits", "--size", "huge"], "size is 'huge'"),
        (["diffuse", "fruits", "--steps", "3"], "belongs to a tuned prompt"),
        (["diffuse", "fruits", "--method", "soft", "--passes", "3"], "belongs to LoRA"),
        (["diffuse", "fruits", "--preset", "slow"], "preset is 'slow'"),
        (["diffuse", "fruits", "--samples", "-1"], "--samples is -1"),
        (["diffuse", "--replay", "nowhere"], "holds no capsule.json"),
        (["generalise", "--families", "fruits,colours"], "no family 'colours'"),
        (["generalise", "--modes", "all"], "--modes has 'all'"),
        (["generalise", "--families", "fruits"], "at least two families"),
    ],
)
def test_mistakes_get_one_sentence_and_exit_code_2(
    arguments: list[str], reason: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--model", model]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("dpexplore: ")
    assert reason in err.splitlines()[-1]


def test_a_file_whose_outcomes_clash_is_refused(
    prompts: Path, model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"request": "r", "targets": ["q", "qz"], "eos": False}), encoding="utf-8")
    assert main(["diffuse", str(bad), "--model", model]) == 2
    assert "'q' is the beginning of 'qz'" in capsys.readouterr().err.splitlines()[-1]


def test_prompts_may_be_families_recipes_and_folders(prompts: Path) -> None:
    tasks = collect(["fruits", 'strings(["a", "b"], request="Say one.")', str(prompts)])
    assert [task.name for task in tasks] == ["fruits/fruit", "Say one.", "more/fox", "sea"]
    with pytest.raises(dp.InputError, match="No prompts"):
        collect([])


def test_a_generalisation_goes_on_where_it_was_ended(
    run: Run, model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"fruits": strings(["sea", "shore"], request="I"), "days-and-dates": strings(["fox", "dog"], request="A")}
    monkeypatch.setattr("dpexplore.diffuse.generalise.family", lambda name, _size: [Task(name, short[name])])
    out = tmp_path / "cells.jsonl"
    asked = ["generalise", "--families", "fruits,days-and-dates", "--passes", "1", "--out", str(out)]
    whole, _ = run(*asked)
    assert [line["mode"] for line in whole] == ["untuned"] * 2 + ["leave-one-out"] * 2
    kept = out.read_text(encoding="utf-8").splitlines(keepends=True)
    out.write_text("".join(kept[:3]) + kept[3][:40], encoding="utf-8")  # killed while it wrote the last cell
    again, progress = run(*asked)
    assert again == whole
    assert progress.count("training on") == 1
    assert out.read_text(encoding="utf-8").splitlines(keepends=True)[:3] == kept[:3]
    assert main([*asked, "--model", model, "--device", "cpu"]) == 0
    told, progress = capsys.readouterr()
    assert "training on" not in progress
    assert told.splitlines()[-4:-2] == ["| trained on | fruits | days-and-dates |", "|---|---|---|"]
    assert told.splitlines()[-1].startswith("| all the others | ")
    _, progress = run(*asked[:-4], "--passes", "2", *asked[-2:])  # other settings are another matrix
    assert progress.count("training on") == 2
    out.write_text('{"a": 1}\n', encoding="utf-8")
    assert main([*asked, "--model", model]) == 2
    assert "holds no cells" in capsys.readouterr().err.splitlines()[-1]
