"""The shapes and precisions that public docstrings promise, checked as the functions run (jaxtyping)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, Float32, Float64, Int, TypeCheckError, jaxtyped
from torch import Tensor

from dpexplore.floor.certificate import Certificate, certify
from dpexplore.floor.products import HeadProducts
from dpexplore.floor.solver import FloorResult, FloorSolver
from dpexplore.models import LanguageModel
from dpexplore.models.head import SoftmaxHead, extract_head
from dpexplore.targets import Target, entropy
from dpexplore.targets.target import entropy_nats
from dpexplore.tuning import TuneConfig, TuneResult, tune
from dpexplore.tuning.objectives.next_token import DIVERGENCES, divergence, entropy_of, log_probs_of

TinyLM = Callable[[str], LanguageModel]
checked = jaxtyped(typechecker=beartype)
ARCHITECTURES = ("llama", "gpt2", "gemma3", "opt")  # opt projects its input embeddings


@checked
def embed(lm: LanguageModel, ids: Int[Tensor, "rows pos"]) -> Float[Tensor, "rows pos {lm.hidden_size}"]:
    return lm.embed(ids)


@checked
def log_probs(
    lm: LanguageModel, embeds: Float[Tensor, "rows pos {lm.hidden_size}"]
) -> Float32[Tensor, "rows {lm.vocab_size}"]:
    return lm.log_probs(embeds)


@checked
def log_probs_of_ids(lm: LanguageModel, ids: Int[Tensor, "rows pos"]) -> Float32[Tensor, "rows {lm.vocab_size}"]:
    return lm.log_probs_of_ids(ids)


@checked
def table(lm: LanguageModel) -> tuple[Float[Tensor, "read {lm.hidden_size}"], Float32[Tensor, " read"]]:
    return lm.embedding_table, lm.embedding_norms


@checked
def head(
    lm: LanguageModel,
) -> tuple[Float[Tensor, "{lm.vocab_size} hidden"], Float64[Tensor, "{lm.vocab_size}"] | None]:
    found = extract_head(lm)
    return found.matrix, found.bias


@checked
def certificate(
    found: SoftmaxHead, probs: Float64[Tensor, "rows vocab"], points: Float64[Tensor, "rows hidden"]
) -> tuple[Float64[Tensor, " rows"], Float64[Tensor, " rows"], Float64[Tensor, "rows vocab"]]:
    bias = torch.zeros(found.vocab_size, dtype=torch.float64) if found.bias is None else found.bias
    proved: Certificate = certify(HeadProducts(found.matrix, found.zero_mean), bias, found.radius, probs, points)
    return proved.kl_nats, proved.lower_bound_nats, proved.log_probs


@checked
def floor(
    found: SoftmaxHead, probs: Float64[Tensor, "rows {found.vocab_size}"]
) -> list[
    tuple[
        Float32[Tensor, "{found.vocab_size}"],
        Float64[Tensor, "{found.hidden_size}"],
        Float64[Tensor, "{found.hidden_size}"] | None,
    ]
]:
    solver = FloorSolver(found.matrix, found.bias, found.radius, zero_mean=found.zero_mean, rounding=found.rounding)
    solved: list[FloorResult] = solver.solve(probs, max_iterations=3)
    assert len(solved) == len(probs)
    return [(each.log_probs, each.point, each.head_point) for each in solved]


@checked
def distance(
    kind: Any, probs: Float[Tensor, "*rows vocab"], log_q: Float[Tensor, "*rows vocab"]
) -> Float[Tensor, "*rows"]:
    return divergence(kind, probs, log_probs_of(probs), log_q)


@checked
def entropies(
    probs: Float[Tensor, "*rows vocab"], log_q: Float[Tensor, "*rows vocab"]
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    return entropy_nats(probs), entropy_of(log_q)


@checked
def best(
    lm: LanguageModel, result: TuneResult
) -> tuple[Float32[Tensor, "pos {lm.hidden_size}"], Float32[Tensor, "{lm.vocab_size}"]]:
    return result.prompt_embeds, result.log_probs


@checked
def probabilities(lm: LanguageModel, target: Target) -> Float64[Tensor, "{lm.vocab_size}"]:
    return target.probs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("rows", "pos"), [(1, 1), (3, 4)])
def test_models_keep_their_shapes(tiny_lm: TinyLM, architecture: str, rows: int, pos: int) -> None:
    lm = tiny_lm(architecture)
    ids = torch.arange(rows * pos).view(rows, pos)
    embeds = embed(lm, ids)
    assert torch.equal(log_probs_of_ids(lm, ids), log_probs(lm, embeds).detach())
    table(lm)
    head(lm)
    probabilities(lm, entropy(bits=3, seed=0).build(lm))


@pytest.mark.parametrize("rows", [1, 3])
def test_floors_keep_their_shapes(lm: LanguageModel, rows: int) -> None:
    found = extract_head(lm)
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(rows, lm.vocab_size, generator=generator, dtype=torch.float64).softmax(-1)
    points = torch.randn(rows, found.hidden_size, generator=generator, dtype=torch.float64)
    certificate(found, probs, points)
    floor(found, probs)


@pytest.mark.parametrize("rows", [(), (3,), (2, 3)])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_distances_keep_their_shapes(kind: Any, rows: tuple[int, ...]) -> None:
    logits = torch.randn(2, *rows, 7, generator=torch.Generator().manual_seed(0))
    probs, log_q = logits[0].softmax(-1), logits[1].log_softmax(-1)
    distance(kind, probs, log_q)
    entropies(probs, log_q)


@pytest.mark.parametrize("method", ["soft", "hard"])
def test_results_keep_their_shapes(lm: LanguageModel, target: Target, method: Any) -> None:
    result = tune(lm, target, TuneConfig(method=method, length=2, restarts=2, steps=2)).result
    embeds, _ = best(lm, result)
    assert len(embeds) == len(lm.bos_ids) + 2


def test_a_shape_that_is_not_what_it_should_be_is_found(lm: LanguageModel) -> None:
    with pytest.raises((TypeCheckError, BeartypeCallHintViolation)):
        log_probs(lm, torch.zeros(1, 2, lm.hidden_size + 1))
    with pytest.raises((TypeCheckError, BeartypeCallHintViolation)):
        distance("kl", torch.zeros(2, 7), torch.zeros(3, 7))
