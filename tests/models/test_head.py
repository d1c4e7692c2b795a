"""The softmax head of every supported architecture, and its floor against thousands of real forward passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GPTNeoXConfig,
    GraniteConfig,
    OlmoConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from dpexplore.errors import InputError
from dpexplore.floor.of_model import softmax_floor
from dpexplore.floor.prepared import floor_solver
from dpexplore.models import LanguageModel
from dpexplore.models.head import NoHead, extract_head
from dpexplore.targets.target import Target
from tests.tiny_models import ARCHITECTURES, HIDDEN

ROUNDING_NATS = 2e-4
"""How far a KL measured in float32 may lie from the exact-arithmetic head's, at logits of hundreds."""

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}

VARIANTS: dict[str, Callable[[], PretrainedConfig]] = {
    # OPT-350m: the last norm closes a layer, and a projection follows it.
    "opt-post-norm": lambda: OPTConfig(
        **SIZES, word_embed_proj_dim=16, ffn_dim=48, do_layer_norm_before=False, init_std=0.3
    ),
    "opt-plain": lambda: OPTConfig(**SIZES, word_embed_proj_dim=HIDDEN, ffn_dim=48, init_std=0.3),
    "cohere": lambda: CohereConfig(**SIZES, intermediate_size=48, logit_scale=0.0625, initializer_range=0.3),
    "granite": lambda: GraniteConfig(**SIZES, intermediate_size=48, logits_scaling=8.0, initializer_range=0.3),
    # A bias on the unembedding.
    "phi": lambda: PhiConfig(**SIZES, intermediate_size=48, initializer_range=0.3),
    # A norm without weights.
    "olmo": lambda: OlmoConfig(**SIZES, intermediate_size=48, initializer_range=0.3),
    "neox": lambda: GPTNeoXConfig(**SIZES, intermediate_size=48, initializer_range=0.3, use_parallel_residual=False),
}

SUPPORTED = [name for name in ARCHITECTURES if name != "gemma2"] + list(VARIANTS)


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert isinstance(model, PreTrainedModel)
    model.requires_grad_(False)
    return model.eval()


def roughen(model: nn.Module) -> None:
    """Give every norm and bias the random values that training would: fresh ones are all ones and zeros."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)


@pytest.fixture(scope="module")
def rough_lm(tiny_folders, tiny_lm) -> Callable[[str], LanguageModel]:
    """Name in SUPPORTED -> its tiny model with rough norms; made once."""
    made: dict[str, LanguageModel] = {}

    def build(name: str) -> LanguageModel:
        if name not in made:
            if name in VARIANTS:
                model, tokenizer = random_model(VARIANTS[name]()), tiny_lm("gpt2").tokenizer
            else:
                model = AutoModelForCausalLM.from_pretrained(tiny_folders(name), dtype=torch.float32)
                assert isinstance(model, PreTrainedModel)
                tokenizer = tiny_lm(name).tokenizer
            model.eval().requires_grad_(False)
            roughen(model)
            made[name] = LanguageModel(name, model, tokenizer, f"random:0:{name}")
        return made[name]

    return build


def many_prompts(lm: LanguageModel, rows: int, seed: int) -> Iterator[Tensor]:
    """Batches of prompts, soft and hard, of lengths 1 to 20, from a thousandth to a thousand times real embeddings."""
    generator = torch.Generator().manual_seed(seed)
    table = lm.embedding_table
    spread = float(table.float().std())
    for length in (1, 2, 3, 5, 8, 13, 20):
        ids = torch.randint(0, min(len(table), lm.vocab_size), (rows, length), generator=generator)
        yield lm.embed(ids)
        for scale in (1e-3, 0.1, 1.0, 10.0, 1e3):
            yield scale * spread * torch.randn(rows, length, lm.hidden_size, generator=generator)


def targets_of(lm: LanguageModel) -> list[Target]:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(lm.vocab_size, generator=generator, dtype=torch.float64)
    one_hot = torch.zeros(lm.vocab_size, dtype=torch.float64)
    one_hot[17] = 1
    generated = lm.log_probs_of_ids(torch.tensor([[5, 6, 7]]))[0].double().exp()
    rows = [(sharpness * noise).softmax(-1) for sharpness in (0.0, 0.3, 1.0, 3.0, 10.0)]
    rows += [one_hot, generated / generated.sum()]
    return [Target(row, "test") for row in rows]


@pytest.mark.parametrize("name", SUPPORTED)
def test_head_rebuilds_the_logits(rough_lm: Callable[[str], LanguageModel], name: str) -> None:
    """A least-squares fit of u to (A, b) explains the logits of prompts, and lies in the ball."""
    lm = rough_lm(name)
    head = extract_head(lm)
    assert head.radius == pytest.approx(math.sqrt(HIDDEN))
    assert head.matrix.shape == (lm.vocab_size, HIDDEN)
    matrix = head.matrix.double()
    if head.zero_mean:
        matrix = matrix - matrix.mean(1, keepdim=True)
    bias = torch.zeros(lm.vocab_size, dtype=torch.float64) if head.bias is None else head.bias
    with torch.no_grad():
        for embeds in many_prompts(lm, 2, 3):
            logits = lm.model(inputs_embeds=embeds, use_cache=False).logits[:, -1].double()
            # The cut keeps out directions that a projection's rounding alone fills (OPT).
            u = (torch.linalg.pinv(matrix, rtol=1e-5) @ (logits - bias).T).T
            assert (u @ matrix.T + bias - logits).abs().max() <= 1e-4 * logits.abs().max()
            assert (u.norm(dim=1) <= head.radius * (1 + 1e-4)).all()


@pytest.mark.parametrize("name", SUPPORTED)
def test_no_prompt_gets_below_the_floor(rough_lm: Callable[[str], LanguageModel], name: str) -> None:
    """Thousands of forward passes of the real model, far off the manifold included, against seven targets."""
    lm = rough_lm(name)
    targets = targets_of(lm)
    floors = softmax_floor(lm, targets)
    assert all(floor.status == "converged" for floor in floors)
    bounds = torch.tensor([floor.lower_bound_nats for floor in floors], dtype=torch.float64)
    probs = torch.stack([target.probs for target in targets])
    negative_entropy = -torch.special.entr(probs).sum(1)
    lowest = torch.full_like(bounds, torch.inf)
    count = 0
    with torch.no_grad():
        for embeds in many_prompts(lm, 50, 4):
            log_probs = lm.log_probs(embeds).double()
            count += len(log_probs)
            lowest = torch.minimum(lowest, (negative_entropy[None] - log_probs @ probs.T).amin(0))
    assert count >= 2000
    assert (bounds <= lowest + ROUNDING_NATS).all()
    # What the model itself said is within its reach, in the head's opinion too.
    assert floors[-1].lower_bound_nats <= ROUNDING_NATS
    # The bounds say something: seven targets cannot all be reachable.
    assert bounds.max() > 0.01


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradient_descent_on_soft_prompts_stays_above_the_floor(
    rough_lm: Callable[[str], LanguageModel], name: str
) -> None:
    lm = rough_lm(name)
    for target in targets_of(lm)[1:4]:
        floor = softmax_floor(lm, target)
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randn(8, 4, lm.hidden_size, generator=generator).requires_grad_()
        optimiser = torch.optim.Adam([prompt], lr=0.1)
        kl = torch.tensor(torch.inf)
        for _ in range(80):
            optimiser.zero_grad()
            log_probs = lm.log_probs(prompt).double()
            kl = -(log_probs @ target.probs) - target.entropy_nats
            kl.sum().backward()
            optimiser.step()
        assert floor.lower_bound_nats <= float(kl.detach().min()) + ROUNDING_NATS


def test_soft_capping_is_refused_with_its_reason(tiny_lm: Callable[[str], LanguageModel]) -> None:
    lm = tiny_lm("gemma2")
    with pytest.raises(NoHead, match="soft-caps"):
        extract_head(lm)
    target = Target(torch.full((lm.vocab_size,), 1 / lm.vocab_size, dtype=torch.float64), "test")
    for _ in range(2):  # the second time from what was kept
        with pytest.raises(InputError, match="soft-caps"):
            softmax_floor(lm, target)


def test_soft_capping_is_found_without_its_name(
    tiny_lm: Callable[[str], LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("llama")
    head = lm.model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    plain = head.forward
    monkeypatch.setattr(head, "forward", lambda x: 30 * torch.tanh(plain(x) / 30))
    with pytest.raises(NoHead, match="affine"):
        extract_head(lm)


def test_a_step_before_the_unembedding_is_found(
    tiny_lm: Callable[[str], LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("mistral")
    head = lm.model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    plain = head.forward
    monkeypatch.setattr(head, "forward", lambda x: plain(x.relu()))
    with pytest.raises(NoHead):
        extract_head(lm)


def test_bfloat16_head_is_that_of_its_weights(rough_lm: Callable[[str], LanguageModel]) -> None:
    """Products of two bfloat16 numbers fit float32, so A holds exactly what the weights say."""
    lm = rough_lm("qwen3")
    rounded = random_model(lm.model.config)
    rounded.load_state_dict(lm.model.state_dict())
    rounded.bfloat16()
    coarse = LanguageModel("coarse", rounded, lm.tokenizer, "random:0:coarse")
    head = extract_head(coarse)
    weights = rounded.state_dict()
    weight, gain = weights["lm_head.weight"].double(), weights["model.norm.weight"].double()
    assert torch.equal(head.matrix.double(), weight * gain)


def test_solver_is_kept_with_the_model(tiny_lm: Callable[[str], LanguageModel]) -> None:
    lm = tiny_lm("llama")
    assert floor_solver(lm) is floor_solver(lm)
    assert floor_solver(lm) is not floor_solver(tiny_lm("qwen2"))


def test_extracting_changes_nothing(tiny_lm: Callable[[str], LanguageModel]) -> None:
    lm = tiny_lm("falcon")

    def hooks() -> list[list[object]]:
        return [[*module._forward_hooks, *module._forward_pre_hooks] for module in lm.model.modules()]

    hooks_before = hooks()
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    extract_head(lm)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert hooks() == hooks_before


def test_targets_over_another_vocabulary_are_refused(tiny_lm: Callable[[str], LanguageModel]) -> None:
    with pytest.raises(InputError, match="own vocabulary"):
        softmax_floor(tiny_lm("llama"), Target(torch.tensor([0.5, 0.5]), "test"))


def test_a_list_of_targets_gives_a_list(tiny_lm: Callable[[str], LanguageModel]) -> None:
    lm = tiny_lm("llama")
    targets = targets_of(lm)
    together = softmax_floor(lm, targets, ladder=False)
    alone = softmax_floor(lm, targets[2], ladder=False)
    assert len(together) == len(targets)
    assert together[2].kl_nats == pytest.approx(alone.kl_nats, abs=1e-3)
    warm = softmax_floor(lm, targets[2], ladder=False, start=alone)
    assert warm.iterations <= alone.iterations
    assert softmax_floor(lm, []) == []
