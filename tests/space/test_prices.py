"""Prices: upper bounds of what requests cost, known before anything is parsed, tokenized, built or scored."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpexplore.diffuse.families import FAMILIES, family
from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.models.pieces import encode_behind
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.journal import Journal
from dpexplore.serving.model_pool import ModelPool
from dpexplore.space import VisitorRules, load_manifest
from dpexplore.space.prices import price_recipe, price_scoring, text_tokens
from dpexplore.targets import capture, parse_recipe, strings
from dpexplore.tuning import TuneConfig
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
