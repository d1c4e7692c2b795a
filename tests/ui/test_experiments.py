"""The Experiments tab: what it shows, and sweeps that it starts, watches and stops in a process of their own."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dpexplore.errors import InputError
from dpexplore.experiments import Store
from dpexplore.experiments.gallery import Shown, gallery_of
from dpexplore.serving.sweep_runner import SweepRunner, SweepState
from dpexplore.ui.tabs.experiments import (
    HERE,
    NOTHING_HERE,
    SHIPPED,
    claims_html,
    follow,
    plan_html,
    show_figure,
    show_gallery,
    shown_figures,
    state_html,
    told_html,
)
from tests.made_up_results import fill_store


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return fill_store(tmp_path_factory.mktemp("runs"), "fig1-small", "fig7-small", "fig13-small")


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    picker, told, *rest = show_gallery(shown_figures(HERE, tmp_path / "runs"))
    assert picker["visible"] is False
    assert "Start an experiment above" in told
    assert "`python -m dpexplore sweep fig1`" in NOTHING_HERE
    assert rest == ["", "", ""]
    assert not (tmp_path / "runs").exists()


def test_figures_stand_beside_their_claims(made_up: Store) -> None:
    shown = shown_figures(HERE, made_up.folder)
    picker, empty, drawn, told, claims = show_gallery(shown)
    assert empty == ""
    assert picker["choices"][:3] == [
        ("Fig. 1", "fig1-small"), ("Fig. 1, floor", "fig1-small-floor"), ("Fig. 7", "fig7-small")
    ]  # fmt: skip
    assert drawn.count("\n") == 1
    assert json.loads(drawn)["layout"]["title"]["text"] == "Loss over the entropy of the target"
    for claim in shown[0].claims:
        assert claim["claim"] in told.replace("&#x27;", "'")
        assert f"{claim['value']:.2f}" in told
    for figure in shown:
        for claim in figure.claims:
            assert claims.count(">supported<") + claims.count(">undecided<") == sum(len(each.claims) for each in shown)
            assert f"dpx-verdict is-{'good' if claim['verdict'] == 'supported' else 'open'}" in claims


def test_another_figure_can_be_chosen(made_up: Store) -> None:
    shown = gallery_of(made_up)
    drawn, told = show_figure(shown, "fig7-small")
    assert "outlier" in told
    assert json.loads(drawn)["data"]
    assert show_figure(shown, "no such figure") == ["", ""]


def test_the_shipped_figures_are_there() -> None:
    assert {figure.name for figure in shown_figures(SHIPPED, Path("unused"))} >= {"fig1-small", "fig1-small-floor"}


def test_whatever_is_shown_is_escaped() -> None:
    bad = "<img src=x onerror=alert(1)>"
    claim = {"claim": bad, "verdict": bad, "finding": bad}
    shown = Shown("fig1-small", bad, bad, bad, bad, [claim], "{}")
    state = SweepState(bad, True, {}, (bad,))
    for html in (told_html(shown), claims_html([shown]), state_html(state), plan_html(bad, "small", Path(bad))):
        assert "<img" not in html
        assert "&lt;img" in html


def test_the_plan_says_what_is_left(made_up: Store, tmp_path: Path) -> None:
    fresh = plan_html("fig1", "small", tmp_path)
    problems = made_up.listings()[0]
    assert f"{len(problems.ids):,} problems (0 done)" in fresh
    assert "GiB of memory or more" in fresh
    assert "are done" in plan_html("fig1", "small", made_up.folder)


def test_progress_in_words() -> None:
    told = {"total": 200, "done": 50, "model": "m", "model_number": 1, "models": 2}
    told |= {"per_minute": 10.0, "seconds_left": 900.0}
    html = state_html(SweepState("fig1-small", True, told))
    assert "50 of 200 problems, 10.0 a minute, about 15 min left" in html
    assert "aria-valuenow='25'" in html
    assert "loading the model" in state_html(SweepState("fig1-small", True))
    assert state_html(SweepState()) == ""


def write_spec(folder: Path, model: Path, seeds: int) -> str:
    recipe = {"recipe": "entropy(bits=$bits, seed=$seed)", "over": {"seed": {"count": seeds}, "bits": [1, 4, 7]}}
    small = {
        "models": [str(model)], "restarts": 1, "tune": {"length": 3, "steps": 30, "patience": None},
        "groups": {"vanilla": recipe},
    }  # fmt: skip
    path = folder / f"mine{seeds}.yaml"
    path.write_text(json.dumps({"title": "mine", "figure": "fig1", "sizes": {"small": small}}))
    return str(path)


def states_of(runner: SweepRunner) -> list[SweepState]:
    return list(follow(runner))


def test_a_sweep_is_started_watched_stopped_and_continued(tmp_path: Path, tiny_folders: Callable[[str], Path]) -> None:
    runner = SweepRunner(tmp_path / "runs")
    spec = write_spec(tmp_path, tiny_folders("llama"), seeds=400)
    runner.start(spec)
    with pytest.raises(InputError, match="is running"):
        runner.start(spec)
    while not runner.state.progress.get("total") and runner.state.running:
        time.sleep(0.02)
    runner.stop()
    states = states_of(runner)
    assert [state.running for state in states[-1:]] == [False]
    assert "stopped" in states[-1].end
    assert "1,200" in state_html(SweepState(**{**states[-1].__dict__, "running": True}))
    small = write_spec(tmp_path, tiny_folders("llama"), seeds=2)
    runner.start(small)
    end = states_of(runner)[-1].end  # some of its six problems may be among those that the first sweep had finished
    assert re.fullmatch(rf"{re.escape(small)} finished: [0-6] problems computed\.", end)
    assert {figure.name for figure in shown_figures(HERE, runner.store)} >= {"mine2-small"}


def test_a_sweep_that_cannot_run_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    runner = SweepRunner(tmp_path / "file")
    runner.start("fig12-small")
    last = states_of(runner)[-1]
    assert last.end.startswith("fig12-small could not run: ")
    assert "cannot be written to" in last.end
