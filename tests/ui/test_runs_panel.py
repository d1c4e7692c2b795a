"""The list of runs: what is pressed there is done, whatever is sent is refused in a sentence, and all is escaped."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from dpexplore.serving.app_context import AppContext
from dpexplore.serving.asking import look, rename
from dpexplore.serving.journal import new_run_id
from dpexplore.ui.components.kept_runs import Choice, Library, choice_of
from dpexplore.ui.components.runs_panel import EMPTY, act, lines_of, runs_chart, runs_html
from dpexplore.ui.components.tune_panel import tune
from tests.ui.shared import SOFT, last


def test_one_click_beside_a_run_asks_for_three_and_all_stand_on_one_chart(app: AppContext) -> None:
    library, session = Library(app), "lister"
    assert runs_html(app, lines_of(app, library, session, Choice())) == EMPTY
    last(tune(app, session, "tiny", "entropy(bits=3, seed=0)", SOFT))
    first = app.sessions.finished(session)[-1]
    choice, told = act(app, library, session, Choice(), {"act": "seen", "run": first})
    choice, told = act(app, library, session, choice, {"act": "same", "run": first, "how": "entropies"})
    assert (told, len(choice.run_ids)) == ("", 4)
    listed = runs_html(app, lines_of(app, library, session, choice))
    assert "3 wait. All of them end within about" in listed
    deadline = time.monotonic() + 60
    while look(app, session, choice.run_ids) and time.monotonic() < deadline:
        time.sleep(0.02)
    lines = lines_of(app, library, session, choice)
    listed = runs_html(app, lines)
    assert listed.count("data-kl=") == 4
    assert "waits" not in listed
    figure: Any = json.loads(runs_chart(lines))
    assert [trace["name"][0] for trace in figure["data"]] == ["A", "B", "C", "D"]
    evil = "<img src=x onerror=alert(1)>'\""
    act(app, library, session, choice, {"act": "name", "run": first, "text": evil})
    listed = runs_html(app, lines_of(app, library, session, choice))
    assert "<img" not in listed
    assert "&lt;img src=x onerror=alert(1)&gt;&#x27;&quot;" in listed
    unaware = choice_of(app, session, {"runs": [first]})  # another handler had not heard of the three
    assert set(unaware.run_ids) == set(choice.run_ids)
    choice, _ = act(app, library, session, choice, {"act": "drop", "run": first})
    assert first not in choice_of(app, session, choice.stored()).run_ids
    assert [line.kept.run_id for line in lines_of(app, library, session, choice) if line.kept] == list(choice.run_ids)


@pytest.mark.parametrize(
    "told", [None, [], {}, {"act": "seen"}, {"act": "seen", "run": "../x"}, {"act": "name", "run": ["a"]}, {"run": 3}]
)
def test_whatever_is_told_does_no_harm(app: AppContext, told: Any) -> None:
    assert act(app, Library(app), "s", Choice(), told) == (Choice(), "")


def test_a_run_that_is_gone_is_one_sentence(app: AppContext) -> None:
    for told in ({"act": "same", "how": "hard"}, {"act": "name", "text": "x"}):
        choice, said = act(app, Library(app), "s", Choice(), {**told, "run": new_run_id()})
        assert choice == Choice()
        assert "is-error" in said


def test_the_page_compares_runs_by_their_names(app: AppContext) -> None:
    last(tune(app, "namer", "tiny", "entropy(bits=3, seed=0)", SOFT))
    run = app.sessions.finished("namer")[-1]
    rename(app, run, "mine")
    (kept,) = Library(app).runs([run])
    assert kept.name == "mine"
