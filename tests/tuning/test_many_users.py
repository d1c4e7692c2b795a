"""Many people at one engine: fair shares, nobody's trouble is another's, nothing leaks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.journal import Journal
from dpexplore.serving.model_pool import ModelPool
from dpexplore.serving.run_view import RunView
from dpexplore.targets import Target, entropy
from dpexplore.tuning import Engine, EngineServer, Run, TuneConfig, tune
from dpexplore.tuning.engine import engine as engine_module
from dpexplore.tuning.engine.evaluator import INTERNAL_ERROR
from dpexplore.tuning.engine.fairness import SHARED_STEP_SECONDS, Owner, Pace, fair_shares, shares_of_owners
from dpexplore.tuning.engine.rows import RowStack
from dpexplore.tuning.objectives.next_token import NextTokenObjective, Scores
from dpexplore.ui.components.run_status import status_line

TinyLM = Callable[[str], LanguageModel]


@pytest.fixture(scope="module")
def lm(tiny_lm: TinyLM) -> LanguageModel:
    return tiny_lm("llama")


@pytest.fixture(scope="module")
def target(lm: LanguageModel) -> Target:
    return entropy(bits=3, seed=1).build(lm)


# Shares.


PARTIES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 5)), max_size=12)


@given(PARTIES, st.integers(0, 200))
def test_shares_are_fair(parties: list[tuple[int, int]], room: int) -> None:
    wants, weights = [want for want, _ in parties], [weight for _, weight in parties]
    shares = fair_shares(wants, room, weights)
    assert sum(shares) == min(room, sum(wants))
    assert all(0 <= share <= want for share, want in zip(shares, wants, strict=True))
    for share, want, weight in zip(shares, wants, weights, strict=True):
        if share < want:  # nobody's last row was due to this one
            assert all((other - 1) * weight <= share * each for other, each in zip(shares, weights, strict=True))
    without = fair_shares(wants, room)
    if unmet := [share for share, want in zip(without, wants, strict=True) if share < want]:
        assert max(without) <= min(unmet) + 1


def test_an_address_gets_what_its_pages_get_and_no_more_than_it_may() -> None:
    def shares(owners: list[Owner], room: int) -> list[int]:
        return [*shares_of_owners(dict.fromkeys(owners, 10), room).values()]

    hers = Owner("hers", "1.1.1.1", 3)
    assert shares([*(Owner(f"page {part}", "2.2.2.2", 3) for part in "abc"), hers], 12) == [2, 2, 2, 6]  # one page
    assert shares([*(Owner(f"page-{i}", "2.2.2.2", 3) for i in range(2)), hers], 12) == [4, 4, 4]
    assert shares([*(Owner(f"page-{i}", "2.2.2.2", 3) for i in range(9)), hers], 12) == [1] * 9 + [3]
    assert shares([Owner("a"), Owner("b"), Owner("c")], 5) == [2, 2, 1]  # of one group without a bound


def test_a_shared_step_holds_as_many_rows_as_its_time_allows_and_one_for_every_share() -> None:
    pace = Pace()
    for _ in range(50):
        pace.note(seconds=0.04 * 10, rows=10)
    assert pace.room(shares=2) == pytest.approx(SHARED_STEP_SECONDS / 0.04, abs=1)
    assert pace.room(shares=70) == 70


# The engine.


def rows_of(engine: Engine, *runs: Run) -> list[int]:
    """How many rows of each run the next pass holds."""
    rows = [row for stack in engine._stacks.values() for row in stack.rows]
    return [sum(row.run is run for row in rows) for run in runs]


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory alone bounds a step, however slow the machine is."""
    monkeypatch.setattr(Pace, "room", lambda _self, _shares: 1000)


@pytest.mark.usefixtures("no_clock")
@pytest.mark.parametrize(
    "settings", [{}, {"soft_rule": "lbfgs"}, {"method": "hard", "hard_rule": "search", "candidates": 4}]
)
def test_a_full_machine_makes_room_for_whoever_comes(lm: LanguageModel, target: Target, settings: dict) -> None:
    config = TuneConfig(length=3, restarts=6, steps=8, patience=None, seed=2, **settings)
    alone = tune(lm, target, config).result
    engine = Engine(lm, max_rows=4)
    early = engine.submit(target, config, owner=Owner("early"))
    for _ in range(3):
        engine.step()
    assert rows_of(engine, early) == [4]
    late = engine.submit(
        target, TuneConfig(length=3, restarts=2, steps=5, patience=None, **settings), owner=Owner("late")
    )
    engine.step()
    assert rows_of(engine, early, late) == [2, 2]
    assert len(late.steps) == 1
    while engine.step():
        assert sum(rows_of(engine, early, late)) <= 4
    assert len(late.steps) == 5
    # Who had to step back comes to the same as if it had been alone.
    assert early.result.kl_nats_per_restart == pytest.approx(alone.kl_nats_per_restart, abs=1e-4)
    assert early.result.status == "max_steps"


def test_the_queue_is_told_and_served_by_turns(lm: LanguageModel, target: Target) -> None:
    config = TuneConfig(length=3, restarts=3, steps=4, patience=None)
    engine = Engine(lm, max_rows=1)
    runs = [engine.submit(target, config, owner=Owner(owner)) for owner in ("a", "b", "c")]
    engine.step()
    assert [run.begun for run in runs] == [1, 0, 0]
    assert [run.queue_position for run in runs] == [0, 1, 2]
    while engine.step():
        assert sum(rows_of(engine, *runs)) <= 1
    assert [run.result.status for run in runs] == ["max_steps"] * 3


def test_programs_of_one_address_never_take_a_visitors_half(
    lm: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty runs of programs from elsewhere: her step holds one row of theirs, however slow a row is."""
    monkeypatch.setattr(Pace, "room", lambda _self, shares: shares)
    engine, config = Engine(lm), TuneConfig(length=2, restarts=1, steps=20, patience=None)
    theirs = [engine.submit(target, config, owner=Owner("program", "2.2.2.2", 30)) for _ in range(30)]
    hers = engine.submit(target, config, owner=Owner("hers", "1.1.1.1", 30))
    for _ in range(3):
        engine.step()
        assert rows_of(engine, hers) == [1]
        assert sum(rows_of(engine, *theirs)) == 1
    assert len(hers.steps) == 3


@pytest.mark.usefixtures("no_clock")
def test_a_run_that_stepped_back_can_be_stopped(lm: LanguageModel, target: Target) -> None:
    config = TuneConfig(length=3, restarts=4, steps=50, patience=None)
    engine = Engine(lm, max_rows=4)
    early = engine.submit(target, config, owner=Owner("early"))
    engine.step()
    late = engine.submit(target, config, owner=Owner("late"))
    engine.step()
    assert len(early.parked) == 2
    early.cancel()
    engine.step()
    assert early.result.status == "cancelled"
    assert None not in early.result.kl_nats_per_restart
    assert not late.finished
    assert rows_of(engine, late) == [4]
    late.cancel()
    engine.step()


def test_runs_that_prepare_themselves_take_turns(
    lm: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part takes a second here; every step makes one, of a run that has waited longest."""
    now, advanced = [0.0], list[int]()

    class Slow:
        text = "Preparing"

        def __init__(self, number: int) -> None:
            self._number = number

        def advance(self, capacity: object) -> bool:
            assert capacity is not None
            now[0] += 1
            advanced.append(self._number)
            return advanced.count(self._number) == 2

    monkeypatch.setattr(engine_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    engine = Engine(lm)
    runs = [engine.submit(target, TuneConfig(length=2, restarts=1, steps=2)) for _ in range(3)]
    for number, run in enumerate(runs):
        run.preparation = Slow(number)
    for made in range(1, 7):
        engine.step()
        assert len(advanced) == made
    assert advanced == [0, 1, 2, 0, 1, 2]
    assert [run.result.steps for run in runs] == [2, 2, 2]


def test_one_runs_failure_leaves_the_others_alone(
    lm: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned: set[int] = set()
    original = NextTokenObjective.score

    def score(
        lm: LanguageModel, embeds: torch.Tensor, objectives: list[NextTokenObjective], *_prefix: object
    ) -> Scores:
        if any(id(objective) in poisoned for objective in objectives):
            raise RuntimeError("of this run alone")
        return original(lm, embeds, objectives)

    config = TuneConfig(length=3, restarts=2, steps=8, patience=None)
    alone = tune(lm, target, config).result
    monkeypatch.setattr(NextTokenObjective, "score", staticmethod(score))
    server = EngineServer(lm)
    bad = server.submit(target, TuneConfig(length=3, restarts=3, steps=10**6, patience=None), owner=Owner("bad"))
    good = [server.submit(target, config, owner=Owner(f"good {i}")) for i in range(3)]
    poisoned.add(id(bad.objective))
    with pytest.raises(InputError, match="internal error"):
        _ = bad.result
    for run in good:
        assert run.result.kl_nats_per_restart == pytest.approx(alone.kl_nats_per_restart, abs=1e-4)
    server.close()
    assert "of this run alone" in caplog.text
    assert str(bad.error) == INTERNAL_ERROR


def test_a_step_that_fails_ends_its_runs(
    lm: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def update(*_arguments: object) -> None:
        raise RuntimeError("in the rows' own update")

    server = EngineServer(lm)
    monkeypatch.setattr(RowStack, "take", update)
    failed = server.submit(target, TuneConfig(length=3, restarts=2, steps=8))
    assert failed.wait(60, seen=8)
    assert str(failed.error) == INTERNAL_ERROR
    monkeypatch.undo()
    assert server.submit(target, TuneConfig(length=3, restarts=2, steps=8)).result.kl_nats > 0
    server.close()
    assert "in the rows' own update" in caplog.text


# The server's pages.


@pytest.fixture
def app(lm: LanguageModel, tmp_path: Path) -> Iterator[AppContext]:
    context = AppContext(
        pool=ModelPool(lambda _name, progress: lm), model="tiny", journal=Journal(tmp_path / "runs"), grace_seconds=0.1
    )
    context.pool.load("tiny")
    yield context
    context.close()


ENDLESS = TuneConfig(length=2, restarts=1, steps=10**6, patience=None)


def test_thirty_at_once_get_their_own(app: AppContext) -> None:
    finals: dict[int, RunView] = {}

    def user(number: int) -> None:
        config = TuneConfig(length=2, restarts=1, steps=6, seed=number)
        session, recipe = f"user {number}", f"entropy(bits=2, seed={number})"
        for view in app.watch(session, app.begin(session, "tiny", recipe, config)):
            finals[number] = view

    users = [threading.Thread(target=user, args=(number,)) for number in range(30)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    for number, view in finals.items():
        assert view.result is not None
        assert view.result.capsule["config"]["seed"] == number
        assert view.result.capsule["target"]["recipe"] == f"entropy(bits=2, seed={number})"
        own = tune(
            app.pool.get("tiny").lm,
            app.target("tiny", f"entropy(bits=2, seed={number})"),
            TuneConfig(length=2, restarts=1, steps=6, seed=number),
        ).result
        assert view.result.kl_nats == pytest.approx(own.kl_nats, abs=1e-4)
        assert set(app.sessions.tuned(f"user {number}", "tiny", f"entropy(bits=2, seed={number})")) == {"best soft"}
        assert not app.sessions.tuned(f"user {number}", "tiny", f"entropy(bits=2, seed={(number + 1) % 30})")


def test_nobodys_trouble_touches_the_others(
    app: AppContext, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In one batch: memory that never suffices, losses that are NaN, a page that is closed, and one who is well."""
    config = TuneConfig(length=2, restarts=2, steps=40, patience=None)
    alone = tune(lm, app.target("tiny", "entropy(bits=2)"), config).result
    runs: dict[str, Run] = {}
    begun = threading.Event()
    original = NextTokenObjective.score

    def score(
        lm: LanguageModel, embeds: torch.Tensor, objectives: list[NextTokenObjective], *_prefix: object
    ) -> Scores:
        scores = original(lm, embeds, objectives)
        if not begun.is_set():
            return scores
        if any(objective is runs["too large"].objective for objective in objectives):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        bad = torch.tensor([objective is runs["NaN"].objective for objective in objectives])
        factor = torch.where(bad, torch.nan, 1.0)
        return Scores(scores.loss * factor, scores.kl * factor, scores.log_q)

    monkeypatch.setattr(NextTokenObjective, "score", staticmethod(score))
    views = {}
    for who in ("too large", "NaN", "closed", "well"):
        live = app.begin(who, "tiny", "entropy(bits=2)", config if who == "well" else ENDLESS)
        runs[who], views[who] = live.run, app.watch(who, live)
    for run in runs.values():
        run.wait(60, 0)
    begun.set()
    assert next(views["closed"]).result is None
    views["closed"].close()
    app.sessions.close("closed")
    lasts = {who: list(views[who])[-1] for who in ("too large", "NaN", "well")}
    assert "does not hold a single prompt" in status_line(lasts["too large"])
    assert "data-status='nonfinite'" in status_line(lasts["NaN"])
    assert lasts["well"].result is not None
    assert lasts["well"].result.status == "max_steps"
    assert lasts["well"].result.kl_nats_per_restart == pytest.approx(alone.kl_nats_per_restart, abs=1e-4)
    while not runs["closed"].finished:
        runs["closed"].wait(1)
    assert runs["closed"].status == "cancelled"
    assert not caplog.records


def test_who_comes_to_a_full_machine_is_told_how_many_are_ahead(lm: LanguageModel, tmp_path: Path) -> None:
    pool = ModelPool(lambda _name, progress: lm, server=partial(EngineServer, max_rows=1))
    app = AppContext(pool=pool, model="tiny", journal=Journal(tmp_path))
    pool.load("tiny")
    first = app.begin("first", "tiny", "entropy(bits=2)", ENDLESS)
    running = app.watch("first", first)
    while "Running" not in status_line(next(running)):
        pass
    second = app.watch("second", app.begin("second", "tiny", "entropy(bits=2)", ENDLESS))
    third = app.watch("third", app.begin("third", "tiny", "entropy(bits=2)", ENDLESS))
    while "The machine is full: 1 row is ahead of this run" not in status_line(next(third)):
        pass
    assert "The machine is full: this run is next" in status_line(next(second))
    first.cancel()
    while "Running" not in status_line(next(second)):
        pass
    for views in (running, second, third):
        views.close()
    app.close()


def test_a_run_that_nobody_looks_at_stops_after_its_time_of_grace(app: AppContext) -> None:
    live = app.begin("gone", "tiny", "entropy(bits=2)", ENDLESS)
    views = app.watch("gone", live)
    next(views)
    views.close()
    while not live.ended:
        live.run.wait(1)
    assert live.run.status == "cancelled"
    assert app.sessions.current("gone") is None


def test_a_run_that_shall_keep_running_does_and_can_be_picked_up(app: AppContext) -> None:
    app.sessions.keep_running("first page", True)
    live = app.begin("first page", "tiny", "entropy(bits=2)", ENDLESS)
    views = app.watch("first page", live)
    before = next(views)
    views.close()
    app.sessions.close("first page")
    seen = len(live.run.steps)
    while len(live.run.steps) < seen + 20:  # far beyond 0.1 s of grace
        assert not live.run.finished
        live.run.wait(1)
    assert app.sessions.join("second page", live.id) is live
    again = app.watch("second page", live)
    assert next(again).live.startswith(before.live)
    assert app.sessions.stop("second page")
    *_, last = again
    assert last.result is not None
    assert last.result.status == "cancelled"


def test_a_looker_on_does_not_end_anybodys_run(app: AppContext) -> None:
    live = app.begin("student", "tiny", "entropy(bits=2)", ENDLESS)
    mine = app.watch("student", live)
    next(mine)
    app.sessions.join("teacher", live.id)
    own = app.begin("teacher", "tiny", "entropy(bits=2)", TuneConfig(length=2, restarts=1, steps=3))
    *_, last = app.watch("teacher", own)
    assert last.result is not None
    assert not live.run.cancel_requested
    app.sessions.close("teacher")
    assert next(mine).result is None
    live.cancel()
    *_, last = mine
    assert last.result is not None
