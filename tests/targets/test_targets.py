"""Vanilla targets and transforms: their mathematics over random recipes, sizes and seeds."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import (
    Recipe,
    build_many,
    capture,
    entropy,
    parse_recipe,
    random_prompt,
    search_tokens,
    source_files,
    source_models,
    token_id,
    tokens,
    top_tokens,
    vanilla_target,
    vanilla_targets,
)
from dpexplore.targets.descent import Point
from dpexplore.tuning import PRESETS, Engine, TuneConfig
from dpexplore.tuning.init.layout import Layout

PAPER_TOLERANCE_BITS = 0.01
LANGUAGE_MODEL_VOCABULARY = 49_152

LoadTiny = Callable[[str], LanguageModel]
seeds = st.integers(0, 2**63 - 1)
slow_fixture = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


def bits_of(probs: Tensor) -> float:
    """Entropy in bits, recomputed with math.fsum."""
    return math.fsum(-p * math.log2(p) for p in probs.tolist() if p > 0)


def assert_distribution(probs: Tensor) -> None:
    assert probs.dtype == torch.float64
    assert (probs >= 0).all()
    assert math.fsum(probs.tolist()) == pytest.approx(1, abs=1e-12)


@given(st.integers(2, 3000), st.floats(0, 1), seeds, st.sampled_from(["gradient", "temperature"]))
@settings(deadline=None, max_examples=150)
@example(2, 0.0, 0, "gradient")
@example(2, 1.0, 0, "gradient")
@example(2, 1e-6, 0, "gradient")
@example(2, 1 - 1e-7, 0, "temperature")
def test_vanilla_has_the_entropy_asked_for(vocab_size: int, share: float, seed: int, method: str) -> None:
    bits = share * math.log2(vocab_size)
    probs = vanilla_target(vocab_size, bits, seed, method)  # type: ignore[arg-type]
    assert_distribution(probs)
    assert bits_of(probs) == pytest.approx(bits, abs=1e-5)


@pytest.mark.parametrize("method", ["gradient", "temperature"])
@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_vanilla_over_a_whole_vocabulary_from_a_tenth_of_a_bit_to_uniform(method: str, seed: int) -> None:
    limit = math.log2(LANGUAGE_MODEL_VOCABULARY)
    for bits in [0.1, 0.5, 1, 2.5, 4, 7, 10, 13, 14.8, 15, 15.5, limit - 0.01]:
        probs = vanilla_target(LANGUAGE_MODEL_VOCABULARY, bits, seed, method)  # type: ignore[arg-type]
        assert_distribution(probs)
        assert bits_of(probs) == pytest.approx(bits, abs=PAPER_TOLERANCE_BITS / 100)


def test_ends_of_the_range_are_the_limits() -> None:
    one_hot, uniform = vanilla_targets(100, [0, math.log2(100)], seed=3)
    assert sorted(one_hot.tolist())[-2:] == [0, 1]
    assert torch.allclose(uniform, torch.full((100,), 0.01, dtype=torch.float64), atol=1e-15)
    assert one_hot.argmax() == vanilla_target(100, 0.01, seed=3, method="temperature").argmax()
    assert vanilla_target(1, 0, seed=0).tolist() == [1]


@pytest.mark.parametrize("bits", [-0.1, 6.7, math.inf, math.nan])
def test_entropy_out_of_range_says_the_range(bits: float) -> None:
    with pytest.raises(InputError, match=r"from 0 to 6\.6439 bits"):
        vanilla_target(100, bits, seed=0)


@given(st.lists(st.floats(0, 8), max_size=12), seeds)
@settings(deadline=None, max_examples=20)
def test_a_sweep_of_one_seed_gives_what_each_entropy_gives_alone(bits: list[float], seed: int) -> None:
    rows = vanilla_targets(256, bits, seed)
    for row, value in zip(rows, bits, strict=True):
        assert torch.allclose(row, vanilla_target(256, value, seed), atol=1e-6)


def test_gradient_of_the_entropy_agrees_with_automatic_differentiation() -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    log_probs = logits.log_softmax(0)
    torch.autograd.backward(-(log_probs.exp() * log_probs).sum())
    assert logits.grad is not None
    assert np.allclose(Point(logits.detach().numpy()).entropy_gradient(), logits.grad.numpy(), atol=1e-12)


def test_the_step_decides_the_shape_and_both_families_have_the_entropy() -> None:
    """A longer step leaves a flatter head; scaled normal logits have the least flat one."""
    shapes = [
        vanilla_target(4_000, 6, 0, "temperature"),
        *(vanilla_target(4_000, 6, 0, step=s) for s in (0.01, 0.2, 1)),
    ]
    assert [bits_of(probs) for probs in shapes] == pytest.approx([6] * 4, abs=1e-5)
    tops = [float(probs.max()) for probs in shapes]
    assert tops == sorted(tops, reverse=True)
    assert torch.equal(shapes[2], vanilla_target(4_000, 6, 0))  # the default, so that recipes of before are unchanged


def test_gradient_keeps_many_tokens_where_temperature_and_outliers_do_not() -> None:
    # At 7 bits plain gradient steps would give one token more than half of the mass; see `descent`.
    probs = vanilla_target(LANGUAGE_MODEL_VOCABULARY, 7, seed=0)
    assert probs.max() < 0.1
    assert int((probs > 0.1 * probs.max()).sum()) > 50


def test_the_global_generator_is_neither_read_nor_moved(tiny_lm: LoadTiny) -> None:
    lm = tiny_lm("gpt2")
    recipe = parse_recipe("entropy(bits=4, outliers=3, seed=1).shuffle(seed=2).mix(random_prompt(length=3), 0.5)")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = recipe.build(lm).probs
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(recipe.build(lm).probs, first)


# --- transforms -------------------------------------------------------------------------------------------------

bases = st.one_of(
    st.builds(entropy, st.floats(0, 8), seeds),
    st.builds(lambda b, k, s: entropy(b, s, outliers=k), st.floats(0, 8), st.integers(1, 30), seeds),
    st.builds(random_prompt, st.integers(1, 5), seeds),
    st.builds(capture, st.sampled_from(["I love", "the sea", "naïve\n"])),
    st.builds(
        tokens,
        st.dictionaries(st.integers(0, 300), st.floats(0.01, 10), min_size=1, max_size=5),
        st.sampled_from([0.0, 0.25]),
    ),
)


def transformed(recipes: st.SearchStrategy[Recipe]) -> st.SearchStrategy[Recipe]:
    return st.one_of(
        st.builds(Recipe.shuffle, recipes, seeds, st.none() | st.integers(1, 400)),
        st.builds(Recipe.matched, recipes, seeds),
        st.builds(Recipe.temperature, recipes, st.floats(0.1, 10)),
        st.builds(Recipe.top_k, recipes, st.integers(1, 400)),
        st.builds(Recipe.mix, recipes, recipes, st.floats(0, 1)),
    )


any_recipe = st.recursive(bases, transformed, max_leaves=4)


@given(any_recipe)
@slow_fixture
def test_every_recipe_builds_a_distribution_and_so_does_its_text(tiny_lm: LoadTiny, recipe: Recipe) -> None:
    lm = tiny_lm("gpt2")
    target = recipe.build(lm)
    assert_distribution(target.probs)
    assert parse_recipe(str(recipe)) == recipe
    assert target.recipe == str(recipe)
    assert torch.equal(parse_recipe(target.recipe).build(lm).probs, target.probs)


@given(any_recipe, seeds, st.integers(1, 400))
@slow_fixture
def test_shuffles_keep_the_probabilities(tiny_lm: LoadTiny, recipe: Recipe, seed: int, k: int) -> None:
    lm = tiny_lm("gpt2")
    before, everywhere, within = (
        made.build(lm).probs for made in (recipe, recipe.shuffle(seed), recipe.shuffle(seed, top_k=k))
    )
    for after in (everywhere, within):
        assert torch.allclose(after.sort().values, before.sort().values, atol=1e-15)
    kept = before.sort(descending=True, stable=True).indices[k:]
    assert torch.allclose(within[kept], before[kept], atol=1e-15)


@given(any_recipe, seeds)
@slow_fixture
def test_matched_has_the_entropy_and_is_the_vanilla_target_of_it(tiny_lm: LoadTiny, recipe: Recipe, seed: int) -> None:
    lm = tiny_lm("gpt2")
    target, matched = recipe.build(lm), recipe.matched(seed).build(lm)
    assert bits_of(matched.probs) == pytest.approx(bits_of(target.probs), abs=1e-5)
    assert torch.allclose(matched.probs, entropy(max(target.entropy_bits, 0), seed).build(lm).probs, atol=1e-5)


@given(any_recipe)
@slow_fixture
def test_transforms_that_change_nothing(tiny_lm: LoadTiny, recipe: Recipe) -> None:
    lm = tiny_lm("gpt2")
    before = recipe.build(lm).probs
    for same in (recipe.temperature(1), recipe.top_k(lm.vocab_size), recipe.top_k(10**6), recipe.mix(recipe, 0.3)):
        assert torch.allclose(same.build(lm).probs, before, atol=1e-15)
    other = entropy(3, seed=9)
    assert torch.allclose(recipe.mix(other, 0).build(lm).probs, before, atol=1e-15)
    assert torch.allclose(recipe.mix(other, 1).build(lm).probs, other.build(lm).probs, atol=1e-15)


def test_temperature_and_top_k_against_their_formulas(tiny_lm: LoadTiny) -> None:
    lm = tiny_lm("gpt2")
    base = capture("I love")
    p = base.build(lm).probs.numpy()
    for t in (0.3, 2.0, 50.0):
        powered = p ** (1 / t)
        assert np.allclose(base.temperature(t).build(lm).probs.numpy(), powered / powered.sum(), rtol=1e-9)
    cut = base.top_k(7).build(lm).probs.numpy()
    seventh = np.sort(p)[-7]
    assert np.allclose(cut, np.where(p >= seventh, p, 0) / p[p >= seventh].sum(), rtol=1e-12)


def test_capture_is_what_the_model_says_next(tiny_lm: LoadTiny) -> None:
    lm = tiny_lm("llama")  # its tokenizer puts a BOS in front
    ids = lm.tokenizer("I love the")["input_ids"]
    for bos, prompt in ((True, ids), (False, ids[1:])):
        target = capture("I love the", bos=bos).build(lm)
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([prompt])).logits[0, -1]
        assert torch.allclose(target.probs, logits.double().softmax(0), atol=1e-6)
        assert target.provenance["prompt_ids"] == prompt
    with pytest.raises(InputError, match="chat template"):
        capture("I love", chat=True).build(lm)
    with pytest.raises(InputError, match="64 in a prompt"):
        random_prompt(65).build(lm)


def test_capture_within_the_chat_template(default_lm: LanguageModel) -> None:
    target = capture("I love", chat=True).build(default_lm)
    prompt = default_lm.decode(target.provenance["prompt_ids"])
    assert prompt.endswith("<|im_start|>user\nI love<|im_end|>\n<|im_start|>assistant\n")
    assert not torch.allclose(target.probs, capture("I love").build(default_lm).probs, atol=1e-3)


# --- weights by hand, search, preview, batches --------------------------------------------------------------------


def test_tokens_by_hand(tiny_lm: LoadTiny) -> None:
    lm = tiny_lm("gpt2")
    the, a = token_id(lm, " the"), token_id(lm, "a")
    probs = tokens({" the": 3, a: 1}).build(lm).probs
    assert probs[the] == pytest.approx(0.75)
    assert probs[a] == pytest.approx(0.25)
    shared = tokens({" the": 3, "a": 1}, rest=0.2).build(lm).probs
    assert shared[the] == pytest.approx(0.6)
    assert shared[0] == pytest.approx(0.2 / (lm.vocab_size - 2))
    huge = tokens({" the": 1e308, "a": 1e308}).build(lm).probs
    assert huge[the] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({" thethe": 1}, r"splits into ' the' \+ 'the'"),
        ({"": 1}, "empty"),
        ({"a": 1, 67: 1}, "given twice"),
        ({10_000: 1}, "ids 0 to"),
    ],
)
def test_tokens_that_are_none(tiny_lm: LoadTiny, weights: dict[str | int, float], says: str) -> None:
    lm = tiny_lm("gpt2")
    if 67 in weights:
        weights = {"a": 1, token_id(lm, "a"): 1}
    with pytest.raises(InputError, match=says):
        tokens(weights).build(lm)


def test_search_finds_the_same_text_first_then_beginnings_then_the_rest(default_lm: LanguageModel) -> None:
    found = [token.token for token in search_tokens(default_lm, "love", 50)]
    assert found[0] == "love"
    assert set(found[:4]) == {"love", "Love", " love", " Love"}
    begins = [text.strip().lower().startswith("love") for text in found]
    assert begins == sorted(begins, reverse=True)
    assert " glove" in found or " beloved" in found
    assert search_tokens(default_lm, " love", 1)[0].token == " love"
    assert search_tokens(default_lm, "9805", 5)[0].token_id == 9805
    assert search_tokens(default_lm, "", 5) == []
    assert len(search_tokens(default_lm, "a", 50)) == 50
    for token in search_tokens(default_lm, "the", 20):
        assert "the" in default_lm.token_text(token.token_id).lower()


def test_top_tokens_are_the_likeliest(tiny_lm: LoadTiny) -> None:
    lm = tiny_lm("gpt2")
    target = capture("I love").build(lm)
    top = top_tokens(target, lm, 5)
    assert [token.probability for token in top] == sorted(target.probs.tolist())[::-1][:5]
    assert all(target.probs[token.token_id] == token.probability for token in top)
    assert len(top_tokens(tokens({"a": 1}).build(lm), lm, 5)) == 1


def test_a_batch_is_the_targets_one_by_one(tiny_lm: LoadTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    recipes: list[Recipe] = [entropy(bits, seed) for seed in (0, 1) for bits in (6.0, 0.5, 8.2, 3.0)]
    recipes += [entropy(4, outliers=2), capture("I love"), entropy(5, method="temperature"), entropy(2).shuffle(1)]
    for chunk_rows in (3, 100):
        monkeypatch.setattr("dpexplore.targets.batch.CHUNK_BYTES", chunk_rows * lm.vocab_size * 8)
        for recipe, target in zip(recipes, build_many(recipes, lm), strict=True):
            assert target.recipe == str(recipe)
            assert target.provenance == recipe.build(lm).provenance
            assert torch.allclose(target.probs, recipe.build(lm).probs, atol=1e-6)


def test_what_a_recipe_loads_and_reads_is_known_before_it_is_built() -> None:
    text = (
        'capture("a", model="m").mix(file("x.npz").mix(random_prompt(length=2, model="n"), 0.5), 0.5).shuffle(seed=1)'
    )
    recipe = parse_recipe(text)
    assert source_models(recipe) == ["m", "n"]
    assert source_files(recipe) == ["x.npz"]


SAME = """
import hashlib
from dpexplore.targets import outlier_target, vanilla_target
probs = vanilla_target(1000, 5, 7) + outlier_target(1000, 5, [1, 2], 7)
digest = hashlib.sha256(probs.numpy().tobytes()).hexdigest()
"""


def test_targets_are_the_same_in_another_process() -> None:
    here: dict[str, str] = {}
    exec(SAME, here)
    program = f"{SAME}\nprint(digest)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here["digest"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_source_prompt_scores_0_under_every_preset(tiny_lm: LoadTiny, architecture: str) -> None:
    """By the engine, to rounding and never below 0; the tiny Llama's tokenizer writes a BOS, that of GPT-2 none."""
    lm = tiny_lm(architecture)
    assert bool(lm.bos_ids) == (architecture == "llama")
    for recipe in (random_prompt(4, seed=1), capture("I love the sea")):
        target = recipe.build(lm)
        source = torch.tensor(target.provenance["prompt_ids"])
        free = len(source) - len(lm.bos_ids)
        for preset in PRESETS:
            hard = TuneConfig.preset(preset, method="hard", length=free, restarts=1, steps=1, init="vocab", screen=1,
                                     soft_rule="adamw", candidates=1)  # fmt: skip
            embeds = lm.embed(source[None])[0].float()
            layout = Layout.of(lm, hard)
            assert torch.where(layout.hard, source, layout.ids).tolist() == source.tolist()
            run = Engine(lm).submit(target, hard, starts=[(source, embeds)])
            assert 0 <= run.result.kl_nats < 1e-5, (preset, recipe)
    assert (
        random_prompt(4, seed=1, bos=False).build(lm).provenance["prompt_ids"]
        == (random_prompt(4, seed=1).build(lm).provenance["prompt_ids"][-4:])
    )
