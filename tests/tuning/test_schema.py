"""The one record: new and old capsules validate, and every damage is reported in a sentence."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpexplore.cli import main
from dpexplore.errors import InputError
from dpexplore.json_text import JsonLimits, read_json
from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning import TuneConfig, load_capsule, replay, tune
from dpexplore.tuning.record.replay import restore
from dpexplore.tuning.record.schema import FORMAT, ResultRecord, capsule_schema, faults_of
from tests.tiny_models import HIDDEN

NEW = ("entropy_bits", "target_entropy_nats", "target_entropy_bits", "objective", "scored_in", "kl_search_nats")


@pytest.fixture(scope="module")
def capsule(lm: LanguageModel, target: Target) -> dict[str, Any]:
    result = tune(lm, target, TuneConfig(restarts=2, steps=2, length=2)).result
    return json.loads(json.dumps(result.capsule, allow_nan=False))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a JSON value but itself."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, child in children for found in [(*path, key), *places(child, (*path, key))]]


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def test_results_and_capsules_have_the_same_fields(capsule: dict[str, Any]) -> None:
    assert set(capsule["result"]) == set(ResultRecord.model_fields) | {"prompt_embeds"}
    assert set(capsule) == set(capsule_schema()["properties"])
    assert not faults_of("it", capsule)


def test_old_capsules_load_and_replay(capsule: dict[str, Any], lm: LanguageModel, target: Target) -> None:
    old = copy.deepcopy(capsule)
    for name in NEW:
        del old["result"][name]
    for name in ("device", "dtype_reason"):
        del old["model"][name]
    del old["resumed_from"], old["config"]["norm_budget"]
    old["of_a_later_version"] = {"kept": True}
    assert not faults_of("it", old)
    assert replay(lm, old, target).agrees


def test_a_number_that_is_not_finite_is_null_in_the_record_and_nan_in_the_result(
    capsule: dict[str, Any], lm: LanguageModel, target: Target
) -> None:
    result = dataclasses.replace(restore(lm, capsule, target), kl_nats=math.nan, entropy_nats=math.inf)
    record = json.loads(json.dumps(ResultRecord.of(result).model_dump(), allow_nan=False))
    assert record["kl_nats"] is record["entropy_nats"] is record["entropy_bits"] is None
    lost = copy.deepcopy(capsule)
    lost["result"]["kl_nats"] = None
    assert not faults_of("it", lost)
    assert math.isnan(restore(lm, lost, target).kl_nats)


@given(data=st.data())
def test_any_damage_is_a_sentence(capsule: dict[str, Any], data: st.DataObject) -> None:
    damaged = copy.deepcopy(capsule)
    path = data.draw(st.sampled_from(places(damaged)))
    junk = data.draw(st.sampled_from([None, True, -7, 10**30, 0.5, "x", [], {}, ["x"], {"x": 1}]))
    at(damaged, path[:-1])[path[-1]] = junk
    for sentence in faults_of("it", damaged):
        assert sentence.endswith(".")
        assert "\n" not in sentence
        assert "Value error" not in sentence


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("result", "kl_nats"), "0.3", '`result.kl_nats` is "0.3"; it should be a valid number'),
        (("result", "best_restart"), 9, "names restart 9 as the best"),
        (("result", "status"), "fine", "`result.status`"),
        (("config", "steps"), 0, "`steps` is 0"),
        (("config", "speed"), 1, "unknown field 'speed'"),
        (("restarts", 1, "embeds"), None, "`restarts.1` has soft positions and no embeds"),
        (("result", "prompt_embeds", "shape"), [1, HIDDEN], "does not have"),
        (("result", "prompt_embeds", "base64"), "AAA", "holds 3 characters"),
        (("format_version",), 99, "format 99"),
        (("format",), "letter", "not a capsule"),
    ],
)
def test_what_is_wrong_is_named(capsule: dict[str, Any], path: tuple[Any, ...], value: Any, says: str) -> None:
    damaged = copy.deepcopy(capsule)
    at(damaged, path[:-1])[path[-1]] = value
    assert says in faults_of("it", damaged)[0]


@pytest.mark.parametrize("text", ['{"a": ["\\ud83d"]}', '{"\\uDE00": 1}', '["\\ud83d\\ud83d"]'])
def test_half_of_a_character_is_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "capsule.json"
    path.write_text(text)
    with pytest.raises(InputError, match="half of a character") as refusal:
        load_capsule(path)
    assert "\n" not in str(refusal.value)
    whole = '["\\ud83d\\ude00"]'
    assert read_json(whole, JsonLimits(9)) == ["\N{GRINNING FACE}"]


def test_capsules_are_checked_from_the_command_line(
    capsule: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "capsule.json"
    path.write_text(json.dumps(capsule))
    assert main(["capsule", "--check", str(path)]) == 0
    damaged = copy.deepcopy(capsule)
    del damaged["result"]["kl_nats"], damaged["model"]["name"]
    path.write_text(json.dumps(damaged))
    assert main(["capsule", "--check", str(path), "--json"]) == 1
    faults = json.loads(capsys.readouterr().out.splitlines()[-1])["faults"]
    assert [fault.rpartition("`")[0].rpartition("`")[2] for fault in faults] == ["model.name", "result.kl_nats"]
    assert main(["capsule", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == FORMAT
    assert main(["capsule"]) == 2
