"""plots.py by mathematics: thinning keeps what it must, shares sum to the KL, colours can be read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpexplore.plots import (
    COLOURS,
    FloorPoint,
    colour,
    figure_json,
    floor_curve,
    kl_bands,
    kl_parts,
    log_grid,
    rank_curve,
    token_shares,
)

PAGE = ("#FFFFFF", "#1A1C20")


def luminance(hex_colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = np.array([int(hex_colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@given(st.integers(1, 200_000), st.integers(1, 300))
def test_grid_is_sorted_bounded_and_reaches_both_ends(count: int, points: int) -> None:
    ranks = log_grid(count, points)
    assert ranks[0] == 1
    assert ranks[-1] == count or points == 1
    assert len(ranks) <= points
    assert (np.diff(ranks) > 0).all()
    if count <= points:
        assert len(ranks) == count


def test_grid_keeps_the_first_ranks_one_by_one() -> None:
    assert log_grid(50_000, 120)[:10].tolist() == list(range(1, 11))


@given(st.integers(2, 400), st.integers(0, 2**31))
def test_rank_curve_falls_and_names_its_tokens(size: int, seed: int) -> None:
    probs = np.random.default_rng(seed).dirichlet(np.ones(size))
    curve = rank_curve(probs, 50)
    assert (np.diff(curve.probs) <= 0).all()
    assert np.array_equal(probs[curve.ids], curve.probs)
    assert curve.probs[0] == probs.max()


@given(st.integers(2, 12), st.integers(0, 2**31))
def test_shares_of_all_tokens_sum_to_the_kl(size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    target, achieved = generator.dirichlet(np.ones(size), 2)
    target[0] = 0
    target /= target.sum()
    achieved = np.maximum(achieved, 1e-9)
    achieved /= achieved.sum()
    shares = token_shares(target, np.log(achieved), count=size)
    seen = target > 0
    kl = float((target[seen] * np.log(target[seen] / achieved[seen])).sum())
    assert sum(share.kl_nats for share in shares) == pytest.approx(kl, abs=1e-9)
    assert [max(s.target, s.achieved) for s in shares] == sorted(
        (max(s.target, s.achieved) for s in shares), reverse=True
    )


@given(st.integers(2, 30), st.integers(1, 12), st.integers(0, 2**31))
def test_the_microscopes_parts_sum_to_the_kl_and_go_both_ways(size: int, count: int, seed: int) -> None:
    target, achieved = np.random.default_rng(seed).dirichlet(np.ones(size), 2)
    parts = kl_parts(target, np.log(achieved), count)
    kl = float((target * np.log(target / achieved)).sum())
    told = sum(share.kl_nats for share in parts.below + parts.above)
    assert told + parts.other_kl_nats == pytest.approx(kl, abs=1e-9)
    assert all(share.target > share.achieved and share.kl_nats > 0 for share in parts.below)
    assert all(share.target < share.achieved and share.kl_nats <= 0 for share in parts.above)
    assert len(parts.below) + len(parts.above) + parts.other_tokens == size
    assert not {share.token_id for share in parts.below} & {share.token_id for share in parts.above}


@given(st.integers(1, 250), st.integers(0, 2**31))
def test_rank_bands_cover_the_vocabulary_once_and_sum_to_the_kl(size: int, seed: int) -> None:
    target, achieved = np.random.default_rng(seed).dirichlet(np.ones(size), 2)
    bands = kl_bands(target, np.log(achieved))
    assert [rank for band in bands for rank in range(band.first, band.last + 1)] == [*range(1, size + 1)]
    assert [band.last for band in bands[:-1]] == [10**power for power in range(len(bands) - 1)]
    assert sum(band.kl_nats for band in bands) == pytest.approx(
        float((target * np.log(target / achieved)).sum()), abs=1e-9
    )
    assert bands[0].target == target.max()
    assert sum(band.achieved for band in bands) == pytest.approx(1)


def test_shares_hold_the_costliest_token_though_it_is_not_likely() -> None:
    target = np.array([0.5, 0.4, 0.06, 0.04])
    achieved = np.array([0.5, 0.4999, 0.0001 - 1e-12, 1e-12])
    assert 3 in {share.token_id for share in token_shares(target, np.log(achieved), count=1)}


@pytest.mark.parametrize("role", [role for role in COLOURS if role != "restart"])
@pytest.mark.parametrize("dark", [False, True])
def test_text_in_a_roles_colour_can_be_read(role: str, dark: bool) -> None:
    assert contrast(colour(role, dark), PAGE[dark]) >= 4.5


def test_colours_mean_one_thing_each() -> None:
    for dark in (False, True):
        assert len({colour(role, dark) for role in COLOURS}) == len(COLOURS)


def test_floor_curve_holds_every_family_in_order_and_the_target() -> None:
    vanilla = [FloorPoint(9, 2.2, 2.4), FloorPoint(1, 0.0, 0.0)]
    figure = floor_curve({"vanilla": vanilla, "1 outlier": [FloorPoint(9, 0.1)]}, here=FloorPoint(7, 1.8))
    traces: Any = figure.data
    names = [trace.name for trace in traces]
    assert names == ["vanilla", "head optimum (estimate)", "1 outlier", "your target"]
    assert list(traces[0].x) == [1, 9]
    assert list(traces[0].y) == [0.0, 2.2]
    assert figure.layout.xaxis.title.text
    assert figure.layout.yaxis.title.text
    line = figure_json(figure)
    assert "\n" not in line
    assert json.loads(line)["data"][3]["x"] == [7]
