"""Prices: upper bounds of what requests cost, known before anything is parsed, tokenized, built or scored."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpexplore.diffuse.families import FAMILIES, family
from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.models.pieces import encode_behind
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.journal import Journal
from dpexplore.serving.model_pool import INTERNAL_ERROR, LoadedModel, ModelPool
from dpexplore.space import VisitorRules, load_manifest
from dpexplore.space.prices import price_recipe, price_scoring, text_tokens
from dpexplore.targets import capture, parse_recipe, strings
from dpexplore.tuning import TuneConfig
from dpexplore.tuning.record.schema import read_capsule
from dpexplore.ui.api import single_token_endpoint
from dpexplore.ui.components.floor_panel import follow_scoring
from dpexplore.ui.components.share_bar import arrive_by_capsule
from dpexplore.ui.tabs.compare import Library

TinyLm = Callable[[str], LanguageModel]


@pytest.fixture(scope="module")
def app(tiny_lm: TinyLm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppContext]:
    lm = tiny_lm("llama")
    journal = Journal(tmp_path_factory.mktemp("runs"))
    pool, rules = ModelPool(lambda _name, progress: lm), VisitorRules(load_manifest(), "cpu")
    context = AppContext(pool=pool, model="tiny", journal=journal, rules=rules)
    context.pool.load("tiny")
    yield context
    context.close()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_has_more_tokens_than_its_price(lm: LanguageModel, text: str) -> None:
    assert len(lm.text_ids(text)) <= text_tokens(text)


@given(
    st.sets(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), min_size=1, max_size=6),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), min_size=1, max_size=3, unique=True),
)
def test_no_tree_has_more_tokens_than_its_price(lm: LanguageModel, outcomes: set[str], response: list[str]) -> None:
    asked = strings(sorted(outcomes), request="ask", response=response)
    read = [encode_behind(lm, "ask" + response[0], text) for text in asked.texts]
    nodes = sum(map(len, read)) * len(response) + sum(len(lm.text_ids(prefix)) for prefix in response)
    assert nodes <= price_recipe(asked).string_bytes


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (".mix(".join(["capture('x')"] + [f"capture('{'7' * 700}'), 0.5)" for _ in range(20)]), "through a model"),
        (".mix(".join(["random_prompt(9)"] + ["random_prompt(64), 0.5)"] * 20), "through a model"),
        (".mix(".join(["entropy(3)"] + ["entropy(2), 0.5)"] * 20), "solves for"),
        (".mix(".join(["entropy(3)"] + ["order(' the'), 0.5)"] * 3), "solves for"),
        (f"strings({[f'a{i}' for i in range(800)]}, request='{'7' * 9000}')", "each behind the request"),
        (f"strings(['{'7' * 9000}'], request='x', response={list('abcdefghijklmnopqrstuvwxyz') * 3})", "different"),
        (f"strings(['{'7' * 19000}'], request='x', response={list('abcdefghijklmnopqrstuvwxyz')})", "each behind"),
        ("capture('" + "a" * 30_000 + "')", "at most 20,000"),
    ],
)  # fmt: skip
def test_costly_recipes_are_refused_before_a_tokenizer_or_a_model_sees_them(
    app: AppContext, monkeypatch: pytest.MonkeyPatch, recipe: str, told: str
) -> None:
    monkeypatch.setattr(LanguageModel, "_ids", lambda *_args, **_named: pytest.fail("tokenized"))
    monkeypatch.setattr(LanguageModel, "log_probs", lambda *_args: pytest.fail("scored"))
    with pytest.raises(InputError, match=told):
        app.target("tiny", recipe)


class Begun(Exception):
    """Work that is priced was begun."""


@contextmanager
def nothing_begins() -> Iterator[None]:
    """Building a target, encoding a text or running a model raises `Begun` in here."""

    def begin(*_arguments: object, **_named: object) -> None:
        raise Begun

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((ModelPool, "source"), (LanguageModel, "_ids"), (LanguageModel, "log_probs")):
            patch.setattr(owner, name, begin)
        patch.setattr(LoadedModel, "target", begin)
        yield


NEAR = [0, 1, 35, 36, 37, 63, 64, 65, 435, 436, 437, 900, 1935, 1936, 1937, 6000, 19_000]
PARTS = st.one_of(
    st.sampled_from(NEAR).map(lambda size: (f"capture('a{'é' * (size // 2)}')", 1 + size // 2 * 2 + 64, 0)),
    st.sampled_from([1, 9, 63, 64]).map(lambda size: (f"random_prompt({size})", size + 64, 0)),
    st.just(("entropy(3)", 0, 1)),
    st.just(("order(' the')", 0, 4)),
    st.just(("tokens({'a': 1})", 0, 0)),
)


@given(parts=st.lists(PARTS, min_size=1, max_size=16), matched=st.integers(0, 14))
def test_a_recipe_begins_if_and_only_if_it_is_within_its_limits(
    app: AppContext, parts: list[tuple[str, int, int]], matched: int
) -> None:
    """An independent count of the limits: characters, bytes that a model sees, parts that are solved for."""
    (first, *_), *others = parts
    text = "".join([first, *(f".mix({part}, 0.5)" for part, *_ in others), ".matched(0)" * matched])
    assert app.rules is not None
    server, limits = app.rules.manifest.server, app.rules.limits
    within = (
        len(text) <= server.characters
        and sum(tokens for _, tokens, _ in parts) <= limits.captured_tokens
        and sum(solved for *_, solved in parts) + matched <= server.solved_parts
    )
    with nothing_begins(), pytest.raises(Begun if within else InputError) as caught:
        app.target("tiny", text)
    assert "\n" not in str(caught.value)


def test_long_settings_are_refused_before_a_tokenizer_sees_them(
    app: AppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModel, "_ids", lambda *_args, **_named: pytest.fail("tokenized"))
    long = "7 " * 20_000
    for config, told in (
        (TuneConfig(init="text", init_text=long), "init_text has 40,000"),
        (TuneConfig(method="hybrid", slots=f'"{long}" soft*1'), "The slots has"),
        (TuneConfig(method="hard", allow=(long,)), "list of tokens has"),
        (TuneConfig(length=65), "65 tokens in the prompt"),
    ):
        with pytest.raises(InputError, match=told):
            app.begin("s", "tiny", "entropy(bits=3)", config)


def test_requests_of_the_paper_and_long_prompts_are_within_the_limits(app: AppContext) -> None:
    assert app.rules is not None
    for name in FAMILIES:
        for task in family(name, "full"):
            app.rules.check_recipe(task.strings)
    app.rules.check_recipe(capture("a word " * 250))
    app.rules.check_recipe(parse_recipe("entropy(bits=3, outliers=5).mix(capture('I love'), 0.5).matched(seed=1)"))


def test_one_address_does_not_hold_all_runs(app: AppContext, monkeypatch: pytest.MonkeyPatch) -> None:
    server = app.pool.get("tiny").server
    for session, address in (("hers", "2.2.2.2"), ("program-new", "1.1.1.1")):
        app.sessions.note_address(session, address)
    owners = [app.owner("program-new")] * 31 + [app.owner("hers", "strings")]
    assert len({owner.group for owner in owners}) == 2
    monkeypatch.setattr(type(server), "owners", property(lambda _server: owners))
    app.check_room("hers")
    app.check_room("program-new")
    owners.append(app.owner("program-new"))
    with pytest.raises(InputError, match="32 of your runs"):
        app.check_room("program-new")
    app.check_room("hers")
    owners += [app.owner("hers", "frontier")] * 7
    with pytest.raises(InputError, match="8 of your runs"):
        app.check_room("hers")


def test_an_engine_knows_whose_its_runs_are(app: AppContext) -> None:
    live = app.begin("s", "tiny", "entropy(bits=3, seed=0)", TuneConfig(steps=1000, patience=None))
    assert [owner.name for owner in app.pool.owners] == ["s"]
    live.cancel()
    list(live.views())
    assert app.pool.owners == []


def test_scoring_a_vocabulary_is_priced_before_its_first_batch(
    app: AppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert app.rules is not None
    monkeypatch.setattr("dpexplore.serving.app_context.is_known", lambda _lm: False)  # another test may have scored it
    lm = app.pool.get("tiny").lm
    app.check_scoring(lm)
    monkeypatch.setitem(lm.__dict__, "parameter_count", 10**12)
    monkeypatch.setattr(LanguageModel, "log_probs_of_ids", lambda *_args: pytest.fail("scored"))
    monkeypatch.setattr("dpexplore.tuning.single_token.measure_more", lambda *_args: pytest.fail("scored"))
    with pytest.raises(InputError, match="teraflops"):
        next(single_token_endpoint(app, "tiny", "entropy(bits=3)"))
    *_, (told, _) = follow_scoring(app, "s", "tiny", "entropy(bits=3)")
    assert "teraflops" in told
    for parameters, vocab in ((135_000_000, 49_152), (124_000_000, 50_257)):
        assert price_scoring(parameters, vocab, 1) < app.rules.limits.scored_teraflops


# Capsules.


@pytest.fixture(scope="module")
def capsule(app: AppContext) -> dict[str, Any]:
    live = app.begin("s", "tiny", "entropy(bits=3, seed=0)", TuneConfig(method="hard", length=2, restarts=2, steps=3))
    *_, last = live.views()
    assert last.result is not None
    return last.result.capsule


def changed(capsule: dict[str, Any], **result: Any) -> dict[str, Any]:
    return {**capsule, "result": {**capsule["result"], **result}}


def test_costly_capsules_are_refused_before_anything_is_scored(
    app: AppContext, capsule: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModel, "log_probs", lambda *_args: pytest.fail("scored"))
    embeds = {"dtype": "float32", "shape": [500, 32], "base64": base64.b64encode(bytes(500 * 32 * 4)).decode()}
    rows = [[1.0, 1.0]] * 40_000
    long = [{**restart, "ids": [5] * 4000} for restart in capsule["restarts"]]
    for number, (record, told) in enumerate(
        [
            (changed(capsule, prompt_ids=[5] * 4000), "4,000 tokens"),
            (changed(capsule, prompt_ids=None, prompt_embeds=embeds), "500 tokens"),
            (capsule | {"restarts": long}, "4,000 tokens"),
            (capsule | {"history": {"kl_nats": rows, "entropy_nats": rows}}, "more than 100,000 values"),
            (capsule | {"config": capsule["config"] | {"init": "text", "init_text": "7" * 50_000}}, "init_text has"),
            (capsule | {"target": capsule["target"] | {"recipe": " " * 50_000}}, "The recipe has 50,000"),
        ]
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(record), encoding="utf-8")
        assert told in arrive_by_capsule(app, str(path)).problem
        with pytest.raises(InputError, match=told):
            Library(app).add_capsule(path)


ODD = st.one_of(
    st.sampled_from([None, True, -1, 0, 2**63, 10**400, 1e308, "", "7" * 20_001, "\ud83d", [], {}, [[]], "nan"]),
    st.integers(100, 132).map(lambda count: [5] * count),
    st.integers(1, 3).map(lambda deep: json.loads("[" * 20 * deep + "]" * 20 * deep)),
    st.sampled_from([[1.0] * 100_001, [[1.0]] * 50_000, ["a"] * 500, {"a": [1.0] * 40_000}]),
    st.sampled_from(
        ["entropy(bits=3)", "capture('" + "a" * 900 + "')", "file('/etc/passwd')", "soft*70", "hard*1 'x'"]
    ),
)


def places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to everything within JSON."""
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*at, key))


@settings(max_examples=25)
@given(data=st.data())
def test_whatever_stands_in_a_capsule_it_is_a_sentence_or_within_its_limits(
    app: AppContext, capsule: dict[str, Any], capsule_place: Path, data: st.DataObject
) -> None:
    """Up to three of its values are others; nothing is built, encoded or scored while it is looked at."""
    record = copy.deepcopy(capsule)
    ways = st.lists(st.sampled_from([way for way in places(capsule) if way]), min_size=1, max_size=3, unique=True)
    for *way, last in sorted(data.draw(ways), key=len, reverse=True):  # what is within another goes first
        inside: Any = record
        for key in way:
            inside = inside[key]
        inside[last] = copy.deepcopy(data.draw(ODD))
    capsule_place.write_text(json.dumps(record), encoding="utf-8")
    with nothing_begins():
        arrival = arrive_by_capsule(app, str(capsule_place))
    assert "\n" not in arrival.problem
    assert INTERNAL_ERROR not in arrival.problem
    if arrival.setup is not None:
        assert app.rules is not None
        assert read_capsule(record).prompt_tokens <= 2 * app.rules.limits.prompt_tokens
        assert len(arrival.setup.recipe) <= app.rules.manifest.server.characters
        assert capsule_place.stat().st_size < 3 * 2**20


@pytest.fixture(scope="module")
def capsule_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("capsules") / "capsule.json"
