"""The rules beyond the paper's: quasi-Newton steps, searches over tokens, objectives, policies, replays."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target, entropy
from dpexplore.tuning import KNOBS, Engine, TuneConfig, fig4_slots, load_capsule, replay, resume, tune
from dpexplore.tuning.engine.passes import Batch, Evaluation
from dpexplore.tuning.engine.rows import RowStack, rules_of
from dpexplore.tuning.init.layout import NO_TOKEN, Layout, initial_prompt
from dpexplore.tuning.init.policy import allowed_ids, survives
from dpexplore.tuning.knobs import POLICIES
from dpexplore.tuning.objectives.next_token import (
    DIVERGENCES,
    Divergence,
    NextTokenObjective,
    Scores,
    all_divergences,
    top_overlap,
)
from dpexplore.tuning.rules.hard import SearchMemory, _regress
from dpexplore.tuning.rules.lbfgs import LBFGS
from dpexplore.tuning.rules.state import PromptState

TinyLM = Callable[[str], LanguageModel]

RULES = [
    {"method": "soft", "length": 4, "soft_rule": "lbfgs", "screen": 3},
    {"method": "hard", "length": 4, "hard_rule": "gcg", "candidates": 8, "top": 16},
    {"method": "hard", "length": 4, "hard_rule": "search", "candidates": 8, "top": 16, "screen": 4},
    {"method": "hard", "length": 4, "hard_rule": "search", "candidates": 8, "round_trip": True},
    {"method": "hybrid", "slots": "soft*2 hard*2", "soft_rule": "lbfgs", "hard_rule": "search", "candidates": 8},
    {"method": "hybrid", "slots": "soft*2 hard*2", "soft_rule": "adamw", "hard_rule": "gcg", "candidates": 8},
]


def trace(lm: LanguageModel, target: Target, config: TuneConfig) -> list[list[float | None]]:
    return [step.kl_nats for step in tune(lm, target, config)]


# Rows do not know of each other, whatever their rule.


def test_rows_of_every_rule_ignore_their_neighbours(lm: LanguageModel, target: Target) -> None:
    """Each run beside all others, with passes of three prompts at most, gives what it gives alone."""
    configs = [TuneConfig(restarts=2, steps=8, seed=i, patience=None, **rule) for i, rule in enumerate(RULES)]
    alone = [trace(lm, target, config) for config in configs]
    engine = Engine(lm)
    runs = [engine.submit(target, config) for config in configs[:3]]
    engine.step()  # the others join runs under way
    runs += [engine.submit(target, config) for config in configs[3:]]
    while engine.step():
        pass
    for run, expected in zip(runs, alone, strict=True):
        for ours, theirs in zip([step.kl_nats for step in run], expected, strict=True):
            assert ours == pytest.approx(theirs, abs=2e-3)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_deterministic_and_improves(lm: LanguageModel, target: Target, rule: dict) -> None:
    config = TuneConfig(restarts=2, steps=12, seed=3, patience=None, **rule)
    first, second = tune(lm, target, config).result, tune(lm, target, config).result
    assert first.kl_nats == second.kl_nats
    assert first.prompt_ids == second.prompt_ids
    begun = trace(lm, target, TuneConfig(**{**config.to_dict(), "steps": 1}))[0]
    assert first.kl_nats < max(kl for kl in begun if kl is not None)
    low, mean, high = first.spread_nats
    assert low <= mean <= high
    assert low == pytest.approx(first.kl_nats, abs=1e-3)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_hybrid_of_one_kind_is_that_method(lm: LanguageModel, target: Target, kind: str) -> None:
    shared = {"soft_rule": "lbfgs", "hard_rule": "search", "candidates": 8, "restarts": 2, "steps": 10, "screen": 3}
    plain = trace(lm, target, TuneConfig(method=kind, length=3, **shared))  # pyright: ignore[reportArgumentType]
    assert plain == trace(lm, target, TuneConfig(method="hybrid", slots=f"{kind}*3", **shared))


@pytest.mark.parametrize("good", [0, 2, 3], ids=["beginnings are bad", "gradients are bad", "candidates are bad"])
@pytest.mark.parametrize("rule", RULES)
def test_nan_ends_every_rules_row_alone(
    lm: LanguageModel, target: Target, rule: dict, good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some good passes one run's losses are NaN: its rows end, the other run never hears of it."""
    sick, well = (TuneConfig(restarts=1, steps=40, seed=seed, patience=None, **rule) for seed in (1, 2))
    expected = trace(lm, target, well)
    engine = Engine(lm)
    runs = [engine.submit(target, sick), engine.submit(target, well)]
    original, passes = NextTokenObjective.score, 0

    def poisoned(
        lm: LanguageModel, embeds: torch.Tensor, objectives: list[NextTokenObjective], *_prefix: object
    ) -> Scores:
        nonlocal passes
        passes += 1
        scores = original(lm, embeds, objectives)
        bad = torch.tensor([objective is runs[0].objective for objective in objectives]) & (passes > good)
        factor = torch.where(bad, torch.nan, 1.0)
        return Scores(scores.loss * factor, scores.kl * factor, scores.log_q)

    monkeypatch.setattr(NextTokenObjective, "score", staticmethod(poisoned))
    while engine.step():
        pass
    assert runs[0].outcomes[0].reason == runs[0].status == "nonfinite"
    assert len(runs[0].steps) < (40 if good else 2)  # there is no point to come back to
    shown = [step.kl_nats for step in runs[1].steps]
    assert len(shown) == len(expected)
    for ours, theirs in zip(shown[:8], expected, strict=False):  # later, L-BFGS magnifies floating-point noise
        assert ours == pytest.approx(theirs, abs=2e-3)


# L-BFGS.


def begun(starts: torch.Tensor, budget: float = torch.inf) -> PromptState:
    """Rows of soft tokens alone, starts `(rows pos hidden)`."""
    soft = torch.ones(starts.shape[:2], dtype=torch.bool)
    ids, budgets = torch.full(soft.shape, NO_TOKEN), torch.full((len(starts),), budget)
    return PromptState.of(
        ids, starts, soft, ~soft, torch.zeros(len(starts)).bool(), budgets, torch.zeros(len(starts)).long()
    )


def quadratic_rows(curvatures: torch.Tensor, starts: torch.Tensor, steps: int) -> torch.Tensor:
    """Loss of every step of L-BFGS on ½ Σ c x², rows side by side; curvatures and starts `(rows size)`."""
    rule, prompts = LBFGS(10), begun(starts[:, None])
    state = rule.begin(prompts.embeds, [TuneConfig()] * len(starts))
    losses = []
    for _ in range(steps):
        x = prompts.embeds[:, 0]
        losses.append((curvatures * x.square()).sum(1) / 2)
        rule.update(state, prompts, losses[-1], (curvatures * x)[:, None])
    return torch.stack(losses)


def test_lbfgs_solves_quadratics_row_by_row() -> None:
    rng = torch.Generator().manual_seed(0)
    curvatures = 10 ** (3 * torch.rand(4, 8, generator=rng))  # condition numbers up to a thousand
    starts = torch.randn(4, 8, generator=rng)
    together = quadratic_rows(curvatures, starts, 80)
    assert (together.min(0).values < 1e-8 * together[0]).all()
    for row in range(4):
        alone = quadratic_rows(curvatures[row : row + 1], starts[row : row + 1], 80)
        assert torch.allclose(alone[:40, 0], together[:40, row], rtol=1e-3, atol=1e-6)


def test_lbfgs_finds_the_minimum_of_a_quadratic_over_a_ball() -> None:
    """½ xᵀDx − bᵀx over ‖x‖ ≤ 1: x = (D + λ)⁻¹b, λ by bisection (Moré and Sorensen 1983)."""
    rng = torch.Generator().manual_seed(2)
    curvature, slope = 10 ** (2 * torch.rand(8, generator=rng)), 60 * torch.randn(8, generator=rng)
    low, high = 0.0, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (slope / (curvature + middle)).norm() > 1 else (low, middle)
    wanted = slope / (curvature + low)
    rule, prompts = LBFGS(10), begun(torch.randn(1, 1, 8, generator=rng), budget=1.0)
    state, best = rule.begin(prompts.embeds, [TuneConfig()]), torch.inf
    for _ in range(80):
        x = prompts.embeds[0, 0]
        assert x.norm() <= 1 + 1e-5
        loss = (curvature * x.square()).sum() / 2 - slope @ x
        best = min(best, float(loss))
        rule.update(state, prompts, loss[None], (curvature * x - slope)[None, None])
    assert best == pytest.approx(float((curvature * wanted.square()).sum() / 2 - slope @ wanted), rel=1e-5)


def test_lbfgs_needs_no_more_evaluations_than_torchs() -> None:
    rng = torch.Generator().manual_seed(1)
    curvature, start = 10 ** (3 * torch.rand(1, 8, generator=rng)), torch.randn(1, 8, generator=rng)
    x = start.clone().requires_grad_()
    evaluations: list[float] = []

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (curvature * x.square()).sum() / 2
        loss.backward()
        evaluations.append(float(loss.detach()))
        return loss

    optimiser = torch.optim.LBFGS([x], history_size=10, max_iter=100, line_search_fn="strong_wolfe")
    optimiser.step(closure)
    goal = 1e-6 * evaluations[0]
    theirs = next(i for i, loss in enumerate(evaluations) if loss < goal)
    ours = next(i for i, loss in enumerate(quadratic_rows(curvature, start, 200)[:, 0].tolist()) if loss < goal)
    assert ours <= 1.5 * theirs


def test_lbfgs_comes_back_from_where_nothing_is_finite() -> None:
    """−log x + x beyond a wall: trials over the wall are infinite, and the rule stays on this side."""
    rule, prompts = LBFGS(5), begun(torch.tensor([[[0.05]]]))
    state = rule.begin(prompts.embeds, [TuneConfig()])
    best = math.inf
    for _ in range(60):
        x = prompts.embeds[0]
        loss = torch.where(x > 0, x - x.clamp_min(1e-9).log(), torch.nan).reshape(1)
        best = min(best, float(loss.nan_to_num(math.inf)))
        rule.update(state, prompts, loss, (1 - 1 / x)[None])
    assert best == pytest.approx(1, abs=1e-5)


# Searches over tokens.


def first_proposals(
    lm: LanguageModel, target: Target, rule: str, **changes: object
) -> tuple[RowStack, Batch, Evaluation]:
    """A stack at its first step: the candidates it asks for, and the evaluation before them."""
    settings = {"length": 3, "restarts": 1, "candidates": 12, "top": 4, "seed": 5}
    config = TuneConfig(method="hard", hard_rule=rule, **settings)  # pyright: ignore[reportArgumentType]
    run = Engine(lm).submit(target, config)
    stack = RowStack(lm, rules_of(run))
    stack.admit([(run, 0)])
    work = stack.step()
    present = next(work)
    embeds = present.part(lm, 0, 1).requires_grad_()
    scores = run.objective.score(lm, embeds, [run.objective])
    (grad,) = torch.autograd.grad(scores.loss.sum(), embeds)
    found = Evaluation(scores.loss.detach(), scores.kl, torch.zeros(1), grad)
    return stack, work.send(found), found


def test_gcg_candidates_are_those_of_a_brute_force(lm: LanguageModel, target: Target) -> None:
    stack, batch, found = first_proposals(lm, target, "gcg")
    base = stack.prompts.ids[0].tolist()
    assert found.grad is not None
    table = lm.embed(torch.arange(lm.vocab_size)[None])[0].detach()
    ordinary = lm.ordinary_ids.tolist()
    assert len(batch) == 12
    for prompt in batch.ids.tolist():
        changed = [i for i, (new, old) in enumerate(zip(prompt, base, strict=True)) if new != old]
        assert len(changed) <= 1  # a token may be its own best replacement
        for place in changed:
            order = sorted(ordinary, key=lambda token, slope=found.grad[0, place]: float(table[token] @ slope))
            assert prompt[place] in order[:4]
            assert stack.rows[0].run.layout.hard[place]
    embeds = batch.part(lm, 0, len(batch))
    assert torch.allclose(embeds, lm.embed(batch.ids))


def test_search_scores_no_prompt_twice_and_never_gets_worse(lm: LanguageModel, target: Target) -> None:
    config = TuneConfig(method="hard", hard_rule="search", length=3, restarts=1, candidates=8, steps=30, patience=None)
    engine = Engine(lm)
    run = engine.submit(target, config)
    asked: list[tuple[int, ...]] = []
    original = engine._evaluate

    def watch(stack: RowStack, batch: Batch) -> Evaluation:
        if not batch.grad:
            asked.extend(map(tuple, batch.ids.tolist()))
        return original(stack, batch)

    engine._evaluate = watch  # type: ignore[method-assign]
    while engine.step():
        pass
    assert len(set(asked)) == len(asked)
    bests = [step.best_kl_nats for step in run.steps]
    assert bests == sorted(bests, reverse=True)
    assert run.result.evaluations == len(asked) + len(run.steps)


def test_search_regression_is_ridge(lm: LanguageModel) -> None:
    """The dual solution equals the primal one, solved here over all features."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(len(lm.ordinary_ids), (40, 3), generator=rng)
    losses = torch.randn(40, generator=rng)
    found = _regress(lm, SearchMemory(ids=[ids], losses=[losses]), torch.arange(3)).flatten()
    features = torch.nn.functional.normalize(lm.embedding_table[ids].double(), dim=-1).flatten(1)
    wanted = ((losses - losses.mean()) / losses.std()).double()
    primal = torch.linalg.solve(features.T @ features + torch.eye(features.shape[1]), features.T @ wanted)
    assert torch.allclose(found.double(), primal, atol=1e-4)


@pytest.mark.parametrize("rule", ["gcg", "search"])
def test_evaluations_are_a_limit(lm: LanguageModel, target: Target, rule: str) -> None:
    config = TuneConfig(
        method="hard",
        hard_rule=rule,  # pyright: ignore[reportArgumentType]
        restarts=2,
        candidates=16,
        evaluations=50,
        screen=10,
        patience=None,
    )
    run = tune(lm, target, config)
    list(run)
    assert run.steps[-1].evaluations == [50, 50]
    assert run.result.evaluations == 100
    assert run.result.status == "max_steps"


# What hard slots may hold.


@pytest.mark.parametrize("rule", ["eq4", "gcg", "search"])
@pytest.mark.parametrize("policy", POLICIES)
def test_hard_slots_hold_what_the_policy_allows(lm: LanguageModel, target: Target, rule: str, policy: str) -> None:
    forbidden = allowed_ids(lm, policy)[:3].tolist()  # pyright: ignore[reportArgumentType]
    settings = {"restarts": 2, "steps": 6, "candidates": 8, "length": 3, "forbid": tuple(forbidden), "screen": 2}
    config = TuneConfig(method="hard", hard_rule=rule, policy=policy, **settings)  # pyright: ignore[reportArgumentType]
    run = tune(lm, target, config)
    for _ in run:
        ids = run.best_prompt_ids()
        assert ids is not None
        free = [token for token, hard in zip(ids, run.layout.hard.tolist(), strict=True) if hard]
        assert not set(free) & set(forbidden)
        for token in free:
            data = lm.token_bytes(token)
            if policy == "words":
                assert data is not None
                assert data.decode().removeprefix(" ").isalpha()
            elif policy in ("ascii", "printable"):
                assert data is not None
                assert data.decode().isprintable()
                assert policy == "printable" or data.isascii()
            elif policy == "no_special":
                assert data is not None


def test_policies_are_nested(tiny_lm: TinyLM) -> None:
    for architecture in ("gpt2", "llama", "mistral"):
        lm = tiny_lm(architecture)
        kept = [set(allowed_ids(lm, policy).tolist()) for policy in ("any", "no_special", "printable", "ascii")]
        assert kept == sorted(kept, key=len, reverse=True)
        assert all(smaller <= larger for larger, smaller in pairwise(kept))
        assert set(allowed_ids(lm, "words").tolist()) <= kept[2]


def test_lists_of_tokens(lm: LanguageModel, target: Target) -> None:
    words = allowed_ids(lm, "words").tolist()[:4]
    assert allowed_ids(lm, "any", allow=words, forbid=words[:2]).tolist() == words[2:]
    config = TuneConfig(method="hard", hard_rule="search", length=2, restarts=1, steps=5, allow=tuple(words[:2]))
    result = tune(lm, target, config).result
    assert result.prompt_ids is not None
    assert set(result.prompt_ids[-2:]) <= set(words[:2])


@given(st.data())
@examples(max_examples=30, deadline=None)
def test_survivors_are_those_that_encode_to_themselves(lm: LanguageModel, data: st.DataObject) -> None:
    ordinary = lm.ordinary_ids.tolist()
    prompts = data.draw(st.lists(st.lists(st.sampled_from(ordinary), min_size=1, max_size=4), min_size=1, max_size=5))
    for ids, lasts in zip(prompts, survives(lm, prompts, 0), strict=True):
        assert lasts == (lm.tokenizer(lm.decode(ids), add_special_tokens=False)["input_ids"] == ids)


@pytest.mark.parametrize("rule", ["eq4", "gcg", "search"])
@pytest.mark.parametrize("architecture", ["gpt2", "mistral"])
def test_round_trip_prompts_survive_at_every_step(tiny_lm: TinyLM, architecture: str, rule: str) -> None:
    lm = tiny_lm(architecture)
    settings = {"length": 4, "restarts": 2, "steps": 6, "candidates": 8, "round_trip": True, "policy": "printable"}
    run = tune(lm, entropy(bits=3).build(lm), TuneConfig(method="hard", hard_rule=rule, **settings))  # pyright: ignore
    for _ in run:
        ids = run.best_prompt_ids()
        assert ids is not None
        assert survives(lm, [ids], len(lm.bos_ids)) == [True]
    assert run.result.kl_reencoded_nats == pytest.approx(run.result.kl_nats, abs=1e-4)


# Objectives.


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


# Beginnings.


def test_text_is_where_the_first_restart_begins(lm: LanguageModel) -> None:
    config = TuneConfig(method="hybrid", slots='soft*2 "the" hard*3', init="text", init_text="I love")
    layout = Layout.of(lm, config)
    ids, embeds = initial_prompt(lm, layout, config, restart=0)
    text = lm.encode("I love", bos=False)
    wanted = (text * 5)[:5]
    free = layout.soft | layout.hard
    assert ids[layout.hard].tolist() == wanted[2:]
    assert torch.equal(embeds[free], lm.embed(torch.tensor([wanted]))[0])
    other, _ = initial_prompt(lm, layout, config, restart=1)
    again, _ = initial_prompt(lm, layout, config, restart=1)
    assert torch.equal(other, again)


@pytest.mark.parametrize(("evaluations", "screened"), [(None, 6), (1000, 6), (60, 3), (10, 1)])
def test_screening_begins_at_the_best_of_the_drawn(
    lm: LanguageModel, target: Target, evaluations: int | None, screened: int
) -> None:
    config = TuneConfig(
        method="soft", length=3, restarts=2, steps=1, screen=6, seed=4, evaluations=evaluations, patience=None
    )
    run = tune(lm, target, config)
    (step,) = list(run)
    alone = screened == 1  # nothing to choose from: not scored twice
    assert step.evaluations == [1 if alone else screened + 1] * 2
    for restart in range(2):
        drawn = [initial_prompt(lm, run.layout, config, restart, draw)[1] for draw in range(screened)]
        losses = run.objective.score(lm, torch.stack(drawn), [run.objective] * screened).loss
        assert step.kl_nats[restart] == pytest.approx(float(losses.min()), abs=1e-4)


# Capsules taken up again.


@pytest.mark.parametrize("rule", RULES)
def test_capsules_replay_and_go_on(lm: LanguageModel, target: Target, rule: dict, tmp_path: Path) -> None:
    config = TuneConfig(restarts=2, steps=6, **rule)
    result = tune(lm, target, config).result
    path = tmp_path / "capsule.json"
    path.write_text(json.dumps(result.capsule, allow_nan=False), encoding="utf-8")
    capsule = load_capsule(path)
    found = replay(lm, capsule)
    assert found.kl_nats == pytest.approx(result.kl_nats, abs=1e-3)
    assert found.agrees
    assert found.same_weights
    assert found.same_libraries
    run = resume(lm, capsule, steps=10)
    first = next(iter(run))
    for ours, theirs in zip(first.kl_nats, result.kl_nats_per_restart, strict=True):
        assert theirs is not None
        assert ours is not None
        assert ours <= theirs + 1e-4  # a search's first step has scored candidates already
    assert run.result.kl_nats <= result.kl_nats + 1e-4
    assert run.result.capsule["resumed_from"]["steps"] == result.steps


def test_what_is_no_capsule_is_said(tmp_path: Path, lm: LanguageModel, target: Target) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_capsule(tmp_path / "none.json")
    path = tmp_path / "other.json"
    for text in ("{", "[]", '{"format": "something"}'):
        path.write_text(text)
        with pytest.raises(InputError, match="is no capsule"):
            load_capsule(path)
    path.write_text('{"format": "dpexplore capsule", "format_version": 99}')
    with pytest.raises(InputError, match="format 99"):
        load_capsule(path)
    capsule = tune(lm, target, TuneConfig(restarts=1, steps=2)).result.capsule
    capsule["restarts"] = [None]
    with pytest.raises(InputError, match="no prompt to go on from"):
        resume(lm, capsule)


# What is refused, in a sentence.


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"objective": "cosine"}, "accepted are 'kl', 'reverse_kl', 'js', 'tv'"),
        ({"soft_rule": "sgd"}, "accepted are 'adamw', 'lbfgs'"),
        ({"hard_rule": "beam"}, "accepted are 'eq4', 'gcg', 'search'"),
        ({"policy": "nice"}, "'printable'"),
        ({"candidates": 0}, "candidates is 0"),
        ({"evaluations": 0}, "evaluations is 0"),
        ({"allow": "yes"}, "list of token texts or ids"),
        ({"init": "text"}, "go together"),
        ({"init_text": "x"}, "go together"),
        ({"round_trip": True}, "soft tokens"),
        ({"chat": 1}, "accepted are True and False"),
        ({"method": "hybrid", "slots": "soft hard", "soft_rule": "lbfgs"}, "unchecked swaps"),
    ],
)
def test_impossible_configs_are_named(changes: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        TuneConfig(**changes)


def test_refusals_come_before_the_run(lm: LanguageModel, target: Target) -> None:
    first = lm.ordinary_ids[:1].tolist()
    refused = [
        ({"allow": tuple(first), "forbid": tuple(first)}, "leaves no token"),
        ({"allow": ("the sea and the sky",)}, "is not one token of"),
        ({"forbid": (10**6,)}, "There is no token id"),
        ({"chat": True}, "no chat template"),
    ]
    for changes, sentence in refused:
        with pytest.raises(InputError, match=sentence):
            tune(lm, target, TuneConfig(method="hard", **changes))
    one_hot = Target(torch.eye(lm.vocab_size, dtype=torch.float64)[5], "one")
    with pytest.raises(InputError, match="infinite for every prompt"):
        tune(lm, one_hot, TuneConfig(objective="reverse_kl"))
    with pytest.raises(InputError, match="unknown field 'speed'"):
        TuneConfig.from_dict({"speed": 3})


def test_configs_round_trip_through_json() -> None:
    config = TuneConfig.preset("thorough", method="hard", allow=("a", 3), policy="words", evaluations=100)
    assert TuneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_fig4_goes_from_all_hard_to_all_soft() -> None:
    assert fig4_slots() == ("hard*5", "soft*1 hard*4", "soft*2 hard*3", "soft*3 hard*2", "soft*4 hard*1", "soft*5")


def test_search_goes_elsewhere_when_everything_near_has_been_scored(lm: LanguageModel, target: Target) -> None:
    """Two allowed tokens at two places are four prompts: all are found, none is scored twice, and the run goes on."""
    allow = tuple(allowed_ids(lm, "words").tolist()[:2])
    config = TuneConfig(
        method="hard", hard_rule="search", length=2, restarts=1, steps=30, patience=None, allow=allow, candidates=8
    )
    result = tune(lm, target, config).result
    prefix = lm.bos_ids
    four = torch.tensor([[*prefix, first, second] for first in allow for second in allow])
    losses = NextTokenObjective.score(lm, lm.embed(four), [NextTokenObjective(lm, target)] * 4).loss
    assert result.kl_nats == pytest.approx(float(losses.min()), abs=1e-4)
    assert result.evaluations <= 30 + 4
    assert result.steps == 30


# The knobs.


def test_every_setting_describes_itself_and_its_limits_are_the_ones_checked() -> None:
    paper = TuneConfig()
    assert set(KNOBS) == set(paper.to_dict())
    assert TuneConfig.preset("paper") == paper
    rules = {*KNOBS["soft_rule"].choices, *KNOBS["hard_rule"].choices}
    for name, knob in KNOBS.items():
        assert knob.text.endswith(".")
        assert set(knob.rules) <= rules
        assert not knob.choices or getattr(paper, name) in knob.choices
        if knob.high is not None:
            with pytest.raises(InputError, match=name):
                TuneConfig.from_dict({name: knob.high + 1})
