"""The engine and the paper's update rules, against independent recomputation."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target, entropy
from dpexplore.tuning import Engine, EngineServer, Slot, Slots, TuneConfig, TuneResult, tune
from dpexplore.tuning.engine.capacity import Capacity
from dpexplore.tuning.engine.passes import Evaluation
from dpexplore.tuning.engine.rows import RowStack
from dpexplore.tuning.init.layout import NO_TOKEN, Layout, initial_prompt
from dpexplore.tuning.objectives.next_token import NextTokenObjective, Scores, entropy_of
from dpexplore.tuning.record.capsule import decode_array
from tests.tiny_models import ARCHITECTURES

TinyLM = Callable[[str], LanguageModel]


def best_trace(lm: LanguageModel, target: Target, config: TuneConfig) -> list[list[float | None]]:
    return [step.kl_nats for step in tune(lm, target, config)]


def finite(kls: Iterable[float | None]) -> list[float]:
    """The numbers of the restarts that were running."""
    return [kl for kl in kls if kl is not None]


def kl_by_hand(probs: torch.Tensor, logits: torch.Tensor) -> float:
    """KL(p‖q) in float64 from plain logits `(vocab,)`."""
    log_q = logits.double().log_softmax(-1)
    return float((torch.xlogy(probs, probs) - probs * log_q).sum())


def advance(stack: RowStack, loss: torch.Tensor, grad: torch.Tensor) -> None:
    """One step of a stack whose rule asks for a gradient alone."""
    work = stack.step()
    assert next(work).grad
    with pytest.raises(StopIteration):
        work.send(Evaluation(loss, loss, torch.zeros_like(loss), grad))


# What the paper's rules are.


def kl_and_slope(lm: LanguageModel, target: Target, embeds: torch.Tensor) -> tuple[float, torch.Tensor]:
    """KL(p‖q) after embeddings `(pos hidden)` and its gradient, by plain autograd."""
    free = embeds.clone().requires_grad_()
    kl = NextTokenObjective.score(lm, free[None], [NextTokenObjective(lm, target)]).loss.sum()
    (slope,) = torch.autograd.grad(kl, free)
    return float(kl.detach()), slope


def by_the_book(lm: LanguageModel, target: Target, config: TuneConfig) -> list[float]:
    """Eq. 4 and AdamW from left to right, one slot a step, as they stand in the paper: KL at every step."""
    layout = Layout.of(lm, config)
    _, start = initial_prompt(lm, layout, config, 0)
    embeds, table = start.clone().float(), lm.embedding_table
    strict = config.strict
    moments = {i: (torch.zeros(len(embeds[0])), torch.zeros(len(embeds[0])), 0) for i in range(len(embeds))}
    soft, hard = layout.soft.nonzero()[:, 0].tolist(), layout.hard.nonzero()[:, 0].tolist()
    waiting = sorted(soft + hard) if strict else hard
    per_epoch = len(waiting) if config.epoch == "sweep" else 1
    kls: list[float] = []
    best, since = float("inf"), 0
    while len(kls) < config.steps * per_epoch:
        kl, slope = kl_and_slope(lm, target, embeds)
        turn = waiting[len(kls) % len(waiting)]
        kls.append(kl)
        best, since = (kl, 0) if kl < best else (best, since + 1)
        if config.patience is not None and since >= config.patience * per_epoch:
            break
        for i in [turn] if strict and turn in soft else [] if strict else soft:
            mean, square, count = moments[i]
            mean, square, count = 0.9 * mean + 0.1 * slope[i], 0.999 * square + 0.001 * slope[i] ** 2, count + 1
            moments[i] = mean, square, count
            move = (mean / (1 - 0.9**count)) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
            embeds[i] = embeds[i] * (1 - config.learning_rate * 0.01) - config.learning_rate * move
        if turn in hard:
            scores = (table @ slope[turn]).masked_fill(layout.barred, torch.inf)
            embeds[turn] = table[scores.argmin()].float()
    return kls


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "hard", "length": 3, "patience": 4},
        {"method": "hard", "length": 3, "patience": 2, "epoch": "sweep"},
        {"method": "hybrid", "slots": "soft*1 hard*1 soft*1", "patience": None},
        {"method": "hybrid", "slots": "soft*1 hard*1 soft*1", "patience": None, "strict": True},
        {"method": "hybrid", "slots": "hard*2 soft*1", "patience": 2, "strict": True, "epoch": "sweep"},
    ],
)
def test_eq_4_by_token_and_by_sweep_and_strict_hybrids_against_plain_loops(
    lm: LanguageModel, target: Target, settings: dict
) -> None:
    config = TuneConfig(restarts=1, steps=12, seed=5, **settings)
    ours = [step.kl_nats[0] for step in tune(lm, target, config)]
    assert ours == pytest.approx(by_the_book(lm, target, config), rel=1e-3, abs=1e-5)
    assert len(ours) <= config.most_steps == 12 * config.steps_per_epoch


def test_an_epoch_of_a_sweep_counts_every_slot_that_takes_its_turn() -> None:
    hybrid = {"method": "hybrid", "slots": "soft*2 hard*3", "steps": 7, "epoch": "sweep"}
    assert TuneConfig(method="hard", length=5, steps=7, epoch="sweep").most_steps == 35
    assert TuneConfig(**hybrid).most_steps == 21
    assert TuneConfig(**hybrid, strict=True).most_steps == 35
    assert TuneConfig(method="soft", steps=7, epoch="sweep").most_steps == 7  # AdamW moves all slots at once
    assert TuneConfig(method="hard", hard_rule="gcg", steps=7, epoch="sweep").most_steps == 7
    with pytest.raises(InputError, match="left-to-right"):
        TuneConfig(**{**hybrid, "strict": True, "hard_rule": "search"})


def test_adamw_rows_follow_torch_adamw(lm: LanguageModel, target: Target) -> None:
    config = TuneConfig(length=3, restarts=2, steps=12, seed=4, patience=None)
    trace = best_trace(lm, target, config)
    for restart in range(2):
        _, start = initial_prompt(lm, Layout.of(lm, config), config, restart)
        fixed, free = start[:-3], start[-3:].clone().requires_grad_()
        optimiser = torch.optim.AdamW([free], lr=0.1)
        for step in range(12):
            prompt = torch.cat([fixed, free])[None]
            loss = NextTokenObjective.score(lm, prompt, [NextTokenObjective(lm, target)]).loss.sum()
            assert float(loss.detach()) == pytest.approx(trace[step][restart], abs=2e-4)
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
    alone = [best_trace(lm, target, config) for config in configs]
    engine = Engine(lm)
    runs = [engine.submit(target, configs[0])]
    engine.step()  # the others join a run under way
    runs += [engine.submit(target, config) for config in configs[1:]]
    while engine.step():
        pass
    for run, trace in zip(runs, alone, strict=True):
        shared = [step.kl_nats for step in run]
        assert len(shared) == len(trace)
        for ours, theirs in zip(shared, trace, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)


def test_hybrid_of_one_kind_is_that_method(lm: LanguageModel, target: Target) -> None:
    cases: list[tuple[Literal["soft", "hard"], str]] = [("soft", "soft*3"), ("hard", "hard*3")]
    for method, slots in cases:
        plain = TuneConfig(method=method, length=3, restarts=2, steps=15, seed=5)
        hybrid = TuneConfig(method="hybrid", slots=slots, restarts=2, steps=15, seed=5)
        assert best_trace(lm, target, plain) == best_trace(lm, target, hybrid)


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


def patched_score(monkeypatch: pytest.MonkeyPatch, change: Callable[[Scores, torch.Tensor], Scores]) -> None:
    """Let `change` see and replace every batch's scores."""
    original = NextTokenObjective.score
    monkeypatch.setattr(
        NextTokenObjective,
        "score",
        staticmethod(lambda lm, embeds, objectives, *_: change(original(lm, embeds, objectives), embeds)),
    )


def test_out_of_memory_halves_the_batch_and_changes_nothing(
    lm: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TuneConfig(restarts=7, steps=8, seed=3)
    calm = best_trace(lm, target, config)
    sizes: list[int] = []

    def short_of_memory(scores: Scores, embeds: torch.Tensor) -> Scores:
        sizes.append(len(embeds))
        if len(embeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return scores

    patched_score(monkeypatch, short_of_memory)
    for ours, theirs in zip(best_trace(lm, target, config), calm, strict=True):
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
    calm = best_trace(lm, target, config)
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


# Behind a server thread.


def test_server_shares_batches_between_runs_and_threads(lm: LanguageModel, target: Target) -> None:
    server = EngineServer(lm)
    widths: list[int] = []
    original = server.engine._step_stack
    server.engine._step_stack = lambda stack: (widths.append(len(stack)), original(stack))[1]  # type: ignore[method-assign]
    results: list[TuneResult] = []

    def user(seed: int) -> None:
        run = server.submit(target, TuneConfig(steps=60, restarts=2, patience=None, seed=seed))
        assert len(list(run)) == 60
        results.append(run.result)

    users = [threading.Thread(target=user, args=(seed,)) for seed in range(3)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    server.close()
    assert len(results) == 3
    assert max(widths) > 2  # two runs at least stood in one batch
    with pytest.raises(InputError, match="released"):
        server.submit(target, TuneConfig())


def test_server_stops_a_run_within_a_step_and_closes_the_rest(lm: LanguageModel, target: Target) -> None:
    server = EngineServer(lm)
    stopped, closed = (server.submit(target, TuneConfig(steps=10**6, restarts=1, patience=None)) for _ in range(2))
    assert stopped.wait(timeout=30, seen=3)
    stopped.cancel()
    seen = len(stopped.steps)
    while not stopped.finished:
        assert stopped.wait(timeout=30)
    assert len(stopped.steps) <= seen + 2  # the step under way, and one that had begun to count
    assert stopped.best_log_probs() is not None
    server.close()
    assert closed.finished
    assert closed.result.status == stopped.result.status == "cancelled"


def test_a_failing_engine_fails_its_runs_and_lives(
    lm: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = EngineServer(lm)
    with monkeypatch.context() as patch:
        patched_score(patch, lambda _scores, _embeds: 1 / 0)  # type: ignore[arg-type, return-value]
        with pytest.raises(InputError, match="internal error"):
            _ = server.submit(target, TuneConfig(steps=3)).result
    assert "ZeroDivisionError" in caplog.text
    assert server.submit(target, TuneConfig(steps=3, restarts=1)).result.status == "max_steps"
    server.close()


# Results.


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3", "opt"])
def test_hard_result_recomputes_with_plain_transformers(
    tiny_lm: TinyLM, tiny_folders: Callable[[str], Path], architecture: str
) -> None:
    lm = tiny_lm(architecture)
    target = entropy(bits=5, seed=3).build(lm)
    result = tune(lm, target, TuneConfig(method="hard", restarts=2, steps=15)).result
    plain = AutoModelForCausalLM.from_pretrained(tiny_folders(architecture), dtype=torch.float32)

    def recompute(ids: list[int]) -> float:
        with torch.no_grad():
            return kl_by_hand(target.probs, plain(torch.tensor([ids])).logits[0, -1])

    assert result.prompt_ids is not None
    assert result.prompt_text is not None
    assert result.prompt_ids[: len(lm.bos_ids)] == lm.bos_ids
    assert result.kl_nats == pytest.approx(recompute(result.prompt_ids), abs=1e-3)
    assert result.kl_reencoded_nats == pytest.approx(recompute(lm.tokenizer(result.prompt_text).input_ids), abs=1e-3)
    assert float(result.log_probs.exp().sum()) == pytest.approx(1, abs=1e-4)


def test_soft_result_reads_as_nearest_tokens(lm: LanguageModel, target: Target) -> None:
    config = TuneConfig(method="hybrid", slots='"The sea" soft*2 hard*1', restarts=1, steps=3)
    result = tune(lm, target, config).result
    assert result.prompt_ids is None
    assert result.prompt_text is None
    table = lm.embed(lm.ordinary_ids[None])[0]
    soft_at = [i for i, near in enumerate(result.nearest) if near is not None]
    assert soft_at == [len(result.nearest) - 3, len(result.nearest) - 2]
    for position in soft_at:
        near = result.nearest[position]
        assert near is not None
        cosines = torch.nn.functional.cosine_similarity(table, result.prompt_embeds[position][None])
        assert near[0].cosine == pytest.approx(float(cosines.max()), abs=1e-5)
        assert near[0].token_id == int(lm.ordinary_ids[cosines.argmax()])
        assert [token.cosine for token in near] == sorted((token.cosine for token in near), reverse=True)


def test_capsule_is_json_and_holds_the_prompt(lm: LanguageModel, target: Target) -> None:
    result = tune(lm, target, TuneConfig(restarts=2, steps=4)).result
    capsule = json.loads(json.dumps(result.capsule, allow_nan=False))
    assert capsule["target"]["recipe"] == target.recipe
    assert capsule["model"]["identity"] == lm.identity
    assert TuneConfig(**capsule["config"]).parsed_slots() == Slots.of("soft", 5)
    assert len(capsule["history"]["kl_nats"]) == 4
    embeds = decode_array(capsule["result"]["prompt_embeds"])
    assert torch.equal(embeds, result.prompt_embeds)
    logits = lm.model(inputs_embeds=embeds[None]).logits[0, -1]
    assert capsule["result"]["kl_nats"] == pytest.approx(kl_by_hand(target.probs, logits), abs=1e-4)
    assert len(base64.b64decode(capsule["result"]["prompt_embeds"]["base64"])) == embeds.numel() * 4


def test_best_so_far_can_be_watched(lm: LanguageModel, target: Target) -> None:
    run = tune(lm, target, TuneConfig(method="hard", restarts=2, steps=5))
    assert run.best_log_probs() is None
    for step in run:
        log_q, ids = run.best_log_probs(), run.best_prompt_ids()
        assert log_q is not None
        assert ids is not None
        assert float(-(target.probs * log_q).sum()) - target.entropy_nats == pytest.approx(step.best_kl_nats, abs=1e-4)
        assert torch.allclose(lm.log_probs_of_ids(torch.tensor([ids]))[0], log_q, atol=1e-4)


# Initial prompts.


def test_initial_prompts_are_ordinary_tokens_and_seeded(lm: LanguageModel) -> None:
    config = TuneConfig(method="hybrid", slots='"I love" hard*20 soft*20', seed=1)
    layout = Layout.of(lm, config)
    before = torch.random.get_rng_state()
    ids, embeds = initial_prompt(lm, layout, config, restart=0)
    again, _ = initial_prompt(lm, layout, config, restart=0)
    other, _ = initial_prompt(lm, layout, config, restart=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(ids, again)
    assert not torch.equal(ids, other)
    assert set(ids[layout.hard].tolist()) <= set(lm.ordinary_ids.tolist())
    assert (ids[layout.soft] == NO_TOKEN).all()
    text = lm.bos_ids + lm.encode("I love", bos=False)
    assert ids[: len(text)].tolist() == text
    fixed = ids != NO_TOKEN
    assert torch.allclose(embeds[fixed], lm.embed(ids[fixed][None])[0])


def test_gaussian_initialisation_has_the_embeddings_scale(lm: LanguageModel) -> None:
    config = TuneConfig(length=50, restarts=1, init="gaussian")
    draws = torch.cat([initial_prompt(lm, Layout.of(lm, config), config, i)[1][-50:] for i in range(20)])
    table = lm.embedding_table[lm.ordinary_ids]
    assert torch.allclose(draws.std(0), table.std(0), rtol=0.15)
    assert not torch.isclose(draws[0], table, atol=1e-6).all(1).any()


# What is refused, in a sentence.


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "magic"}, "accepted are 'soft', 'hard', 'hybrid'"),
        ({"restarts": 0}, "restarts is 0; it is a whole number from 1"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"patience": 0}, "patience is 0"),
        ({"init": "zeros"}, "init is 'zeros'"),
        ({"method": "soft", "slots": "hard*2"}, "use method 'hybrid'"),
        ({"method": "hybrid"}, "needs slots"),
        ({"slots": '"only text"'}, "nothing to tune"),
        ({"slots": "soft*2 sift*3"}, "'sift\\*3'"),
        ({"slots": "soft*0"}, "at least one token"),
        ({"slots": '"open soft*2'}, "cannot be read"),
        ({"slots": '"bad \\x" soft*2'}, "closed or escaped"),
    ],
)
def test_impossible_configs_are_named(changes: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        TuneConfig(**changes)


def test_unknown_preset_is_named() -> None:
    with pytest.raises(InputError, match="'paper'"):
        TuneConfig.preset("quick")


def test_a_target_over_another_vocabulary_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(InputError, match=f"has 10 probabilities.*{lm.vocab_size}"):
        tune(lm, Target(torch.full((10,), 0.1), "ten"), TuneConfig())


def test_an_over_long_prompt_is_refused(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("gpt2")
    target = entropy(bits=2).build(lm)
    with pytest.raises(InputError, match=f"65 tokens.*at most {lm.max_positions}"):
        tune(lm, target, TuneConfig(length=65))


def test_more_than_the_memory_holds_is_refused(lm: LanguageModel, target: Target) -> None:
    with pytest.raises(InputError, match=r"1,000,000 restarts of .* GiB"):
        tune(lm, target, TuneConfig(restarts=1_000_000, length=60))


# Slots.

SLOT = st.one_of(
    st.builds(lambda text: Slot("text", text=text), st.text(min_size=1)),
    st.builds(lambda n: Slot("soft", count=n), st.integers(1, 999)),
    st.builds(lambda n: Slot("hard", count=n), st.integers(1, 999)),
)


@given(st.lists(SLOT, min_size=1, max_size=6))
def test_slots_text_round_trips(items: list[Slot]) -> None:
    if all(slot.kind == "text" for slot in items):
        items = [*items, Slot("soft")]
    slots = Slots(tuple(items))
    assert Slots.parse(str(slots)) == slots


@given(st.text())
def test_any_text_is_slots_or_a_sentence(line: str) -> None:
    try:
        slots = Slots.parse(line)
    except InputError:
        return
    assert Slots.parse(str(slots)) == slots


def test_time_is_recorded(lm: LanguageModel, target: Target) -> None:
    before = time.monotonic()
    result = tune(lm, target, TuneConfig(restarts=1, steps=3)).result
    assert 0 < result.seconds <= time.monotonic() - before


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
