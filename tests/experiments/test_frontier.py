"""The frontier: monotone, within its budgets, between floor and hard prompts, and taken up where it stopped."""

from __future__ import annotations

import json
from itertools import islice, pairwise
from pathlib import Path

import pytest

from dpexplore.cli import main
from dpexplore.errors import InputError
from dpexplore.experiments.frontier import Frontier
from dpexplore.models import LanguageModel
from dpexplore.plots import frontier_figure
from dpexplore.targets import Target, parse_recipe


def frontier(lm: LanguageModel, target: Target, seed: int) -> Frontier:
    return Frontier(lm, target, lengths=(1, 2), multiples=(10, 1, 1000), steps=8, seed=seed)


def test_never_rises_and_ends_at_the_heads_optimum(lm: LanguageModel, target: Target) -> None:
    work = frontier(lm, target, seed=1)
    floor, points = work.floor(), list(work)
    assert floor.head_optimum_nats is not None
    for length in (1, 2):
        soft = [point for point in points if point.kind == "soft" and point.length == length]
        assert [point.budget for point in soft] == [1, 10, 1000]
        kls = [point.kl_nats for point in soft]
        assert all(later <= sooner + 1e-5 for sooner, later in pairwise(kls))
        for point in soft:
            assert point.budget is not None
            assert point.norm <= point.budget * lm.median_token_norm * (1 + 1e-5)
            assert point.kl_nats >= floor.lower_bound_nats - 1e-4
        (direct,) = [point for point in points if point.kind == "direct" and point.length == length]
        assert direct.kl_nats <= floor.head_optimum_nats + 1e-3
        assert direct.kl_nats <= kls[-1] + 1e-3
    figure = frontier_figure(points, floor.lower_bound_nats, floor.head_optimum_nats)
    assert [trace["name"] for trace in figure.to_dict()["data"]] == [
        *["1 soft token", "2 soft tokens", "hard prompt, 5 tokens", "head optimum", "certified floor"]
    ]


def test_goes_on_where_it_was_stopped(lm: LanguageModel, target: Target) -> None:
    first = list(islice(frontier(lm, target, seed=2), 3))
    again = list(frontier(lm, target, seed=2))
    assert [point.kept for point in again] == [True] * 3 + [False] * (len(again) - 3)
    assert [point.kl_nats for point in again[:3]] == [point.kl_nats for point in first]
    assert all(point.kept for point in frontier(lm, target, seed=2))


def test_stops_where_it_is_told_to_and_keeps_nothing_unless_asked(lm: LanguageModel, target: Target) -> None:
    work = Frontier(lm, target, lengths=(1,), multiples=(1, 10), steps=4, seed=3, keep=False)
    points = []
    for point in work:
        points.append(point)
        if len(points) == 2:
            work.stop()
    assert [point.kind for point in points] == ["hard", "soft"]
    assert work.total == 4
    again = Frontier(lm, target, lengths=(1,), multiples=(1, 10), steps=4, seed=3)
    assert not any(point.kept for point in again)


def test_refuses_what_has_no_frontier(lm: LanguageModel, target: Target) -> None:
    with pytest.raises(InputError, match="above 0"):
        Frontier(lm, target, multiples=(0.0, 1.0))
    with pytest.raises(InputError, match="single tokens"):
        Frontier(lm, parse_recipe('strings({" a": 1, " b": 1}, request="x")').build(lm))


def test_command_streams_its_points(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "frontier.html"
    asked = ["--model", "random:bytes-llama", "--target", "entropy(bits=3, seed=0)", "--budget", "2", "--length", "1"]
    assert main(["frontier", *asked, "--steps", "3", "--json", "--figure", str(page)]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["floor", "point", "point", "point", "result"]
    assert [(point["kind"], point["budget"]) for point in events[-1]["points"]] == [
        *[("hard", 1.0), ("soft", 2.0), ("direct", None)]
    ]
    assert "KL within a norm budget" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "said"), [("f.gif", ".html, .png or .svg"), ("no/where.png", "create it")])
def test_a_picture_that_cannot_be_written_is_refused_first(
    name: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["frontier", "--model", "no-such", "--target", "x", "--figure", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err
