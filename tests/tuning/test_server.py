"""The engine behind its thread: runs share batches, stop, and fail alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.tuning import EngineServer, Run, TuneConfig, TuneResult
from dpexplore.tuning.engine.engine import JOINING_AT_ONCE, Engine
from dpexplore.tuning.engine.rows import RowStack
from tests.tuning.shared import patched_score


def test_server_shares_batches_between_runs_and_threads(lm: LanguageModel, target: Target) -> None:
    server = EngineServer(lm)
    widths: list[int] = []
    original = server.engine._step_stack
    server.engine._step_stack = lambda stack: (widths.append(len(stack)), original(stack))[1]  # type: ignore[method-assign]
    results: list[TuneResult] = []

    def user(seed: int) -> None:
        run = server.submit(target, TuneConfig(steps=60, restarts=2, patience=None, seed=seed))
        assert len(list(run)) == 60
        results.append(run.result)

    users = [threading.Thread(target=user, args=(seed,)) for seed in range(3)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    server.close()
    assert len(results) == 3
    assert max(widths) > 2  # two runs at least stood in one batch
    with pytest.raises(InputError, match="released"):
        server.submit(target, TuneConfig())


def test_server_stops_a_run_within_a_step_and_closes_the_rest(lm: LanguageModel, target: Target) -> None:
    server = EngineServer(lm)
    stopped, closed = (server.submit(target, TuneConfig(steps=10**6, restarts=1, patience=None)) for _ in range(2))
    assert stopped.wait(timeout=30, seen=3)
    stopped.cancel()
    seen = len(stopped.steps)
    while not stopped.finished:
        assert stopped.wait(timeout=30)
    assert len(stopped.steps) <= seen + 2  # the step under way, and one that had begun to count
    assert stopped.best_log_probs() is not None
    server.close()
    assert closed.finished
    assert closed.result.status == stopped.result.status == "cancelled"


def test_a_run_of_a_hundred_thousand_restarts_stops_while_they_begin(
    lm: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(lm, served=True)
    monkeypatch.setattr(engine.capacity, "check", lambda *_: None)
    monkeypatch.setattr(engine.capacity, "rows", lambda *_: 100_000)
    run = engine.submit(target, TuneConfig(length=1, steps=2, restarts=100_000))
    begin = RowStack.admit

    def begin_and_stop(stack: RowStack, starters: Sequence[tuple[Run, int]]) -> None:
        begin(stack, starters)
        run.cancel()

    monkeypatch.setattr(RowStack, "admit", begin_and_stop)
    engine.step()
    assert run.begun == JOINING_AT_ONCE
    while engine.step():
        pass
    assert run.finished
    assert run.status == "cancelled"


def test_a_run_stopped_before_its_rows_join_ends(
    lm: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop comes once the engine has looked for stops, and before there are rows: nothing else calls for a step."""
    server = EngineServer(lm)
    allocate = Engine._allocate

    def stop_and_allocate(engine: Engine) -> None:
        for run in engine._runs:
            run.cancel()
        allocate(engine)

    monkeypatch.setattr(Engine, "_allocate", stop_and_allocate)
    run = server.submit(target, TuneConfig(steps=3))
    run.wait(timeout=60, seen=0)
    assert run.status == "cancelled"
    server.close()


def test_a_failing_engine_fails_its_runs_and_lives(
    lm: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = EngineServer(lm)
    with monkeypatch.context() as patch:
        patched_score(patch, lambda _scores, _embeds: 1 / 0)  # type: ignore[arg-type, return-value]
        with pytest.raises(InputError, match="internal error"):
            _ = server.submit(target, TuneConfig(steps=3)).result
    assert "ZeroDivisionError" in caplog.text
    assert server.submit(target, TuneConfig(steps=3, restarts=1)).result.status == "max_steps"
    server.close()
