"""The charts' streams: lines of JSON that only grow, small, and true to what was put in."""

from __future__ import annotations

import json
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dpexplore.serving.frames import Frames
from dpexplore.serving.streams import SHOWN_RESTARTS, LiveStream, RankStream


def rows(text: str) -> list:
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@given(
    st.lists(
        st.lists(st.none() | st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf), min_size=3, max_size=3),
        max_size=20,
    )
)
def test_live_stream_only_grows_and_is_strict_json(steps: list[list[float | None]]) -> None:
    stream = LiveStream("run", 3, 20, 4.85)
    for number, values in enumerate(steps, start=1):
        before = stream.text
        stream.add_step(number, values, values, 0)
        assert stream.text.startswith(before)
    head, *told = rows(stream.text)
    assert head["run"] == "run"
    for row, values in zip(told, steps, strict=True):
        for sent, value in zip(row[1], values, strict=True):
            finite = value is not None and math.isfinite(value)
            assert (sent is None) is not finite
            if value is not None and finite:
                assert math.isclose(sent, value, rel_tol=1e-4, abs_tol=1e-9)


def test_long_runs_are_thinned_but_keep_their_first_step() -> None:
    stream = LiveStream("run", 1, 100_000, 1.0)
    for step in range(1, 40_001):
        stream.add_step(step, [1.0], [1.0], 0)
    sent = [row[0] for row in rows(stream.text)[1:]]
    assert sent[0] == 1
    assert len(sent) < 7_000
    assert sent == sorted(sent)


def test_the_best_of_many_restarts_is_always_shown() -> None:
    stream = LiveStream("run", 100, 10, 1.0)
    stream.add_step(1, [float(i) for i in range(100)], [0.0] * 100, 77)
    _, row = rows(stream.text)
    assert len(row[1]) == SHOWN_RESTARTS
    assert row[1][row[3]] == 77.0


def test_rank_frames_are_small_and_agree_with_the_distributions() -> None:
    generator = np.random.default_rng(0)
    target, achieved = generator.dirichlet(np.full(50_000, 0.05), 2)
    target, achieved = np.maximum(target, 1e-11), np.maximum(achieved, 1e-11)
    stream = RankStream("run", target, lambda i: f"<b>{i}</b>")
    start = len(stream.text)
    stream.add_frame(7, np.log(achieved), 0.123456789)
    assert len(stream.text) - start < 2_000
    head, frame = rows(stream.text)
    assert (frame["s"], frame["k"]) == (7, 0.12346)
    ranks = np.array(head["ranks"])
    order = np.argsort(-target, kind="stable")
    for sent, wanted in (
        (head["p"], target[order][ranks - 1]),
        (frame["q"], -np.sort(-achieved)[ranks - 1]),
        (frame["t"], achieved[order][ranks - 1]),
    ):
        assert np.abs(np.array(sent) / 100 - np.log10(wanted)).max() <= 0.00501


def test_tokens_without_mass_are_gaps_in_the_curve() -> None:
    stream = RankStream("run", np.array([0.5, 0.5, 0.0]), str)
    assert rows(stream.text)[0]["p"] == [-30, -30, None]


@given(st.integers(1, 200), st.sampled_from([4, 6, 8]))
def test_frames_are_bounded_spread_evenly_and_end_with_the_last(count: int, most: int) -> None:
    frames = Frames(3, most)
    probs = np.random.default_rng(count).dirichlet(np.ones(3), count)
    for step in range(1, count + 1):
        frames.add(step, np.log(probs[step - 1]), last=step == count)
    assert len(frames.steps) <= most
    assert (frames.steps[0], frames.steps[-1]) == (1, count)
    gaps = np.diff(frames.steps)
    assert gaps.size == 0 or gaps.max() <= max(2, 4 * count / most)
    for token in range(3):
        told = [probs[step - 1, token] for step in frames.steps]
        assert np.allclose(frames.follow(token), told, rtol=0.02)
