"""The engine and the paper's update rules, against independent recomputation."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target, entropy
from dpexplore.tuning import Engine, TuneConfig, tune
from dpexplore.tuning.engine.capacity import Capacity
from dpexplore.tuning.engine.passes import Evaluation
from dpexplore.tuning.engine.rows import RowStack
from dpexplore.tuning.init.layout import Layout, initial_prompt
from dpexplore.tuning.objectives.next_token import NextTokenObjective, Scores, entropy_of
from tests.tiny_models import ARCHITECTURES
from tests.tuning.shared import TinyLM, finite, kl_by_hand, patched_score, trace


def advance(stack: RowStack, loss: torch.Tensor, grad: torch.Tensor) -> None:
    """One step of a stack whose rule asks for a gradient alone."""
    work = stack.step()
    assert next(work).grad
    with pytest.raises(StopIteration):
        work.send(Evaluation(loss, loss, torch.zeros_like(loss), grad))


# What the paper's rules are.


def test_adamw_rows_follow_torch_adamw(lm: LanguageModel, target: Target) -> None:
    config = TuneConfig(length=3, restarts=2, steps=12, seed=4, patience=None)
    steps = trace(lm, target, config)
    for restart in range(2):
        _, start = initial_prompt(lm, Layout.of(lm, config), config, restart)
        fixed, free = start[:-3], start[-3:].clone().requires_grad_()
        optimiser = torch.optim.AdamW([free], lr=0.1)
        for step in range(12):
            prompt = torch.cat([fixed, free])[None]
            loss = NextTokenObjective.score(lm, prompt, [NextTokenObjective(lm, target)]).loss.sum()
            assert float(loss.detach()) == pytest.approx(steps[step][restart], abs=2e-4)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def test_hard_rule_is_equation_4_left_to_right(lm: LanguageModel, target: Target) -> None:
    """Every swap is the argmin over ordinary tokens of [W(x) − θ_i]ᵀ∇, computed here token by token."""
    config = TuneConfig(method="hard", length=3, restarts=1, steps=50, seed=2, patience=None)
    run = Engine(lm).submit(target, config)
    stack = RowStack(lm)
    stack.admit([(run, 0)])
    ordinary = set(lm.ordinary_ids.tolist())
    for step in range(7):
        before = stack.prompts.ids[0].tolist()
        embeds = lm.embed(torch.tensor([before])).detach().requires_grad_()
        scores = run.objective.score(lm, embeds, [run.objective])
        (grad,) = torch.autograd.grad(scores.loss.sum(), embeds)
        offset = len(run.layout) - 3 + step % 3
        table = lm.embed(torch.arange(lm.vocab_size)[None])[0].detach()
        change = ((table - embeds[0, offset].detach()) * grad[0, offset]).sum(-1)
        wanted = min(ordinary, key=lambda token: float(change[token]))
        advance(stack, scores.loss.detach(), grad)
        after = stack.prompts.ids[0].tolist()
        assert after[offset] == wanted
        assert [token for i, token in enumerate(after) if i != offset] == [
            token for i, token in enumerate(before) if i != offset
        ]
        assert torch.allclose(stack.prompts.embeds[0], lm.embed(stack.prompts.ids)[0].float())


def test_objective_is_kl_from_log_probabilities(lm: LanguageModel, target: Target) -> None:
    ids = torch.tensor([[5, 9, 30], [7, 7, 7]])
    scores = NextTokenObjective.score(lm, lm.embed(ids), [NextTokenObjective(lm, target)] * 2)
    for row, loss, nats in zip(ids, scores.loss.tolist(), entropy_of(scores.log_q).tolist(), strict=True):
        logits = lm.model(row[None]).logits[0, -1]
        assert loss == pytest.approx(kl_by_hand(target.probs, logits), abs=1e-5)
        q = logits.double().softmax(-1)
        assert nats == pytest.approx(float(-(q * q.log()).sum()), abs=1e-5)


def test_objective_is_zero_at_the_models_own_distribution(lm: LanguageModel) -> None:
    ids = torch.tensor([[5, 9, 30]])
    own = Target(lm.log_probs_of_ids(ids)[0].double().exp(), "own")
    assert abs(float(NextTokenObjective.score(lm, lm.embed(ids), [NextTokenObjective(lm, own)]).loss)) < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_twenty_soft_steps_lower_the_kl(tiny_lm: TinyLM, architecture: str) -> None:
    lm = tiny_lm(architecture)
    run = tune(lm, entropy(bits=4, seed=0).build(lm), TuneConfig(restarts=2, steps=20, patience=None))
    steps = list(run)
    assert len(steps) == 20
    first = [kl for kl in steps[0].kl_nats if kl is not None]
    assert len(first) == 2
    for begun, reached in zip(first, run.result.kl_nats_per_restart, strict=True):
        assert reached is not None
        assert reached < begun - 1e-3


# Rows do not know of each other.


def test_rows_do_not_depend_on_who_shares_their_batch(lm: LanguageModel, target: Target) -> None:
    configs = [
        TuneConfig(method="soft", length=4, restarts=2, steps=10, seed=0),
        TuneConfig(method="hard", length=4, restarts=3, steps=14, seed=1, patience=3),
        TuneConfig(method="hybrid", slots="soft*2 hard*2", restarts=2, steps=6, seed=2),
        TuneConfig(method="soft", length=2, restarts=1, steps=9, seed=3, learning_rate=0.02),
    ]
    alone = [trace(lm, target, config) for config in configs]
    engine = Engine(lm)
    runs = [engine.submit(target, configs[0])]
    engine.step()  # the others join a run under way
    runs += [engine.submit(target, config) for config in configs[1:]]
    while engine.step():
        pass
    for run, expected in zip(runs, alone, strict=True):
        shared = [step.kl_nats for step in run]
        assert len(shared) == len(expected)
        for ours, theirs in zip(shared, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)


def test_hybrid_of_one_kind_is_that_method(lm: LanguageModel, target: Target) -> None:
    cases: list[tuple[Literal["soft", "hard"], str]] = [("soft", "soft*3"), ("hard", "hard*3")]
    for method, slots in cases:
        plain = TuneConfig(method=method, length=3, restarts=2, steps=15, seed=5)
        hybrid = TuneConfig(method="hybrid", slots=slots, restarts=2, steps=15, seed=5)
        assert trace(lm, target, plain) == trace(lm, target, hybrid)


def test_waiting_rows_take_the_place_of_those_that_left(lm: LanguageModel, target: Target) -> None:
    config = TuneConfig(method="hard", length=3, restarts=5, steps=30, seed=0, patience=4)
    together = tune(lm, target, config)
    list(together)
    engine = Engine(lm, max_rows=2)
    run = engine.submit(target, config)
    behind = engine.submit(target, TuneConfig(length=3, restarts=1, steps=3))
    while engine.step():
        assert engine.active_rows <= 2
        if not behind.begun:
            assert behind.queue_position == run.waiting_rows + 1
    assert run.result.kl_nats_per_restart == pytest.approx(together.result.kl_nats_per_restart, abs=1e-4)
    assert behind.finished
    assert len(behind.steps) == 3


def test_same_seed_same_prompt(lm: LanguageModel, target: Target) -> None:
    config = TuneConfig(method="hard", length=4, restarts=2, steps=20, seed=11)
    first, second = tune(lm, target, config).result, tune(lm, target, config).result
    assert first.prompt_ids == second.prompt_ids
    assert first.kl_nats == second.kl_nats
    assert tune(lm, target, TuneConfig(**{**config.to_dict(), "seed": 12})).result.prompt_ids != first.prompt_ids


# When rows and runs end.


def test_a_run_ends_when_its_time_is_up_and_keeps_its_best(lm: LanguageModel, target: Target) -> None:
    config = TuneConfig(length=2, restarts=2, steps=1_000_000, patience=None, seconds=2, learning_rate=1e-4)
    run = tune(lm, target, config)
    assert run.result.status == "cancelled"
    assert run.out_of_time
    assert run.seconds >= 2
    assert run.result.steps < config.steps
    assert run.result.kl_nats == pytest.approx(run.steps[-1].best_kl_nats, abs=1e-5)


def test_a_row_leaves_after_its_patience(lm: LanguageModel, target: Target) -> None:
    run = tune(lm, target, TuneConfig(method="hard", length=2, restarts=3, steps=200, patience=5))
    steps = list(run)
    assert run.result.status == "converged"
    for restart in range(3):
        kls = finite(step.kl_nats[restart] for step in steps)
        best_at = kls.index(min(kls))
        assert len(kls) == best_at + 1 + 5
        assert run.result.kl_nats_per_restart[restart] == min(kls)


def test_steps_are_a_limit(lm: LanguageModel, target: Target) -> None:
    run = tune(lm, target, TuneConfig(steps=7, restarts=2))
    assert [step.step for step in run] == list(range(1, 8))
    assert run.result.status == "max_steps"
    assert run.result.kl_nats == pytest.approx(min(min(finite(step.kl_nats)) for step in run.steps), abs=1e-5)


def test_stopping_keeps_the_best_so_far(lm: LanguageModel, target: Target) -> None:
    run = tune(lm, target, TuneConfig(steps=500, restarts=2, patience=None))
    for step in run:
        if step.step == 6:
            run.cancel()
    assert len(run.steps) == 6
    assert run.status == run.result.status == "cancelled"
    assert run.result.kl_nats == pytest.approx(run.steps[-1].best_kl_nats, abs=1e-5)


def test_stopping_before_the_first_step_is_said(lm: LanguageModel, target: Target) -> None:
    run = tune(lm, target, TuneConfig())
    run.cancel()
    assert list(run) == []
    with pytest.raises(InputError, match="before its first step"):
        _ = run.result


def test_out_of_memory_halves_the_batch_and_changes_nothing(
    lm: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TuneConfig(restarts=7, steps=8, seed=3)
    calm = trace(lm, target, config)
    sizes: list[int] = []

    def short_of_memory(scores: Scores, embeds: torch.Tensor) -> Scores:
        sizes.append(len(embeds))
        if len(embeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return scores

    patched_score(monkeypatch, short_of_memory)
    for ours, theirs in zip(trace(lm, target, config), calm, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert sizes[:3] == [7, 3, 1]  # halved until it fits
    assert sum(size for size in sizes if size <= 2) == 7 * 8


def test_a_prompt_that_never_fits_ends_its_run_alone(
    lm: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room_for_long_prompts(scores: Scores, embeds: torch.Tensor) -> Scores:
        if embeds.shape[1] > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return scores

    engine = Engine(lm)
    small = engine.submit(target, TuneConfig(length=2, steps=5, restarts=2))
    large = engine.submit(target, TuneConfig(length=9, steps=5, restarts=2))
    patched_score(monkeypatch, no_room_for_long_prompts)
    with pytest.raises(InputError, match="does not hold a single prompt"):
        _ = large.result
    assert len(list(small)) == 5
    assert small.result.status == "max_steps"


def test_capacity_halves_and_grows_back(lm: LanguageModel) -> None:
    capacity = Capacity(lm, max_rows=64)
    assert capacity.rows(5) == 64
    capacity.ran_out(64)
    assert capacity.rows(5) == 32
    for _ in range(1000):
        capacity.went_well(full=True)
    assert capacity.rows(5) == 64


def test_capacity_measures_what_a_row_needs(lm: LanguageModel) -> None:
    """Bytes grow with the prompt, and by at least what every layer's input takes."""
    capacity = Capacity(lm)
    per_position = (capacity.bytes_per_row(20) - capacity.bytes_per_row(10)) / 10
    assert per_position >= 4 * lm.hidden_size * lm.model.config.num_hidden_layers


def test_nan_ends_its_row_alone(lm: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TuneConfig(restarts=3, steps=10, seed=6)
    calm = trace(lm, target, config)
    seen = 0

    def poison(scores: Scores, _embeds: torch.Tensor) -> Scores:
        nonlocal seen
        seen += 1
        if seen == 4:
            factor = torch.tensor([1.0, torch.nan, 1.0])
            return Scores(scores.loss * factor, scores.kl * factor, scores.log_q)
        return scores

    patched_score(monkeypatch, poison)
    run = tune(lm, target, config)
    steps = list(run)
    assert [step.kl_nats[1] is None for step in steps] == [False] * 3 + [True] * 7
    for step, kls in zip(steps, calm, strict=True):
        assert step.kl_nats[0] == pytest.approx(kls[0], abs=1e-4)
        assert step.kl_nats[2] == pytest.approx(kls[2], abs=1e-4)
    assert run.result.kl_nats_per_restart[1] == pytest.approx(min(finite(kls[1] for kls in calm[:3])), abs=1e-4)


def test_all_rows_nonfinite_is_said(lm: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    patched_score(monkeypatch, lambda scores, _: Scores(scores.loss * torch.nan, scores.kl, scores.log_q))
    run = tune(lm, target, TuneConfig(restarts=2))
    list(run)
    assert run.status == "nonfinite"
    with pytest.raises(InputError, match="No restart gave a finite KL"):
        _ = run.result


@pytest.mark.parametrize("method", ["soft", "hard"])
@pytest.mark.parametrize("when", ["on the way up", "on the way down"])
def test_a_run_stops_in_the_middle_of_a_pass(
    lm: LanguageModel,
    target: Target,
    method: Literal["soft", "hard"],
    when: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hundreds of restarts make a pass that takes longer than a person waits for Stop."""
    run = tune(lm, target, TuneConfig(method=method, length=2, steps=500, restarts=3, patience=None))
    steps = iter(run)
    for _ in range(3):
        next(steps)
    score, grad = NextTokenObjective.score, torch.autograd.grad
    ended: list[str] = []

    def cancel_and_score(*args: Any) -> Scores:
        run.cancel()
        scores = score(*args)
        ended.append("on the way up")
        return scores

    def cancel_and_descend(*args: Any) -> Any:
        run.cancel()
        found = grad(*args)
        ended.append("on the way down")
        return found

    with monkeypatch.context() as patch:
        if when == "on the way up":
            patch.setattr(NextTokenObjective, "score", staticmethod(cancel_and_score))
        else:
            patch.setattr(torch.autograd, "grad", cancel_and_descend)
        assert list(steps) == []
    assert not ended
    assert run.result.status == "cancelled"
    assert run.result.steps == 3
    assert run.result.kl_nats == pytest.approx(run.steps[-1].best_kl_nats, abs=1e-5)
