"""A run on the page: its stream, its result, its stop, and what cannot run."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest

from dpexplore.errors import InputError
from dpexplore.serving.app_context import AppContext
from dpexplore.serving.model_pool import INTERNAL_ERROR
from dpexplore.tuning.engine import preparation
from dpexplore.ui.api import target_endpoint, tune_endpoint
from dpexplore.ui.components.settings import (
    make_config,
)
from dpexplore.ui.components.target_panel import (
    show_target,
)
from dpexplore.ui.components.tune_panel import check_settings, start_run, tune
from tests.ui.shared import (
    CAPSULE,
    HARD,
    HYBRID,
    LIVE,
    LONG,
    MICROSCOPE,
    RESULT,
    SOFT,
    STATUS,
    STOP,
    TUNE,
    last,
    lines,
)


def test_a_soft_run_streams_and_ends_with_its_result(app: AppContext) -> None:
    views = list(tune(app, "session", "tiny", "entropy(bits=3, seed=0)", SOFT))
    streams = [view[LIVE] for view in views]
    assert all(later.startswith(earlier) for earlier, later in pairwise(streams))
    head, *rows = lines(streams[-1])
    steps = [row for row in rows if isinstance(row, list)]
    assert head["restarts"] == 2
    assert [row[0] for row in steps] == list(range(1, 7))
    assert all(len(row[1]) == 2 for row in steps)
    assert rows[-1] == {"end": "max_steps"}
    final = views[-1]
    kl = float(re.search(r"data-kl='([^']+)'", final[RESULT])[1])  # type: ignore[index]
    assert kl == pytest.approx(min(min(row[1]) for row in steps), rel=1e-3)
    assert "Soft tokens are free vectors" in final[RESULT]
    for words in ("KL(q‖p)", "Jensen-Shannon", "total variation", "top ten"):
        assert words in final[RESULT]
    assert final[TUNE]["interactive"] is True
    assert final[STOP]["interactive"] is False
    with open(final[CAPSULE]["value"], encoding="utf-8") as file:
        assert json.load(file)["result"]["kl_nats"] == pytest.approx(kl, abs=1e-5)


def test_a_late_word_of_the_settings_of_a_run_does_not_replace_its_outcome(app: AppContext) -> None:
    """On a busy page the run may have ended before the server hears that its settings were typed."""
    last(tune(app, "typist", "tiny", "entropy(bits=3, seed=0)", SOFT))
    assert check_settings(app, "typist", "tiny", SOFT) is None
    for steps in (SOFT["steps"] + 1, SOFT["steps"]):
        assert "Ready" in (check_settings(app, "typist", "tiny", SOFT | {"steps": steps}) or "")


def test_a_hard_run_shows_ids_text_and_both_kls(app: AppContext) -> None:
    final = last(tune(app, "session", "tiny", 'capture("I love")', HARD))
    ids = json.loads(re.search(r"data-ids='([^']+)'", final[RESULT])[1])  # type: ignore[index]
    assert len(ids) == 2 + len(app.pool.get("tiny").lm.bos_ids)
    assert final[RESULT].count("class='dpx-chip'") == len(ids)
    assert "re-encoded" in final[RESULT]
    assert "data-copy" in final[RESULT]
    parts = json.loads(final[MICROSCOPE])
    told = [row["kl_nats"] for row in parts["below"] + parts["above"]]
    assert sum(told) + parts["others"]["kl_nats"] == pytest.approx(parts["kl"], abs=1e-3)
    assert {len(row["track"]) for row in parts["below"]} == {len(parts["steps"])}


def test_a_hybrid_prompt_shows_its_fixed_text_its_ids_and_its_soft_tokens(app: AppContext) -> None:
    final = last(tune(app, "session", "tiny", "entropy(bits=3)", HYBRID))
    assert "Soft tokens are free vectors" in final[RESULT]
    lm = app.pool.get("tiny").lm
    exact = re.findall(r"is-exact'>.*?<small>(\d+)</small>", final[RESULT])
    assert [int(i) for i in exact[:-1]] == lm.encode("I love", bos=False)
    assert len(exact) == len(lm.encode("I love", bos=False)) + 1


def test_stop_keeps_the_best_so_far_and_reaches_its_own_session_only(app: AppContext) -> None:
    one = tune(app, "one", "tiny", "entropy(bits=3, seed=0)", LONG)
    two = tune(app, "two", "tiny", "entropy(bits=4, seed=0)", LONG)
    for views in (one, two):
        while "data-step" not in next(views)[STATUS]:
            pass
    assert app.sessions.stop("one")
    assert "data-status='cancelled'" in last(one)[RESULT]
    assert "data-step" in next(two)[STATUS]
    assert not app.sessions.stop("one")
    assert app.sessions.stop("two")
    assert "data-status='cancelled'" in last(two)[RESULT]


def test_a_run_that_another_one_overtakes_says_no_more(app: AppContext) -> None:
    """Its last words would disable Stop while the new run moves, and stand where the new one's belong."""
    first = tune(app, "hasty", "tiny", "entropy(bits=3, seed=0)", LONG)
    while "data-step" not in next(first)[STATUS]:
        pass
    second = tune(app, "hasty", "tiny", "entropy(bits=4, seed=0)", LONG)
    while "data-step" not in next(second)[STATUS]:
        pass
    assert list(first) == []
    assert len(app.sessions.finished("hasty")) == 1  # what it found still counts
    assert app.sessions.stop("hasty")
    final = last(second)
    assert "bits=4" in final[STATUS]
    assert (final[TUNE]["interactive"], final[STOP]["interactive"]) == (True, False)


def test_a_run_that_cannot_begin_leaves_stop_to_the_one_that_moves(app: AppContext) -> None:
    moving = tune(app, "clumsy", "tiny", "entropy(bits=3, seed=0)", LONG)
    while "data-step" not in next(moving)[STATUS]:
        pass
    refused = last(tune(app, "clumsy", "tiny", "entropy(bits=99)", LONG))
    assert "99 was asked for" in refused[STATUS]
    assert (refused[TUNE]["interactive"], refused[STOP]["interactive"]) == (False, True)
    assert app.sessions.stop("clumsy")
    assert last(moving)[STOP]["interactive"] is False


def test_a_record_that_is_opened_meanwhile_is_not_written_over(app: AppContext) -> None:
    moving = tune(app, "curious", "tiny", "entropy(bits=3, seed=0)", LONG)
    while "data-step" not in next(moving)[STATUS]:
        pass
    live = app.sessions.current("curious")
    assert live is not None
    app.sessions.turn_to("curious", "run of yesterday")
    assert list(moving) == []
    assert not app.sessions.is_moving("curious")
    live.cancel()


def test_a_run_that_looks_tokens_up_says_so_and_stops(app: AppContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "measure_more", lambda *_: 0.25)  # for ever
    shown = tune(app, "looker", "tiny", "entropy(bits=3)", {**HARD, "init": "lookup"})
    assert any("Looking up tokens to begin with, once for this model: 25%" in values[STATUS] for values in shown)
    assert app.sessions.stop("looker")
    assert "stopped before its first step" in last(shown)[STATUS]


def test_a_closed_generator_stops_its_run(app: AppContext) -> None:
    config = make_config(LONG)
    views = start_run(app, "gone", "tiny", "entropy(bits=3)", config)
    next(views)
    live = app.sessions.current("gone")
    assert live is not None
    run = live.run
    views.close()  # type: ignore[attr-defined]
    assert run.wait(20) or run.finished
    while not run.finished:
        run.wait(1)
    assert run.status == "cancelled"


@pytest.mark.parametrize(
    ("recipe", "settings", "words"),
    [
        ("entropy(bits=99)", SOFT, "99 was asked for"),
        ("entropy(bit=3)", SOFT, "takes no `bit`"),
        ('file("/etc/passwd.csv")', SOFT, "uploaded files only"),
        ("entropy(bits=3)", {**SOFT, "restarts": 0}, "`restarts` is 0"),
        ("entropy(bits=3)", {**SOFT, "restarts": None}, "restarts is empty"),
        ("entropy(bits=3)", {**SOFT, "length": 2.5}, "`length` is 2.5"),
        ("entropy(bits=3)", {**SOFT, "method": "hybrid", "slots": "soft*"}, "Slots"),
        ("entropy(bits=3)", {**SOFT, "length": 50_000}, "at most"),
    ],
)
def test_what_cannot_run_is_one_sentence_and_tune_works_again(
    app: AppContext, recipe: str, settings: dict[str, Any], words: str
) -> None:
    (final,) = tune(app, "session", "tiny", recipe, settings)
    assert "is-error" in final[STATUS]
    assert words in final[STATUS]
    assert final[TUNE]["interactive"] is True


def test_no_traceback_ever_reaches_the_page(app: AppContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AppContext, "target", lambda *_: 1 / 0)
    (final,) = tune(app, "session", "tiny", "entropy(bits=3)", SOFT)
    assert INTERNAL_ERROR in final[STATUS]
    assert "Zero" not in final[STATUS]
    assert INTERNAL_ERROR in show_target(app, "tiny", "entropy(bits=3)")["problem"]


# For programs.


def test_endpoints_answer_as_the_command_line_does(app: AppContext) -> None:
    answer = target_endpoint(app, "", "entropy(bits=3, seed=0)")
    assert answer["entropy_bits"] == pytest.approx(3, abs=0.01)
    assert answer["vocab_size"] == app.pool.get("tiny").lm.vocab_size
    asked = tune_endpoint(app, "tiny", "entropy(bits=3, seed=0)", make_config({**SOFT, "steps": 5}))
    *steps, result = asyncio.run(all_of(asked))
    assert {row["event"] for row in steps} <= {"step"}
    assert result["event"] == "result"
    assert result["kl_nats"] == pytest.approx(min(result["kl_nats_per_restart"]), rel=1e-4)
    json.dumps(result)


async def all_of(rows: AsyncIterator[Any]) -> list[Any]:
    return [row async for row in rows]


def test_a_program_that_is_cancelled_while_it_waits_stops_its_run(app: AppContext) -> None:
    """As the queue of Gradio does it: the task that waits for the next row is cancelled."""

    async def ask_and_cancel() -> str:
        endless = make_config(LONG)
        rows = tune_endpoint(app, "tiny", "entropy(bits=3, seed=0)", endless)
        first = await anext(rows)
        waiting = asyncio.ensure_future(anext(rows))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return first["run"]

    run_id = asyncio.run(ask_and_cancel())
    app.sessions.settle(30)
    record = app.journal.read(run_id)
    assert record is not None
    assert app.sessions.find(run_id) is None
    assert record.capsule is not None
    assert record.capsule["result"]["status"] == "cancelled"


@pytest.mark.parametrize("recipe", ["", None, 3, ["x"]])
def test_endpoints_check_what_gradio_does_not(app: AppContext, recipe: Any) -> None:
    with pytest.raises(InputError):
        target_endpoint(app, "", recipe)
