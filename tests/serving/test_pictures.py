"""The numbers behind the page's pictures of the head's geometry."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dpexplore.errors import InputError
from dpexplore.floor.of_model import softmax_floor
from dpexplore.models import LanguageModel
from dpexplore.serving.disc import WALKS_BYTES, Walk, Walks, disc
from dpexplore.serving.frames import Frames
from dpexplore.serving.words import chosen_words, inseparable_words, triangle, words_recipe
from dpexplore.targets import Target, parse_recipe, token_id
from dpexplore.tuning import TuneConfig, tune


def test_a_run_stands_where_its_kl_is_and_the_direct_token_arrives(lm: LanguageModel, target: Target) -> None:
    run = tune(lm, target, TuneConfig(method="soft", length=2, restarts=1, steps=6, seed=0))
    frames, kls = Frames(lm.vocab_size), []
    for step in run:
        log_q = run.best_log_probs()
        assert log_q is not None
        frames.add(step.step, log_q.numpy())
        kls.append(step.best_kl_nats)
    floor = softmax_floor(lm, target)
    steps, said = frames.snapshot()
    found = json.loads(json.dumps(disc(lm, target, floor, steps, said), allow_nan=False))
    assert [point["s"] for point in found["walk"]] == steps
    assert [point["k"] for point in found["walk"]] == pytest.approx(kls, abs=2e-2)
    assert [point["r"] for point in found["walk"]] == pytest.approx([1.0] * len(steps), abs=1e-2)
    assert found["direct"][-1]["a"] < 1.0 < found["direct"][0]["a"]
    assert found["direct"][-1]["k"] == pytest.approx(found["best"], abs=5e-3)
    assert found["plane"] == "run"
    assert np.min(found["map"]["kl"]) >= found["floor"] - 1e-2
    assert found["ball"]["r"] <= 1 + 1e-6
    alone = disc(lm, target, floor, [], None)
    assert alone["walk"] == []
    assert alone["map"] is not None


def test_the_walks_that_are_kept_have_an_end() -> None:
    walks, vocab_size = Walks(), WALKS_BYTES // 64 // 3
    for name in ("a", "b", "c", "d"):
        walks.keep(name, Walk("m", name, Frames(vocab_size)))
    assert [name for name in ("a", "b", "c", "d") if walks.get(name, "m", name)] == ["b", "c", "d"]
    assert walks.get("d", "m", "another target") is None
    walks.forget("d")
    assert walks.get("d", "m", "d") is None


def test_three_words_are_typed_or_the_likeliest_and_become_a_target(lm: LanguageModel, target: Target) -> None:
    assert chosen_words(lm, target, " ") == target.probs.topk(3).indices.tolist()
    ids = chosen_words(lm, target, "e, the,!")
    assert ids == [token_id(lm, word) for word in (" e" if _is_token(lm, " e") else "e", " the", "!")]
    for text, told in (("a,b", "give three"), ("x" * 400, "use at most"), ("e, the, zzz", "not one token")):
        with pytest.raises(InputError, match=told):
            chosen_words(lm, target, text)
    recipe = words_recipe(lm, ids, (0.5, 0.25, 0.25))
    dragged = parse_recipe(recipe).build(lm)
    assert dragged.probs[ids].tolist() == pytest.approx([0.5, 0.25, 0.25])
    found = triangle(lm, dragged, ids, None, [0.1, 0.1, 0.2])
    assert found["target"] == pytest.approx([0.5, 0.25, 0.25])
    assert found["achieved"] == pytest.approx([0.25, 0.25, 0.5])
    assert found["mass"] == pytest.approx(1.0)
    for ids_, shares in (([1, 2], (0.5, 0.5)), ([0, 1, lm.vocab_size], (1, 1, 1)), ([0, 1, 2], (1, -1, 1))):
        with pytest.raises(InputError):
            words_recipe(lm, ids_, shares)


def test_words_that_the_model_cannot_tell_apart_have_a_floor_off_their_line(lm: LanguageModel, target: Target) -> None:
    twin = LanguageModel(lm.name, lm.model, lm.tokenizer, "twin")
    weight = lm.embedding_table  # tied to the unembedding
    kept = weight[7].clone()
    try:
        weight[7] = weight[8]
        ids = inseparable_words(twin, target)
        assert ids[:2] == [7, 8]
        apart = parse_recipe(words_recipe(twin, ids, (0.6, 0.2, 0.2))).build(twin)
        floor = softmax_floor(twin, apart, ladder=False)
        found = triangle(twin, apart, ids, floor.log_probs, None)
    finally:
        weight[7] = kept
    assert not found["can"]
    assert found["narrowest"] == {"pair": [0, 1], "log10_odds": pytest.approx(0.0, abs=1e-6)}
    assert found["closest"][0] == pytest.approx(found["closest"][1])
    # What 0.6 and 0.2 lose by being said equally often is a bound of its own.
    assert floor.lower_bound_nats >= 0.6 * math.log(0.6 / 0.4) + 0.2 * math.log(0.2 / 0.4) - 1e-3


def _is_token(lm: LanguageModel, text: str) -> bool:
    try:
        token_id(lm, text)
    except InputError:
        return False
    return True
