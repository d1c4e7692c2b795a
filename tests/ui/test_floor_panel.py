"""What can come first, and the floor with its ladder."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dpexplore.floor.of_model import softmax_floor
from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.floors import WAITING_FLOORS, Floors
from dpexplore.serving.model_pool import ModelPool
from dpexplore.ui.components.floor_panel import follow_floor
from dpexplore.ui.components.reach_panel import answer as ask_reach
from dpexplore.ui.components.reach_panel import follow_listing
from dpexplore.ui.components.settings import (
    make_config,
)
from dpexplore.ui.components.tune_panel import start_run
from tests.ui.shared import (
    HARD,
    SOFT,
    floors_of,
    lines,
)


def test_a_word_is_answered_both_with_its_space_and_without(app: AppContext) -> None:
    told = ask_reach(app, "tiny", "the")
    assert told.count("data-can='true'") == 2
    assert "certified" in told
    assert "␣" in told
    assert ask_reach(app, "tiny", " the").count("data-can='true'") == 1
    assert ask_reach(app, "tiny", "e, the").count("as its likeliest tokens") == 1
    assert "not one token" in ask_reach(app, "tiny", "no single token")
    assert "empty word" in ask_reach(app, "tiny", "e,,")
    assert "use at most" in ask_reach(app, "tiny", "e" * 2000)
    assert "Type a word" in ask_reach(app, "tiny", None)


def test_the_listing_of_a_vocabulary_is_kept(app: AppContext) -> None:
    *_, first = follow_listing(app, "tiny")
    total = app.pool.get("tiny").lm.vocab_size
    assert f"of {total:,} tokens can never come first" in first
    (again,) = follow_listing(app, "tiny")
    assert again == first


def test_the_floor_is_a_sentence_a_ladder_and_its_tokens(app: AppContext) -> None:
    told, ladder, why = floors_of(app, "entropy(bits=5, seed=0)")
    bound = float(re.search(r"data-floor='([^']+)'", told)[1])  # type: ignore[index]
    again = softmax_floor(app.pool.get("tiny").lm, app.target("tiny", "entropy(bits=5, seed=0)"))
    assert bound == pytest.approx(max(again.lower_bound_nats, 0), abs=2e-3)
    assert bound > 0.01
    assert "No prompt, of any length" in told
    assert "(certified)" in told
    assert f"{bound:.2f} nats" in told
    assert "(estimate)" in ladder
    assert why.count("<tr>") > 3


def test_a_target_that_the_model_says_itself_has_no_floor_to_speak_of(app: AppContext) -> None:
    assert "is-free" in floors_of(app, 'capture("I love")')[0]


def test_a_run_is_a_rung_of_its_own_target_and_session_only(app: AppContext) -> None:
    recipe = "entropy(bits=5, seed=0)"
    for _ in start_run(app, "climber", "tiny", recipe, make_config(HARD)):
        pass
    ladder = floors_of(app, recipe, "climber")[1]
    assert "best hard" in ladder
    assert "re-encoded" in ladder
    assert "best hard" not in floors_of(app, recipe, "somebody else")[1]
    assert "best hard" not in floors_of(app, "entropy(bits=4, seed=0)", "climber")[1]
    app.sessions.close("climber")
    assert "best hard" not in floors_of(app, recipe, "climber")[1]


def test_a_known_floor_is_a_line_across_the_run(app: AppContext) -> None:
    recipe = "entropy(bits=5, seed=0)"
    floors_of(app, recipe)
    *_, final = start_run(app, "lines", "tiny", recipe, make_config(SOFT))
    (marks,) = [row for row in lines(final.live) if isinstance(row, dict) and "floor" in row]
    assert final.result is not None
    assert 0 < marks["floor"] <= marks["head"] + 1e-6
    assert marks["floor"] <= final.result.kl_nats


def test_a_model_without_a_floor_says_why_and_tunes_all_the_same(tiny_lm: Callable[[str], LanguageModel]) -> None:
    lm = tiny_lm("gemma2")
    app = AppContext(pool=ModelPool(lambda _name, progress: lm), model="tiny")
    app.pool.load("tiny")
    told, ladder, why = floors_of(app, "entropy(bits=3)")
    assert "No floor here" in told
    assert (ladder, why) == ("", "")
    *_, final = start_run(app, "s", "tiny", "entropy(bits=3)", make_config(SOFT))
    assert final.result is not None
    app.close()


def test_nobodys_floors_cancel_anothers_and_addresses_take_turns(app: AppContext) -> None:
    solved: list[str] = []
    hold = threading.Event()

    def solve(lm: LanguageModel, target: Any, start: Any, report: Any) -> Any:
        hold.wait(30)
        solved.append(target.recipe)
        return SimpleNamespace(recipe=target.recipe, point=None)

    floors: Any = Floors(solve)  # type: ignore[arg-type]
    lm = app.pool.get("tiny").lm

    def ask(name: str, session: str, address: str) -> Any:
        return floors.start(lm, SimpleNamespace(recipe=name), session, address)

    many = [ask(f"m{i}", f"page {i // 8}", "1.1.1.1") for i in range(100)]
    hers = [ask(f"h{i}", "hers", "2.2.2.2") for i in range(2)]
    hold.set()
    assert [future.result(30).recipe for future in hers] == ["h0", "h1"]
    assert [future.result(30).recipe for future in many] == [f"m{i}" for i in range(100)]
    assert solved.index("h1") <= 5  # one for each of his, and not behind all of them
    floors.close()


def test_a_page_that_asks_on_and_on_overtakes_its_own_floors_alone(app: AppContext) -> None:
    hold = threading.Event()
    floors: Any = Floors(lambda _lm, target, **_: hold.wait(30) and SimpleNamespace(recipe=target.recipe, point=None))  # type: ignore[arg-type]
    lm = app.pool.get("tiny").lm

    def ask(name: str, session: str) -> Any:
        return floors.start(lm, SimpleNamespace(recipe=name), session, "1.1.1.1")

    first, shared, hers = ask("first", "his"), ask("shared", "his"), ask("hers", "hers")
    assert ask("shared", "hers") is shared
    own = [ask(f"m{i}", "his") for i in range(30)]
    hold.set()
    assert (shared.result(30).recipe, hers.result(30).recipe) == ("shared", "hers")
    ends = [future.exception(30) for future in (first, *own)]
    assert all(error is None or "overtaken" in str(error) for error in ends)
    assert ends[-WAITING_FLOORS:] == [None] * WAITING_FLOORS
    assert sum(error is None for error in ends) <= WAITING_FLOORS + 2
    floors.close()


def test_a_floor_is_solved_once_and_a_failing_one_stays_on_the_server(app: AppContext) -> None:
    calls = []

    def solve(lm: LanguageModel, target: Any, start: Any, report: Any) -> Any:
        calls.append(target.recipe)
        raise RuntimeError("secret")

    floors = Floors(solve)
    lm, target = app.pool.get("tiny").lm, app.target("tiny", "entropy(bits=2)")
    futures = [floors.start(lm, target) for _ in range(3)]
    assert isinstance(futures[0].exception(30), RuntimeError)
    assert floors.marks(lm, target) == {}
    assert calls == ["entropy(bits=2, seed=0)"]
    floors.close()


def test_a_floor_rises_in_certified_steps_to_the_floor_itself(app: AppContext) -> None:
    lm, target = app.pool.get("tiny").lm, app.target("tiny", "entropy(bits=5, seed=7)")
    floors = Floors()
    *told, final = floors.rising(lm, target)
    steps = [bound for bound in told if isinstance(bound, float)]
    assert len(steps) == len(told)
    assert final is floors.known(lm, target)
    assert steps == sorted(steps)
    assert all(bound <= final.lower_bound_nats + 1e-9 for bound in steps)  # type: ignore[union-attr]
    floors.close()


def test_a_rising_floor_that_nobody_looks_at_is_given_up_unless_it_is_wanted(app: AppContext) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def solve(lm: LanguageModel, target: Any, start: Any, report: Any) -> Any:
        report(0.5, None)
        begun.set()
        go_on.wait(30)
        report(0.75, None)
        return SimpleNamespace(point=None)

    floors: Any = Floors(solve)  # type: ignore[arg-type]
    lm = app.pool.get("tiny").lm
    looked = floors.rising(lm, SimpleNamespace(recipe="left"))
    assert next(looked) in (0.0, 0.5)
    assert begun.wait(30)
    assert 0.5 in (next(looked), next(looked))
    waiting = floors.rising(lm, SimpleNamespace(recipe="not begun"))
    next(waiting)
    wanted = floors.start(lm, SimpleNamespace(recipe="wanted"))
    for one in (looked, waiting):
        one.close()
    go_on.set()
    assert wanted.result(30).point is None
    assert set(floors._known) == {(lm.identity, "wanted")}
    floors.close()


def test_a_page_that_has_gone_on_to_another_target_gets_no_number_of_the_one_before(app: AppContext) -> None:
    hold = threading.Event()

    def solve(lm: LanguageModel, target: Any, start: Any, report: Any) -> Any:
        report(1.25, None)
        while not hold.wait(0.01):
            report(1.25, None)
        return softmax_floor(lm, target)

    held = AppContext(pool=app.pool, floors=Floors(solve), model="tiny")
    first, other = "entropy(bits=4, seed=3)", "entropy(bits=5, seed=3)"
    shown = follow_floor(held, "drag", "tiny", first)
    told = next(values[0] for values in shown if "At least" in values[0])
    assert "1.25 nats" in told
    held.sessions.note_target("drag", "tiny", first)
    held.sessions.note_target("drag", "tiny", other)
    assert list(shown) == []
    hold.set()
    *_, final = follow_floor(held, "drag", "tiny", other)
    assert "No prompt, of any length" in final[0]
    held.floors.close()
