"""Specs and problems: what a sweep consists of, and when two problems are the same."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpexplore.errors import InputError
from dpexplore.experiments import ModelFacts, Problem, Spec, known_specs, load_spec, plan_sweep
from dpexplore.experiments.problems import canonical_settings
from dpexplore.experiments.spec import Group
from dpexplore.experiments.yaml_text import Plain, read_yaml, scalar
from dpexplore.targets import capture
from dpexplore.tuning import TuneConfig

MODEL = ModelFacts("m", "sha256:1", "float32", 49_152)
FIGURES = {1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}


def facts(name: str) -> ModelFacts:
    return dataclasses.replace(MODEL, name=name, identity=name)


def test_every_figure_has_a_spec_of_both_sizes() -> None:
    """And so has ours, after the paper's."""
    assert list(known_specs()) == [*(f"fig{number}" for number in sorted(FIGURES)), "exact"]


@pytest.mark.parametrize("name", ["exact-small", *sorted(f"fig{number}-small" for number in FIGURES)])
def test_small_specs_have_distinct_problems_for_every_group_and_model(name: str) -> None:
    spec = load_spec(name)
    found = [each for model in spec.models for each in spec.problems(facts(model))]
    assert {group for _, group, _ in found} == {group.name for group in spec.groups}
    assert len({problem.id for problem, _, _ in found}) == len(found)
    for problem, _, _ in found:
        if problem.kind == "tune":
            assert problem.config.restarts == 1


@pytest.mark.parametrize("name", sorted(f"fig{number}-paper" for number in FIGURES - {12}))
def test_paper_specs_follow_appendix_b(name: str) -> None:
    spec = load_spec(name)
    for group in spec.groups:
        assert group.restarts == (25 if spec.figure == "fig8" else 5)
    problem = next(p for model in spec.models[:1] for p, _, _ in spec.problems(facts(model)) if p.kind == "tune")
    config = problem.config
    assert (config.steps, config.patience, config.learning_rate) == (500, 20, 0.1)
    assert (config.soft_rule, config.hard_rule, config.screen) == ("adamw", "eq4", 1)


def test_the_papers_entropies_go_from_0_to_log_v_by_0_05() -> None:
    spec = load_spec("fig1-paper")
    bits = {float(labels["bits"]) for p, _, labels in spec.problems(facts("gpt2")) if p.kind == "floor"}
    assert len(bits) == math.floor(math.log2(49_152) / 0.05) + 1
    assert min(bits) == 0
    assert math.log2(49_152) - 0.05 < max(bits) <= math.log2(49_152)


def test_figures_share_the_problems_that_are_the_same() -> None:
    ids = {}
    for name in ("fig1-small", "fig5-small", "fig11-small"):
        spec = load_spec(name)
        ids[name] = {p.id for p, _, _ in spec.problems(facts("smollm2-135m-instruct"))}
    assert ids["fig5-small"] < ids["fig1-small"]
    assert ids["fig11-small"] & ids["fig1-small"]


@given(
    st.sampled_from(["entropy(bits=7, seed=0)", "entropy(bits=7, seed=1)", 'capture("a")']),
    st.integers(0, 3),
    st.integers(1, 9),
    st.sampled_from(["sha256:1", "sha256:2"]),
    st.sampled_from(["float32", "bfloat16"]),
)
def test_problems_are_the_same_exactly_if_all_that_changes_the_numbers_is(
    recipe: str, restart: int, steps: int, identity: str, dtype: str
) -> None:
    here = Problem.tune(
        dataclasses.replace(MODEL, identity=identity, dtype=dtype), recipe, TuneConfig(steps=steps), restart
    )
    there = Problem.tune(MODEL, "entropy(bits=7, seed=0)", TuneConfig(steps=5), 0)
    alike = (recipe, restart, steps, identity, dtype) == ("entropy(bits=7, seed=0)", 0, 5, "sha256:1", "float32")
    assert (here.id == there.id) is alike
    renamed = dataclasses.replace(here, model=dataclasses.replace(here.model, name="another name"))
    assert renamed.id == here.id


def test_one_prompt_in_two_spellings_is_one_problem() -> None:
    spelled = [
        TuneConfig(method="soft", length=5, steps=9),
        TuneConfig(method="soft", slots="soft*5", steps=9),
        TuneConfig(method="hybrid", slots="soft*2 soft*3", steps=9, restarts=7),
    ]
    settings = [json.loads(canonical_settings(dataclasses.replace(config, restarts=1))) for config in spelled]
    assert settings[0] == settings[1]
    assert settings[0]["method"] == settings[2]["method"] == "soft"


def test_the_config_of_a_problem_is_the_one_asked_for() -> None:
    asked = TuneConfig(method="hybrid", slots="soft*2 hard*1", steps=9, learning_rate=0.05)
    config = Problem.tune(MODEL, "entropy(bits=7, seed=0)", asked, 3).config
    assert dataclasses.replace(config, seed=asked.seed) == dataclasses.replace(asked, restarts=1, length=config.length)


def test_initialisations_differ_between_targets_and_restarts() -> None:
    seeds = {
        Problem.tune(MODEL, f"entropy(bits={bits}, seed=0)", TuneConfig(), restart).config.seed
        for bits in range(1, 9)
        for restart in range(5)
    }
    assert len(seeds) == 40


def test_a_files_content_is_part_of_the_problem(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text("[1, 0]")
    first = Problem("floor", MODEL, f'file("{path}")').id
    path.write_text("[0, 1]")
    assert Problem("floor", MODEL, f'file("{path}")').id != first
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        _ = Problem("floor", MODEL, f'file("{path}")').id


def write_spec(folder: Path, size: Any) -> str:
    path = folder / "mine.yaml"
    path.write_text(json.dumps({"title": "mine", "figure": "fig1", "sizes": {"small": size}}))
    return str(path)


GOOD = {"models": ["m"], "groups": {"g": {"recipe": "entropy(bits=$bits, seed=0)", "over": {"bits": [1, 2.5]}}}}


def test_a_spec_of_ones_own(tmp_path: Path) -> None:
    spec = load_spec(write_spec(tmp_path, GOOD))
    assert (spec.name, spec.figure, spec.models) == ("mine-small", "fig1", ("m",))
    recipes = [p.recipe for p, _, _ in spec.problems(MODEL)]
    assert recipes == ["entropy(bits=1, seed=0)"] * 5 + ["entropy(bits=2.5, seed=0)"] * 5


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"models": "m"}, "models"),
        ({"restarts": 0}, "restarts"),
        ({"kinds": ["taste"]}, "taste"),
        ({"colour": 1}, "colour"),
        ({"groups": {}}, "groups"),
        ({"groups": {"g": {"recipe": "entropy(bits=1)", "over": []}}}, "over"),
        ({"tune": {"steps": 0}}, "steps"),
        ({"tune": {"speed": 1}}, "speed"),
        ({"groups": {"g": {"recipe": "entropy(bits=$bats)", "over": {"bits": [1]}}}}, "bats"),
        (
            {"groups": {"g": {"recipe": "entropy(bits=$bits)", "over": {"bits": {"from": 2, "to": 1, "step": 1}}}}},
            "bits",
        ),
        ({"groups": {"g": {"recipe": "entropy(bits=1, seed=$s)", "over": {"s": {"count": 10**9}}}}}, "problems"),
        ({"groups": {"g": {"recipe": "entropie(bits=1)"}}}, "entropie"),
    ],
)
def test_what_is_wrong_with_a_spec_is_said_in_one_sentence(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word) as refusal:
        list(load_spec(write_spec(tmp_path, GOOD | change)).problems(MODEL))
    assert "\n" not in str(refusal.value)


def test_unknown_specs_and_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fig1, fig3"):
        load_spec("fig2")
    with pytest.raises(InputError, match="no size 'large'"):
        load_spec("fig1", "large")
    (tmp_path / "broken.yaml").write_text("title: [")
    with pytest.raises(InputError, match="cannot be read as YAML, line 1"):
        load_spec(str(tmp_path / "broken.yaml"))


CASES = Path(__file__).parents[1] / "cases" / "yaml"


def recipes(name: str) -> list[str]:
    return [problem.recipe for problem, _, _ in asked_by(name)]


def asked_by(name: str) -> list[tuple[Problem, str, dict[str, Any]]]:
    return list(load_spec(str(CASES / f"{name}.yaml")).problems(facts("random:bytes-llama")))


def test_words_stay_the_words_they_are() -> None:
    words = ["yes", "no", "maybe", "on", "off", "null", "1e3", "012", "12:30", "~"]
    assert recipes("words") == [f'capture("{word}")' for word in words]
    assert recipes("date") == ['capture("2024-01-01")', 'capture("2024-01-02")']


def test_numbers_are_read_as_people_write_them() -> None:
    (problem, *_) = [problem for problem, _, _ in asked_by("lr")]
    assert problem.config.learning_rate == 0.01
    varied = asked_by("lr_over")
    assert [problem.config.learning_rate for problem, _, _ in varied] == [0.1, 0.01, 0.001]
    assert [labels["lr"] for _, _, labels in varied] == [0.1, 0.01, 0.001]
    found = [problem for problem, _, _ in asked_by("steps_float")]
    assert {problem.config.steps for problem in found} == {2}
    assert [problem.recipe for problem in found] == [
        f"entropy(bits={bits}, seed={seed})" for bits in ("1", "2.5") for seed in (0, 1)
    ]


@pytest.mark.parametrize(("name", "key", "lines"), [("dup", "vanilla", "9 and 12"), ("dup2", "tune", "7 and 8")])
def test_a_key_given_twice_is_refused_with_its_lines(name: str, key: str, lines: str) -> None:
    with pytest.raises(InputError, match=rf"key '{key}' twice, in lines {lines}"):
        load_spec(str(CASES / f"{name}.yaml"))


PLAIN = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12)
SCALARS = st.sampled_from(
    ["yes", "No", "0x1F", "0o17", "1_000", "+5", "-.5e3", ".inf", ".nan", "190:20:30", "2001-12-14t21:59:43-05:00"]
)


@given(PLAIN | SCALARS | st.integers().map(str) | st.floats().map(repr), st.sampled_from(['"', "'"]))
def test_what_stands_in_a_recipes_quotes_is_the_text_as_written(word: str, quote: str) -> None:
    """Whatever YAML lets stand as a plain scalar, and whatever it quotes, reaches the recipe unchanged."""
    try:
        raw = read_yaml("x", f"- {word}")[0]
    except InputError:
        return
    if not isinstance(raw, Plain):
        return
    group = Group("g", f"capture({quote}a $w{quote})", {"w": [raw]}, models=("m",), restarts=1)
    (problem,) = [problem for problem, _, _ in Spec("s", "f", "t", "small", (group,)).problems(MODEL)]
    assert problem.recipe == str(capture(f"a {raw}"))


@given(st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.booleans() | st.none())
def test_a_json_value_is_the_yaml_value(value: object) -> None:
    read = scalar(read_yaml("x", json.dumps([value]).replace("Infinity", ".inf"))[0])
    assert read == value
    assert type(read) is type(value)


def test_bombs_and_depths_are_refused(tmp_path: Path) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8)
    )
    with pytest.raises(InputError, match="more than"):
        read_yaml("x", bomb)
    with pytest.raises(InputError):
        read_yaml("x", "[" * 5000)
    with pytest.raises(InputError, match="half of a character"):
        read_yaml("x", "a: \ud83d")


def test_settings_that_are_text_stay_text(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "title: t\nsizes: {small: {models: [m], restarts: 1.0, groups: {g: {recipe: 'capture(\"a\")', "
        "tune: {method: hard, init: text, init_text: no, allow: [yes, 12, 1e3], patience: null, length: 1e0}}}}}"
    )
    (problem,) = [problem for problem, _, _ in load_spec(str(tmp_path / "s.yaml")).problems(MODEL)]
    config = problem.config
    assert (config.init_text, config.allow, config.patience) == ("no", ("yes", 12, "1e3"), None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"models": ["./nowhere"]}, "no config.json|no model"),
        ({"groups": {"g": "entropy(bits=20, seed=0)"}}, "lies from 0 to"),
        ({"groups": {"g": 'file("nowhere.npz")'}}, "cannot be read"),
    ],
)
def test_a_dry_run_finds_what_can_be_found_without_a_model(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    spec = load_spec(write_spec(tmp_path, GOOD | {"models": ["random:bytes-llama"]} | change))
    with pytest.raises(InputError, match=says):
        plan_sweep(spec, tmp_path)
