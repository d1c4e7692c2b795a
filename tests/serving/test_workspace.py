"""A page's runs beside each other: each in its turn, by its name, priced like any other; the same but for one thing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.asking import ask, at_three_entropies, look, rename, stop, the_same_with
from dpexplore.serving.journal import Journal, new_run_id
from dpexplore.serving.model_pool import ModelPool
from dpexplore.serving.share import Setup
from dpexplore.serving.workspace import MOST_ASKED, MOST_NAME, SIDE_BY_SIDE, Asked, clean_name, seconds_for_all
from dpexplore.targets import parse_recipe
from dpexplore.tuning import TuneConfig

LONG = Setup("tiny", "entropy(bits=3, seed=0)", TuneConfig(length=2, restarts=1, steps=100_000, patience=None))
SHORT = Setup("tiny", "entropy(bits=3, seed=0)", TuneConfig(length=2, restarts=1, steps=3))


@pytest.fixture
def app(lm: LanguageModel, tmp_path: Path) -> Iterator[AppContext]:
    def load(name: str, progress: Callable) -> LanguageModel:
        if name == "missing":
            raise InputError("There is no model 'missing'.")
        return lm

    context = AppContext(pool=ModelPool(load), model="tiny", journal=Journal(tmp_path))
    context.pool.load("tiny")
    yield context
    context.close()


def until(done: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_runs_begin_in_their_turn_and_only_while_a_page_looks(app: AppContext) -> None:
    asked = ask(app, "me", [LONG] * (SIDE_BY_SIDE + 2))
    ids = [one.run_id for one in asked]
    assert not any(one.moves for one in asked)
    assert look(app, "me", ids)
    assert [one.moves for one in asked] == [True] * SIDE_BY_SIDE + [False] * 2
    assert app.sessions.current("me") is None  # the run on the page's charts is another matter
    first = asked[0].live
    assert first is not None
    until(lambda: first.run.step_count > 0)  # stopped before its first step it would have no result
    stop(app, ids[0])
    stop(app, ids[-1])  # one that waits is taken off
    until(lambda: not asked[0].moves)
    assert not asked[SIDE_BY_SIDE].moves
    assert look(app, "me", ids)
    assert asked[SIDE_BY_SIDE].moves
    assert app.sessions.finished("me") == ids[:1]
    app.workspace.leave("me")
    assert not look(app, "me", [])  # nobody's now
    assert look(app, "the page after a reload", ids)
    assert {one.session for one in asked[1:-1]} == {"the page after a reload"}


def test_what_is_asked_for_is_priced_and_bounded(app: AppContext) -> None:
    with pytest.raises(InputError, match="takes no `bit`"):
        ask(app, "me", [SHORT, Setup("tiny", "entropy(bit=3)", TuneConfig())])
    assert app.workspace.of("me") == []  # all or none
    ask(app, "me", [SHORT] * MOST_ASKED)
    with pytest.raises(InputError, match="take some off"):
        ask(app, "me", [SHORT])
    assert ask(app, "somebody else", [SHORT])
    first, *_ = app.workspace.of("me")
    assert first.seconds is not None
    assert seconds_for_all([first, first]) == pytest.approx(2 * first.seconds)
    assert seconds_for_all([first, Asked(new_run_id(), "me", "", SHORT)]) is None


def test_a_model_that_does_not_load_is_one_sentence_and_holds_nothing_up(app: AppContext) -> None:
    lost, fine = ask(app, "me", [Setup("missing", SHORT.recipe, SHORT.config), SHORT])
    until(lambda: not look(app, "me", []))
    assert lost.error == "There is no model 'missing'."
    record = app.journal.read(fine.run_id)
    assert record is not None
    assert record.capsule is not None
    assert app.workspace.of("me") == [lost]


def test_a_name_stays_with_its_run_to_the_capsule(app: AppContext) -> None:
    waiting, moving = ask(app, "me", [SHORT, SHORT])
    assert waiting.name == "soft · entropy(bits=3, seed=0)"
    rename(app, waiting.run_id, "  the\nfirst ")
    until(lambda: not look(app, "me", []))
    record = app.journal.read(waiting.run_id)
    assert record is not None
    assert record.capsule is not None
    assert record.name == record.capsule["name"] == "the first"
    rename(app, moving.run_id, "named afterwards")
    rename(app, moving.run_id, "and again")
    record = app.journal.read(moving.run_id)
    assert record is not None
    capsule = record.as_capsule()
    assert capsule is not None
    assert capsule["name"] == "and again"
    again = app.journal.read(app.journal.add(capsule))  # as it is opened elsewhere
    assert again is not None
    assert again.name == "and again"
    for run_id, name in ((new_run_id(), "x"), ("../etc", "x"), (moving.run_id, " \n ")):
        with pytest.raises(InputError):
            rename(app, run_id, name)
    assert len(clean_name("x" * 500)) == MOST_NAME
    assert clean_name("a\x00\u202eb") == "ab"


def test_a_run_that_moves_is_renamed_in_its_journal_and_says_how_long_it_takes(app: AppContext) -> None:
    (asked,) = ask(app, "me", [LONG])
    look(app, "me", [])
    live = asked.live
    assert live is not None
    rename(app, asked.run_id, "underway")
    until(lambda: live.seconds_left is not None)
    assert asked.seconds_left == live.seconds_left
    stop(app, asked.run_id)
    until(lambda: not look(app, "me", []))
    record = app.journal.read(asked.run_id)
    assert record is not None
    assert record.name == "underway"


def test_three_entropies_are_those_that_are_asked_for(app: AppContext, lm: LanguageModel) -> None:
    vocab = math.log2(lm.vocab_size)
    for recipe in ("entropy(bits=2, outliers=2, seed=5)", 'capture("I love").shuffle(seed=1)'):
        target = app.target("tiny", recipe)
        built = [parse_recipe(text).build(lm) for text in at_three_entropies(target, lm.vocab_size)]
        for share, found in zip((0.25, 0.5, 0.75), built, strict=True):
            assert found.entropy_bits == pytest.approx(share * vocab, abs=0.05)
    with pytest.raises(InputError, match="one token"):
        at_three_entropies(app.target("tiny", 'capture("I love").top_k(1)'), lm.vocab_size)


def test_the_same_but_for_one_thing(app: AppContext) -> None:
    hybrid = Setup("tiny", SHORT.recipe, TuneConfig(method="hybrid", slots="soft*2 hard*3", restarts=4, seed=7))
    (hard,) = the_same_with(app, hybrid, "hard")
    assert (hard.config.method, hard.config.length, hard.config.restarts, hard.config.seed) == ("hard", 5, 4, 7)
    (direct,) = the_same_with(app, hybrid, "direct")
    assert (direct.config.soft_rule, direct.config.seed) == ("direct", 7)
    (soft,) = the_same_with(app, direct, "soft")
    assert soft.config.soft_rule != "direct"
    assert the_same_with(app, hybrid, "model", "gpt2") == [Setup("gpt2", hybrid.recipe, hybrid.config)]
    for how, model in (("model", "tiny"), ("model", ""), ("sideways", "")):
        with pytest.raises(InputError):
            the_same_with(app, hybrid, how, model)
