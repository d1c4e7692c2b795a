"""Targets over strings: recipes, files, the tree of tokens, and what is said about bad ones."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dpexplore as dp
from dpexplore.models import LanguageModel
from dpexplore.targets import Strings, parse_recipe, strings, top_tokens
from dpexplore.targets.outcome_tree import OutcomeTree, PrefixClash, check_prefix_free
from dpexplore.targets.string_files import parse_strings, read_strings, write_strings

TinyLm = Callable[[str], LanguageModel]

ids = st.lists(st.integers(0, 4), min_size=1, max_size=5).map(tuple)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def is_prefix_free(outcomes: list[tuple[int, ...]]) -> bool:
    return not any(
        long[: len(short)] == short for i, short in enumerate(outcomes) for j, long in enumerate(outcomes) if i != j
    )


@settings(deadline=None)
@given(st.lists(ids, min_size=1, max_size=8))
def test_a_clash_is_found_exactly_when_there_is_one(outcomes: list[tuple[int, ...]]) -> None:
    if is_prefix_free(outcomes):
        check_prefix_free(outcomes)
        return
    with pytest.raises(PrefixClash) as raised:
        check_prefix_free(outcomes)
    short, long = outcomes[raised.value.short], outcomes[raised.value.long]
    assert raised.value.short != raised.value.long
    assert long[: len(short)] == short


@settings(deadline=None)
@given(st.sets(ids, min_size=1, max_size=8), st.lists(ids, max_size=2, unique=True))
def test_a_tree_holds_every_sequence_and_shares_what_they_begin_with(
    outcomes: set[tuple[int, ...]], prefixes: list[tuple[int, ...]]
) -> None:
    ended = [(*outcome, 9) for outcome in sorted(outcomes)]  # an end makes any set prefix-free
    before = prefixes or [()]
    tree = OutcomeTree.of(ended, before)
    for p, prefix in enumerate(before):
        for o, outcome in enumerate(ended):
            assert tree.sequence(p, o) == (list(prefix), list(outcome))
    beginnings = {(*prefix, *outcome)[:n] for prefix in before for outcome in ended for n in range(1, 12)}
    followed = {
        path
        for path in beginnings
        if any(len(other) > len(path) and other[: len(path)] == path for other in beginnings)
    }
    assert len(tree.inputs) == len(followed)
    assert (tree.sight.sum(1) == tree.depths + 1).all()  # itself and its ancestors
    assert tree.height == max(len(prefix) for prefix in before) + tree.longest


def test_a_trees_memory_grows_with_its_tokens_and_not_with_their_square() -> None:
    tokens = 10_000
    tracemalloc.start()
    try:
        tree = OutcomeTree.of([range(tokens), [*range(tokens - 1), tokens]])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(tree.inputs), len(tree.tokens)) == (tokens - 1, tokens + 1)
    assert peak < 2000 * tokens  # every beginning of it kept apart would take 4 GB


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (strings({"7" * 19_900: 1}, request="x"), "longest outcome has"),
        (strings([f"a{i}" for i in range(5000)], request="x", response=list(map(str, range(100)))), "too many"),
        (strings(["7" * 40, *(f"a{i}" for i in range(4999))], request="x", response=[*"123456789"]), "too many"),
    ],
)
def test_an_oversized_tree_is_refused_before_it_is_built(
    tiny_lm: TinyLm, monkeypatch: pytest.MonkeyPatch, asked: Strings, told: str
) -> None:
    monkeypatch.setattr(OutcomeTree, "of", lambda *_: pytest.fail("a tree is built"))
    with pytest.raises(dp.InputError, match=told):
        asked.build(tiny_lm("llama"))


@settings(deadline=None)
@given(
    st.dictionaries(texts, st.floats(0, 1e6), min_size=1, max_size=5).filter(lambda table: any(table.values())),
    texts,
    st.lists(texts, max_size=3, unique=True),
    st.booleans(),
)
def test_a_recipe_is_read_back_as_it_was_written(
    table: dict[str, float], request: str, response: list[str], eos: bool
) -> None:
    recipe = strings(table, request=request, response=response or "", eos=eos)
    assert parse_recipe(str(recipe)) == recipe
    assert parse_strings("x.json", write_strings(recipe)) == recipe


def test_the_issues_own_recipe_builds(default_lm: LanguageModel) -> None:
    recipe = parse_recipe('strings({"{1}": 1, "{2}": 3}, request="Say a number.", response="")')
    target = recipe.build(default_lm)
    assert target.probs.tolist() == [0.25, 0.75, 0.0]
    assert target.entropy_nats == pytest.approx(-(0.25 * torch.tensor(0.25).log() + 0.75 * torch.tensor(0.75).log()))
    assert [top.token for top in top_tokens(target, default_lm)] == ["{2}", "{1}"]
    turn = [{"role": "user", "content": "Say a number."}, {"role": "assistant", "content": "{2}"}]
    whole = default_lm.tokenizer.apply_chat_template(turn, tokenize=False)
    assert isinstance(whole, str)
    written = default_lm.tokenizer(whole, add_special_tokens=False)["input_ids"]
    before, outcome = target.tree.sequence(0, 1)  # type: ignore[attr-defined]
    found = target.request_ids + before + outcome  # type: ignore[attr-defined]
    assert found == written[: len(found)]  # the template's own tokens, the end of the turn included
    assert default_lm.decode(outcome) == "{2}<|im_end|>"


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral"])
def test_models_without_a_template_read_the_request_plainly(tiny_lm: TinyLm, architecture: str) -> None:
    lm = tiny_lm(architecture)
    target = strings(["sea", "shore"], request="I love the", response=" big").build(lm)
    assert target.request_ids == lm.encode("I love the")
    for i, text in enumerate(target.outcomes):
        before, outcome = target.tree.sequence(0, i)
        assert outcome[-1] == lm.tokenizer.eos_token_id
        assert lm.decode(target.request_ids + before + outcome[:-1]).endswith(f"I love the big{text}")


def test_a_clash_names_both_strings_and_the_cure(default_lm: LanguageModel) -> None:
    clashing = strings(["1", "10"], request="Number?", eos=False)
    with pytest.raises(dp.InputError, match=r"'1' is the beginning of '10'.*end-of-sequence.*closing mark"):
        clashing.build(default_lm)
    strings(["1", "10"], request="Number?").build(default_lm)
    closed = strings(["{1}", "{10}"], request="Number?", eos=False).build(default_lm)
    assert not closed.end_ids


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("strings({})", "at least one outcome"),
        ('strings({"": 1})', "empty"),
        ('strings({"a": -1})', "0 or more"),
        ('strings({"a": 0})', "All weights are 0"),
        ('strings(["a", "a"])', "given twice"),
        ("strings(7)", "neither a table nor a list"),
        ('strings(["a"], response=[])', "`response`"),
        ('strings(["a"], eos=1)', "True or False"),
        ('strings(["a"], request=3)', "text in quotes"),
    ],
)
def test_bad_recipes_get_one_sentence(recipe: str, reason: str) -> None:
    with pytest.raises(dp.InputError, match=reason) as raised:
        parse_recipe(recipe)
    assert "\n" not in str(raised.value)


def test_a_target_over_strings_takes_no_transforms(default_lm: LanguageModel) -> None:
    with pytest.raises(dp.InputError, match="takes none"):
        parse_recipe('strings(["a"], request="x").temperature(2)').build(default_lm)


def test_files_and_folders_of_the_papers_repository_load(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    plain = {"request": "Pick one.", "response": [""], "targets": ["{a}", "{b}"]}
    (tmp_path / "deep" / "one.json").write_text(json.dumps(plain), encoding="utf-8")
    weighted = {"request": "And now?", "response": "I say ", "targets": ["x", "y"], "weights": [3, 1], "eos": False}
    (tmp_path / "two.json").write_text(json.dumps(weighted), encoding="utf-8")
    (tmp_path / "only-generate.json").write_text(json.dumps({**plain, "targets": []}), encoding="utf-8")
    (tmp_path / "notes.txt").write_text("not ours", encoding="utf-8")
    found = {one.name: one.strings for one in read_strings(tmp_path)}
    assert found == {
        "deep/one": strings(["{a}", "{b}"], request="Pick one."),
        "two": strings({"x": 3, "y": 1}, request="And now?", response="I say ", eos=False),
    }
    assert read_strings(tmp_path / "two.json")[0].strings == found["two"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not hold a JSON object"),
        ('{"request": "r", "targets": "abc"}', "not a list of texts"),
        ('{"request": "r", "targets": ["a", 3]}', "not a list of texts"),
        ('{"request": "r", "targets": []}', "no targets"),
        ('{"targets": ["a"]}', "`request`"),
        ('{"request": "r", "targets": ["a", ""]}', "empty"),
        ('{"request": "r", "targets": ["a", "b"], "weights": [1]}', "`weights`"),
        ('{"request": "r", "targets": ["a", "b"], "weights": [1, -1]}', "0 or more"),
        ('{"request": "r", "targets": ["a", "b"], "weights": [1, NaN]}', "NaN is not a JSON number"),
        ('{"request": "r", "targets": ["a", "b"], "weights": [1, "2"]}', "0 or more"),
        ('{"request": "r", "targets": ["a", "a"]}', "given twice"),
        ('{"request": "r", "targets": ["a"], "eos": "yes"}', "True or False"),
        ('{"request": "r", "targets": ["a"], "response": 1}', "`response`"),
        ('{"request": "r", "targets": ["a"], "wieghts": [1]}', "unknown field 'wieghts'"),
    ],
)
def test_bad_files_get_one_sentence_that_names_them(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(dp.InputError, match=reason) as raised:
        read_strings(path)
    assert "bad.json" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_places_are_told(tmp_path: Path) -> None:
    with pytest.raises(dp.InputError, match="no file or folder"):
        read_strings(tmp_path / "nowhere.json")
    with pytest.raises(dp.InputError, match=r"holds no \.json file"):
        read_strings(tmp_path)


def test_a_list_means_equal_weights() -> None:
    assert strings(["a", "b"]) == strings({"a": 1, "b": 1})
    assert isinstance(parse_recipe('strings(["a", "b"])'), Strings)
