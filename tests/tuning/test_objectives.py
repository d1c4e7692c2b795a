"""The divergences, their gradients, and passes that runs share."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from dpexplore.models import LanguageModel
from dpexplore.targets import Target, entropy
from dpexplore.tuning import TuneConfig, tune
from dpexplore.tuning.objectives.next_token import (
    DIVERGENCES,
    Divergence,
    NextTokenObjective,
    all_divergences,
    top_overlap,
)


@given(st.integers(0, 10_000), st.floats(0.1, 8))
@examples(max_examples=50, deadline=None)
def test_divergences_are_what_they_are_called(seed: int, scale: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    p, q, r = (scale * torch.randn(3, 12, generator=rng, dtype=torch.float64)).softmax(-1)
    d = {kind: lambda a, b, kind=kind: all_divergences(a, b.log())[kind] for kind in DIVERGENCES}
    for kind in DIVERGENCES:
        assert d[kind](p, q) >= -1e-12
        assert abs(d[kind](p, p)) < 1e-12
    assert d["kl"](p, q) == pytest.approx(d["reverse_kl"](q, p))
    assert d["kl"](p, q) == pytest.approx(float(torch.nn.functional.kl_div(q.log(), p, reduction="sum")))
    for kind, most in (("js", math.log(2)), ("tv", 1)):
        assert d[kind](p, q) == pytest.approx(d[kind](q, p), abs=1e-12)
        assert d[kind](p, q) <= most + 1e-12
    assert d["tv"](p, r) <= d["tv"](p, q) + d["tv"](q, r) + 1e-12
    root = {pair: math.sqrt(max(0, d["js"](*pair))) for pair in ((p, r), (p, q), (q, r))}
    assert root[p, r] <= root[p, q] + root[q, r] + 1e-9  # the square root of Jensen-Shannon is a metric
    assert 2 * d["tv"](p, q) ** 2 <= d["kl"](p, q) + 1e-12  # Pinsker


def test_divergences_where_p_is_zero() -> None:
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    found = all_divergences(p, q.log())
    assert found["kl"] == pytest.approx(math.log(2))
    assert found["reverse_kl"] == math.inf
    assert found["tv"] == pytest.approx(0.5)
    middle = torch.tensor([0.75, 0.25]).double()
    js = (math.log(1 / 0.75) + float((q * (q.double() / middle).log()).sum())) / 2
    assert found["js"] == pytest.approx(js)
    assert top_overlap(p, q.log(), 1) in (0.0, 1.0)
    assert top_overlap(p, p.log(), 2) == 1


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_objectives_are_minimised_by_their_own_gradient(lm: LanguageModel, target: Target, kind: str) -> None:
    objective = NextTokenObjective(lm, target, kind)  # pyright: ignore[reportArgumentType]
    embeds = lm.embed(torch.tensor([[3, 9, 20]])).detach().requires_grad_()
    loss = NextTokenObjective.score(lm, embeds, [objective]).loss
    (grad,) = torch.autograd.grad(loss.sum(), embeds)
    direction = grad / grad.norm()
    ahead, behind = (
        NextTokenObjective.score(lm, embeds.detach() + sign * 1e-3 * direction, [objective]).loss for sign in (1, -1)
    )
    assert float((ahead - behind) / 2e-3) == pytest.approx(float(grad.norm()), rel=0.03)
    reached = {}
    for wanted in (kind, "kl"):
        config = TuneConfig(soft_rule="lbfgs", objective=wanted, restarts=2, steps=40, patience=None)  # pyright: ignore
        reached[wanted] = tune(lm, target, config).result.distances
    assert reached[kind][kind] <= reached["kl"][kind] + 0.05
    assert set(reached[kind]) == set(DIVERGENCES)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_targets_of_different_runs_share_a_pass(lm: LanguageModel, target: Target, kind: Divergence) -> None:
    other = entropy(bits=5, seed=7).build(lm)
    objectives = [NextTokenObjective(lm, each, kind) for each in (target, other, other, target)]
    embeds = lm.embed(torch.tensor([[3, 9], [4, 8], [5, 7], [6, 6]]))
    together = NextTokenObjective.score(lm, embeds, objectives)
    for i, objective in enumerate(objectives):
        alone = NextTokenObjective.score(lm, embeds[i : i + 1], [objective])
        assert float(together.loss[i].detach()) == pytest.approx(float(alone.loss.detach()), abs=1e-5)
        assert float(together.kl[i]) == pytest.approx(float(alone.kl), abs=1e-5)
