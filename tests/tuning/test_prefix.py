"""Prompts that begin alike: one pass over what they share gives what whole prompts give, and runs are the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dpexplore.models import LanguageModel
from dpexplore.targets import Target, entropy
from dpexplore.tuning import Engine, TuneConfig, tune
from dpexplore.tuning.objectives import prefix
from dpexplore.tuning.objectives.prefix import PAYS_FOR, PAYS_FROM, Prefix, can_share, next_log_probs, shared_log_probs
from tests.tiny_models import ARCHITECTURES

TinyLM = Callable[[str], LanguageModel]

TEXT = "I love the sea, and the sea loves the other side of the mountain."
CONFIGS = [
    TuneConfig(method="hard", slots=f'"{TEXT}" hard*3', restarts=2, steps=6, hard_rule="gcg", candidates=20),
    TuneConfig(
        method="hard", slots=f'"{TEXT}" hard*3', restarts=2, steps=6, hard_rule="search", candidates=20, screen=18
    ),
    TuneConfig(
        method="hybrid",
        slots=f'"{TEXT}" soft*2 hard*2',
        restarts=2,
        steps=8,
        soft_rule="adamw",
        hard_rule="search",
        candidates=20,
    ),
]


@pytest.fixture
def passes(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each pass with a cache held."""
    assert can_share(lm)  # tried once in a process, by passes that do not count
    held: list[int] = []
    original = shared_log_probs

    def watched(lm: LanguageModel, embeds: torch.Tensor, common: Prefix) -> torch.Tensor:
        held.append(len(embeds))
        return original(lm, embeds, common)

    monkeypatch.setattr(prefix, "shared_log_probs", watched)
    return held


def without_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "PAYS_FROM", 10**6)


def prompts_in_common(lm: LanguageModel, owners: list[int], length: int, behind: int) -> torch.Tensor:
    """Embeddings `(rows pos hidden)` of random prompts, those of one owner alike in their first `length` positions."""
    picks = torch.randint(
        len(lm.ordinary_ids), (len(owners), length + behind), generator=torch.Generator().manual_seed(4)
    )
    picks[:, :length] = picks[[owners.index(owner) for owner in owners], :length]
    return lm.embed(lm.ordinary_ids[picks])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_prefix_computed_once_changes_nothing(tiny_lm: TinyLM, architecture: str) -> None:
    """Beyond the sliding windows of 16 positions too, for owners with different numbers of prompts."""
    lm = tiny_lm(architecture)
    assert can_share(lm)
    owners = [0] * 4 + [2] + [3] * 5
    for length in (3, 12, 25):
        embeds = prompts_in_common(lm, owners, length, 4)
        shared = shared_log_probs(lm, embeds, Prefix(torch.tensor(owners), length))
        assert torch.allclose(shared, lm.log_probs(embeds), atol=1e-4)


@torch.no_grad()
def test_it_is_done_where_it_pays(lm: LanguageModel, passes: list[int]) -> None:
    owners = torch.tensor([0] * PAYS_FOR + [1] * PAYS_FOR)
    embeds = prompts_in_common(lm, owners.tolist(), PAYS_FROM, 3)
    next_log_probs(lm, embeds, Prefix(owners, PAYS_FROM))
    assert passes == [2 * PAYS_FOR]
    next_log_probs(lm, embeds, Prefix(owners, PAYS_FROM - 1))
    next_log_probs(lm, embeds[1:], Prefix(owners[1:], PAYS_FROM))
    next_log_probs(lm, embeds)
    with torch.enable_grad():
        next_log_probs(lm, embeds, Prefix(owners, PAYS_FROM))
    assert passes == [2 * PAYS_FOR]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.method} {config.hard_rule}")
def test_runs_are_the_same_with_and_without(
    lm: LanguageModel, target: Target, config: TuneConfig, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tune(lm, target, config)
    steps = list(run)
    assert passes
    passes.clear()
    kl = run.result.kl_nats  # scored as a whole
    assert not passes
    assert run.outcomes[run.result.best_restart].kl_nats == pytest.approx(kl, abs=1e-4)
    without_cache(monkeypatch)
    plain = tune(lm, target, config)
    for ours, theirs in zip(steps, plain, strict=True):
        assert ours.kl_nats == pytest.approx(theirs.kl_nats, abs=1e-3)
    assert not passes
    assert plain.result.prompt_ids == run.result.prompt_ids


def test_rows_with_other_prefixes_share_a_pass(lm: LanguageModel, target: Target, passes: list[int]) -> None:
    """A run beside one whose fixed text is another, and as long, gives what it gives alone."""
    other = "The capital of France is Paris; the capital of Italy is Rome."
    hard = 3 + len(lm.encode(TEXT, bos=False)) - len(lm.encode(other, bos=False))
    config = CONFIGS[0]
    beside = TuneConfig.from_dict({**config.to_dict(), "slots": f'"{other}" hard*{hard}', "seed": 5})
    alone = [step.kl_nats for step in tune(lm, target, config)]
    engine = Engine(lm)
    runs = [engine.submit(target, beside), engine.submit(target, config)]
    for ours, theirs in zip(runs[1], alone, strict=True):
        assert ours.kl_nats == pytest.approx(theirs, abs=1e-3)
    assert max(passes) > 2 * config.candidates  # both runs in one pass


def test_a_model_whose_cache_fails_is_computed_as_a_whole(tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    prefix._sharing.clear()

    def none(**_settings: object) -> None:
        raise TypeError("no such cache")

    monkeypatch.setattr(prefix, "DynamicCache", none)
    assert not can_share(lm)
    assert tune(lm, entropy(bits=3).build(lm), CONFIGS[0]).result.prompt_ids is not None
    prefix._sharing.clear()
