"""What runs do before their restarts begin: tokens looked up a part at a time, and soft prompts that are projected."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn.functional import cosine_similarity

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.serving.run_view import Moving
from dpexplore.targets import Target
from dpexplore.tuning import Engine, EngineServer, Run, TuneConfig, tune
from dpexplore.tuning.engine import preparation
from dpexplore.tuning.engine.passes import Batch, Evaluation
from dpexplore.tuning.engine.rows import RowStack
from dpexplore.tuning.init import lookup
from dpexplore.tuning.init.lookup import BATCH, Before, closest_tokens, last_token_context, table_bytes
from dpexplore.tuning.init.policy import survives

TinyLM = Callable[[str], LanguageModel]

LOOKUP = TuneConfig(method="hard", length=3, restarts=2, steps=3, init="lookup", hard_rule="gcg", candidates=8)
SOFT = [
    TuneConfig(method="hard", length=3, restarts=2, steps=60, init="soft", hard_rule="gcg", candidates=8),
    TuneConfig(
        method="hybrid",
        slots='soft*1 "the" hard*2',
        restarts=2,
        steps=60,
        evaluations=90,
        init="soft",
        soft_rule="lbfgs",
        hard_rule="search",
        candidates=8,
        policy="words",
        screen=3,
    ),
]


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No table is known, and measuring one takes several parts."""
    monkeypatch.setenv("DPEXPLORE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(preparation, "BATCH", 40)
    for known in (lookup._known, lookup._under_way):
        known.clear()
    yield
    for known in (lookup._known, lookup._under_way):
        known.clear()


def prepared(run: Run) -> Run:
    list(run.preparing())
    return run


# Tokens looked up.


@pytest.mark.usefixtures("unmeasured")
def test_looking_up_is_told_in_parts_while_others_move_on(lm: LanguageModel, target: Target) -> None:
    engine = Engine(lm)
    other = engine.submit(target, TuneConfig(restarts=1, steps=50, patience=None))
    run = engine.submit(target, LOOKUP)
    told = list(run.preparing())
    shares = [int(text.split()[-1].removesuffix("%")) for text in told]
    assert shares == sorted(shares)
    assert len(set(shares)) == len(told) >= lm.vocab_size / 40
    assert len(other.steps) >= len(told) - 1
    in_parts = closest_tokens(lm, target.probs)
    lookup._known.clear()
    lookup._file(lm, last_token_context(lm)).unlink()
    at_once = closest_tokens(lm, target.probs)
    assert in_parts is not None
    assert at_once is not None
    assert torch.equal(in_parts[:5], at_once[:5])
    assert run.last_tokens is not None
    assert run.last_tokens.tolist() == at_once[torch.isin(at_once, run.layout.allowed)][: len(run.last_tokens)].tolist()


@pytest.mark.usefixtures("unmeasured")
def test_a_run_stops_while_it_looks_up_and_the_next_one_goes_on_there(lm: LanguageModel, target: Target) -> None:
    engine = Engine(lm)
    run = engine.submit(target, LOOKUP)
    for _ in range(3):
        engine.step()
    assert "%" in (Moving.of(run).preparation or "")
    run.cancel()
    assert not engine.step()
    assert run.status == "cancelled"
    with pytest.raises(InputError, match="stopped before its first step"):
        _ = run.result
    assert 0 < lookup._under_way[lm][last_token_context(lm)].done < lm.vocab_size
    again = engine.submit(target, LOOKUP)
    assert len(list(again.preparing())) == -(-lm.vocab_size // 40) - 3
    assert again.result.prompt_ids is not None


@pytest.mark.usefixtures("unmeasured")
def test_a_served_run_is_queued_at_once_and_stops_while_it_looks_up(
    lm: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "measure_more", lambda *_: 0.5)  # for ever
    server = EngineServer(lm)
    run = server.submit(target, LOOKUP)
    told = run.preparing()
    assert next(told).startswith("Looking up tokens")
    assert next(told).endswith("50%")
    run.cancel()
    assert run.wait(timeout=60, seen=0)
    assert run.status == "cancelled"
    server.close()


@pytest.mark.usefixtures("unmeasured")
def test_the_tables_memory_is_asked_for_before_the_run(
    lm: LanguageModel, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = table_bytes(lm)
    assert needed >= 2 * len(lm.ordinary_ids) * lm.hidden_size
    monkeypatch.setattr("dpexplore.tuning.engine.capacity.memory_present", lambda _device: needed)
    with pytest.raises(InputError, match=r"look tokens up .* Use init 'vocab'"):
        tune(lm, target, LOOKUP)
    monkeypatch.undo()
    closest_tokens(lm, target.probs)
    assert table_bytes(lm) == 0
    table = lookup._known[lm][last_token_context(lm)]
    assert table is not None
    assert needed == sum(tensor.nbytes for tensor in vars(table).values())


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("fits", [9, 0])
def test_running_out_of_memory_halves_the_part(
    lm: LanguageModel, target: Target, fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(lm: LanguageModel, before: Before, most: int = BATCH) -> float:
        if most > fits:
            raise torch.OutOfMemoryError
        return lookup.measure_more(lm, before, most)

    monkeypatch.setattr(preparation, "measure_more", measure)
    run = tune(lm, target, LOOKUP)
    if fits:
        assert run.result.prompt_ids is not None
    else:
        with pytest.raises(InputError, match="too full to look tokens up"):
            _ = run.result


# Soft prompts, projected.


@pytest.mark.parametrize("config", SOFT, ids=["hard", "hybrid"])
def test_hard_tokens_begin_nearest_to_the_tuned_soft_ones(
    lm: LanguageModel, target: Target, config: TuneConfig
) -> None:
    soft = tune(lm, target, config.soft_part())
    list(soft)
    run = prepared(tune(lm, target, config))
    hard, allowed = run.layout.hard, run.layout.allowed
    words = lm.embedding_table[allowed]
    for restart in range(config.restarts):
        ids, embeds = run.beginning(restart)
        tuned = soft.outcomes[restart].embeds
        wanted = [int(allowed[cosine_similarity(words, vector[None]).argmax()]) for vector in tuned[hard]]
        assert ids[hard].tolist() == wanted
        assert torch.equal(ids[~hard], run.layout.ids[~hard])
        assert torch.equal(embeds[run.layout.soft], tuned[run.layout.soft])
        assert torch.equal(embeds[hard], lm.embed(ids[None, hard])[0])


@pytest.mark.parametrize("config", SOFT, ids=["hard", "hybrid"])
def test_what_the_soft_part_scores_is_counted(
    lm: LanguageModel, target: Target, config: TuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, scored = Engine(lm), 0
    original = engine.evaluator.evaluate

    def watch(stack: RowStack, batch: Batch) -> Evaluation:
        nonlocal scored
        scored += len(batch)
        return original(stack, batch)

    monkeypatch.setattr(engine.evaluator, "evaluate", watch)
    run = prepared(engine.submit(target, config))  # which ends with the step at which the restarts begin
    assert sum(run.steps[0].evaluations) == scored > config.restarts * config.soft_steps
    assert run.result.evaluations == scored
    if config.evaluations is not None:
        assert max(run.steps[-1].evaluations) <= config.evaluations


@pytest.mark.parametrize("config", SOFT, ids=["hard", "hybrid"])
def test_projected_rows_ignore_their_neighbours_and_repeat(
    lm: LanguageModel, target: Target, config: TuneConfig
) -> None:
    first, second = (tune(lm, target, config).result for _ in range(2))
    assert first.prompt_ids == second.prompt_ids
    assert first.kl_nats == second.kl_nats
    alone = prepared(tune(lm, target, config))
    engine = Engine(lm, max_rows=3)
    runs = [engine.submit(target, TuneConfig.from_dict({**config.to_dict(), "seed": seed})) for seed in (7, 0)]
    beside = prepared(runs[1])
    for restart in range(config.restarts):
        ours, theirs = alone.beginning(restart), beside.beginning(restart)
        assert torch.equal(ours[0], theirs[0])
        assert torch.allclose(ours[1], theirs[1], atol=1e-2)


@pytest.mark.parametrize("architecture", ["gpt2", "mistral"])
def test_projected_tokens_are_allowed_and_survive_encoding(
    tiny_lm: TinyLM, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm(architecture)
    probs = torch.randn(lm.vocab_size, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(0)
    config = TuneConfig(method="hard", length=4, restarts=3, steps=40, init="soft", policy="printable", round_trip=True)
    run = prepared(tune(lm, Target(probs, "random"), config))
    for restart in range(3):
        ids, _ = run.beginning(restart)
        assert torch.isin(ids[run.layout.hard], run.layout.allowed).all()
        assert survives(lm, [ids.tolist()], len(run.layout.bos_ids)) == [True]
    monkeypatch.setattr(preparation, "projected_prompt", lambda *_: None)
    fallen_back = prepared(tune(lm, Target(probs, "random"), config))
    drawn = tune(lm, Target(probs, "random"), TuneConfig.from_dict({**config.to_dict(), "init": "vocab"}))
    assert torch.equal(fallen_back.beginning(0)[0], drawn.beginning(0)[0])


def test_a_run_stops_while_its_soft_part_runs(lm: LanguageModel, target: Target) -> None:
    engine = Engine(lm)
    run = engine.submit(target, SOFT[0])
    for _ in range(3):
        engine.step()
    assert engine.running == 1
    assert re.search("step [23] of 6", Moving.of(run).preparation or "")
    run.cancel()
    while engine.step():
        pass
    assert run.status == "cancelled"
    assert engine.running == engine.active_rows == 0


@pytest.mark.parametrize(
    ("steps", "evaluations", "soft_steps"), [(500, None, 50), (10_000, None, 100), (10_000, 300, 30), (9, None, 0)]
)
def test_the_soft_part_takes_a_share(steps: int, evaluations: int | None, soft_steps: int) -> None:
    config = TuneConfig(method="hard", steps=steps, evaluations=evaluations, init="soft")
    assert config.soft_steps == soft_steps
    assert TuneConfig(method="hard", steps=steps).soft_steps == 0


def test_a_prompt_without_hard_tokens_has_no_such_beginning() -> None:
    with pytest.raises(InputError, match="starts hard tokens"):
        TuneConfig(method="soft", init="soft")
