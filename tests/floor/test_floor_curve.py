"""Floors along a sweep and the floor curve of a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dpexplore.floor.over_entropies as curve_module
from dpexplore.errors import InputError
from dpexplore.floor import FloorSolver
from dpexplore.floor.over_entropies import KINDS, floor_curve
from dpexplore.floor.sweep import sweep
from dpexplore.models import LanguageModel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DPEXPLORE_CACHE", str(tmp_path))
    return tmp_path / "floors"


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 17, 26])
def test_a_sweep_finds_the_same_floors_as_one_at_a_time(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    solver = FloorSolver(torch.randn(90, 8, generator=generator, dtype=torch.float64), None, math.sqrt(8))
    noise = torch.randn(90, generator=generator, dtype=torch.float64)
    scales = torch.linspace(6, 0.1, count, dtype=torch.float64)
    probs = (scales[:, None] * noise).softmax(-1)
    together = sweep(solver, probs, gap_nats=1e-6)
    assert len(together) == count
    for row, floor in enumerate(together):
        assert floor.status == "converged"
        alone = solver.solve(probs[row], gap_nats=1e-6, ladder=False)[0]
        assert floor.lower_bound_nats <= alone.kl_nats
        assert floor.kl_nats == pytest.approx(alone.kl_nats, abs=2e-6)


def test_every_kind_lies_on_the_curve(tiny_lm: Callable[[str], LanguageModel], cache: Path) -> None:
    lm = tiny_lm("llama")
    told: list[float] = []
    curve = floor_curve(lm, points=6, head_optimum=True, progress=lambda _what, done: told.append(done))
    assert list(curve) == list(KINDS)
    assert told == sorted(told)
    for kind, points in curve.items():
        assert len(points) == 6
        assert [point.entropy_bits for point in points] == sorted(point.entropy_bits for point in points)
        for point in points:
            assert point.head_optimum_nats is not None
            assert 0 <= point.lower_bound_nats <= point.kl_nats <= point.head_optimum_nats
            assert point.kl_nats - point.lower_bound_nats <= 1e-3
            if kind == "captured":  # the model said it, so it can
                assert point.lower_bound_nats <= 1e-4
    assert max(point.lower_bound_nats for point in curve["vanilla"]) > 0.01
    # As in the paper's Fig. 2, an outlier makes a target of the same entropy easier.
    middle = curve["1 outlier"][2]
    nearest = min(curve["vanilla"], key=lambda point: abs(point.entropy_bits - middle.entropy_bits))
    assert middle.lower_bound_nats < nearest.lower_bound_nats


def test_the_curve_is_kept_and_read_again(
    tiny_lm: Callable[[str], LanguageModel], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("gpt2")
    first = floor_curve(lm, kinds=["vanilla", "captured"], points=3)
    assert len(list(cache.iterdir())) == 2
    with monkeypatch.context() as patched:
        patched.setattr(curve_module, "sweep", None)
        assert floor_curve(lm, kinds=["vanilla", "captured"], points=3) == first
    for file in cache.iterdir():
        file.write_text("[{")
    assert floor_curve(lm, kinds=["vanilla"], points=3)["vanilla"] == first["vanilla"]
    assert floor_curve(lm, kinds=["vanilla"], points=3, seed=1)["vanilla"] != first["vanilla"]


def test_a_cache_that_cannot_be_written_only_costs_time(
    tiny_lm: Callable[[str], LanguageModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("DPEXPLORE_CACHE", str(blocked))
    assert len(floor_curve(tiny_lm("llama"), kinds=["vanilla"], points=2)["vanilla"]) == 2


def test_what_is_not_accepted_is_said(tiny_lm: Callable[[str], LanguageModel], cache: Path) -> None:
    with pytest.raises(InputError, match="vanilla, 1 outlier"):
        floor_curve(tiny_lm("llama"), kinds=["strange"])
    with pytest.raises(InputError, match="points"):
        floor_curve(tiny_lm("llama"), points=1)
    with pytest.raises(InputError, match="soft-caps"):
        floor_curve(tiny_lm("gemma2"), points=2)
