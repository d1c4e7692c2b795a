"""Reach of whole models: answers held to what the models say."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dpexplore.errors import InputError
from dpexplore.floor.of_model import softmax_floor
from dpexplore.floor.proof import margin_bound
from dpexplore.floor.reach import reach, reach_each, save_head, words_of
from dpexplore.models import LanguageModel
from dpexplore.models.head import NoHead
from dpexplore.targets import parse_recipe

PROMPTS = 10_000


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_whatever_a_model_says_first_it_can_say_first(
    tiny_lm: Callable[[str], LanguageModel], architecture: str
) -> None:
    lm = tiny_lm(architecture)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, lm.embedding_table.shape[0], (PROMPTS, 3), generator=generator)
    seen: set[int] = set()
    for block in ids.split(1000):
        best = lm.log_probs_of_ids(block).topk(2)
        clear = best.values[:, 0] - best.values[:, 1] > 1e-3
        seen |= set(best.indices[clear, 0].tolist())
    assert len(seen) > 10
    assert all(found.can for found in reach_each(lm, sorted(seen)))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "gpt_neox", "falcon"])
def test_a_yes_holds_on_the_model_and_a_no_is_proved_by_its_record(
    tiny_lm: Callable[[str], LanguageModel], architecture: str, tmp_path: Path
) -> None:
    lm = tiny_lm(architecture)
    words = sorted(range(0, lm.vocab_size, 40))
    found = reach(lm, words[:2])
    assert found.can
    assert found.on_model is not None
    assert found.on_model.margin_nats >= 0.98 * found.ranking.margin_nats - 1e-3
    save_head(lm, tmp_path / "head")  # under the name that was given, whatever its ending
    head = np.load(tmp_path / "head")
    for one in reach_each(lm, range(lm.vocab_size)):
        if one.can is False:
            record = json.loads(json.dumps(one.record(), allow_nan=False))
            assert margin_bound(record, head) <= record["resolution"]
            assert one.above


def test_a_head_that_cannot_be_written_costs_one_sentence_and_no_file(lm: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "head.npz").mkdir()
    with pytest.raises(InputError, match=r"'head\.npz' cannot be written"):
        save_head(lm, tmp_path / "head.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["head.npz"]


def test_padded_rows_that_are_equal_can_never_be_first(tiny_lm: Callable[[str], LanguageModel]) -> None:
    lm = tiny_lm("llama")
    twin = LanguageModel(lm.name, lm.model, lm.tokenizer, "twin")
    weight = lm.embedding_table  # tied to the unembedding
    kept = weight[7].clone()
    try:
        weight[7] = weight[8]
        assert reach(twin, 7).can is False
        assert reach(twin, 8).can is False
        assert reach(twin, [7, 8]).can is False
    finally:
        weight[7] = kept


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_order_as_a_target_is_said_by_a_soft_token(
    tiny_lm: Callable[[str], LanguageModel], architecture: str
) -> None:
    lm = tiny_lm(architecture)
    recipe = parse_recipe('order("e", "a")')
    assert str(recipe) == 'order("e", "a")'
    target = recipe.build(lm)
    assert [lm.token_text(i) for i in target.probs.topk(2).indices.tolist()] == ["e", "a"]
    assert softmax_floor(lm, target).lower_bound_nats < 1e-5
    u = reach(lm, ["e", "a"]).ranking.point
    said = lm.log_probs((1e5 * u).float()[None, None])[0].detach().double().exp()
    chosen = target.probs.topk(3).values
    # Both have this order; the target has the largest margin there is.
    assert (chosen[:-1] / chosen[1:]).min() >= (said.topk(3).values[:-1] / said.topk(3).values[1:]).min() - 1e-3
    with pytest.raises(InputError, match="twice"):
        parse_recipe('order("e", "e")').build(lm)
    with pytest.raises(InputError, match="takes 1 to"):
        parse_recipe("order()")


def test_an_order_out_of_reach_is_no_target(tiny_lm: Callable[[str], LanguageModel]) -> None:
    lm = tiny_lm("llama")
    never = next((one for one in reach_each(lm, range(lm.vocab_size)) if one.can is False), None)
    orders = itertools.permutations(range(0, 320, 8), 10)
    ids = never.ranking.ids if never else next(list(ids) for ids in orders if reach(lm, ids).can is False)
    with pytest.raises(InputError, match="No prompt can make"):
        parse_recipe(f"order({', '.join(map(str, ids))})").build(lm)


def test_orders_are_read_as_comma_separated_words() -> None:
    assert words_of(" the, a, an") == [" the", " a", " an"]
    assert words_of('",", the') == [",", " the"]
    for text in ("", " the,,", '"open'):
        with pytest.raises(InputError, match="order"):
            words_of(text)


def test_bad_words_are_refused(tiny_lm: Callable[[str], LanguageModel]) -> None:
    with pytest.raises(InputError, match="not one token"):
        reach(tiny_lm("llama"), "no such single token")
    with pytest.raises(InputError, match="twice"):
        reach(tiny_lm("llama"), [5, 5])
    with pytest.raises(InputError, match="at most"):
        reach(tiny_lm("llama"), list(range(101)))
    with pytest.raises(NoHead, match="soft-caps"):
        reach(tiny_lm("gemma2"), 5)
