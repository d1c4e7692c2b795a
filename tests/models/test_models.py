"""`LanguageModel` against plain transformers, on tiny random models of every architecture."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel, load_model
from tests.tiny_models import ARCHITECTURES, POSITIONS

TinyLm = Callable[[str], LanguageModel]
TinyFolders = Callable[[str], Path]


def random_ids(lm: LanguageModel, rows: int, pos: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, lm.vocab_size, (rows, pos), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probs_equal_plain_transformers(architecture: str, tiny_lm: TinyLm, tiny_folders: TinyFolders) -> None:
    lm = tiny_lm(architecture)
    plain = AutoModelForCausalLM.from_pretrained(tiny_folders(architecture), dtype=torch.float32)
    plain.eval()
    for pos in (1, 2, 7):
        ids = random_ids(lm, rows=3, pos=pos)
        with torch.no_grad():
            expected = plain(input_ids=ids).logits[:, -1].double().log_softmax(dim=-1)
        assert lm.log_probs_of_ids(ids).dtype == torch.float32
        torch.testing.assert_close(lm.log_probs_of_ids(ids).double(), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(lm.log_probs(lm.embed(ids)).double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shapes_and_frozen_weights(architecture: str, tiny_lm: TinyLm) -> None:
    lm = tiny_lm(architecture)
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert lm.dtype == torch.float32
    ids = random_ids(lm, rows=2, pos=3)
    embeds = lm.embed(ids)
    assert embeds.shape == (2, 3, lm.hidden_size)
    assert lm.log_probs(embeds).shape == (2, lm.vocab_size)
    assert torch.equal(lm.embedding_table[ids], embeds)
    plain_count = {id(parameter): parameter.numel() for parameter in lm.model.parameters()}
    assert lm.parameter_count == sum(plain_count.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_of_a_batch_do_not_touch_each_other(architecture: str, tiny_lm: TinyLm) -> None:
    lm = tiny_lm(architecture)
    ids = random_ids(lm, rows=4, pos=5)
    alone = torch.cat([lm.log_probs_of_ids(row[None]) for row in ids])
    torch.testing.assert_close(lm.log_probs_of_ids(ids), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3", "opt"])
def test_gradient_agrees_with_finite_differences(architecture: str, tiny_folders: TinyFolders) -> None:
    lm = load_model(str(tiny_folders(architecture)), device="cpu", dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(lm.vocab_size, generator=generator).softmax(dim=0)
    embeds = lm.embed(random_ids(lm, rows=2, pos=3)).double().requires_grad_()
    direction = torch.randn(embeds.shape, generator=generator, dtype=torch.float64)

    def loss(at: torch.Tensor) -> torch.Tensor:
        return -(target * lm.log_probs(at)).sum()

    (gradient,) = torch.autograd.grad(loss(embeds), embeds)
    step = 1e-3
    with torch.no_grad():
        slope = (loss(embeds + step * direction) - loss(embeds - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum().float(), slope, rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"bloom"}))
def test_longest_prompt_is_accepted(architecture: str, tiny_lm: TinyLm) -> None:
    lm = tiny_lm(architecture)
    assert lm.max_positions == POSITIONS
    assert lm.log_probs_of_ids(random_ids(lm, rows=1, pos=POSITIONS)).isfinite().all()


def test_alibi_sets_no_limit(tiny_lm: TinyLm) -> None:
    assert tiny_lm("bloom").max_positions is None


def test_unusable_prompts(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("llama")
    with pytest.raises(InputError, match="The prompt is empty"):
        lm.encode("")
    with pytest.raises(InputError, match=f"accepts at most {POSITIONS}"):
        lm.encode("q!" * POSITIONS)


def test_forward_without_logits_to_keep(tiny_lm: TinyLm) -> None:
    """A forward pass that only knows how to compute all positions gives the same answer."""
    lm = tiny_lm("gpt2")

    class AllPositions(type(lm.model)):
        def forward(self, inputs_embeds: torch.Tensor, use_cache: bool) -> object:  # type: ignore[override]
            return super().forward(inputs_embeds=inputs_embeds, use_cache=use_cache)

    model = AllPositions(lm.model.config).eval()
    model.load_state_dict(lm.model.state_dict())
    other = LanguageModel(lm.name, model, lm.tokenizer, lm.identity)
    ids = random_ids(lm, rows=2, pos=4)
    torch.testing.assert_close(other.log_probs_of_ids(ids), lm.log_probs_of_ids(ids), atol=1e-5, rtol=0)


def test_only_the_last_position_reaches_the_unembedding(tiny_lm: TinyLm) -> None:
    """In one piece: a strided batch would be multiplied row by row, reading the whole matrix for each row."""
    for architecture in ARCHITECTURES:
        lm = tiny_lm(architecture)
        head = lm.model.get_output_embeddings()
        assert head is not None
        seen: list[torch.Tensor] = []
        hook = head.register_forward_hook(lambda _module, inputs, _output, seen=seen: seen.append(inputs[0]))
        lm.log_probs_of_ids(random_ids(lm, rows=2, pos=6))
        hook.remove()
        assert [tuple(hidden.shape[:2]) for hidden in seen] == [(2, 1)], architecture
        assert seen[0].is_contiguous(), architecture


def test_two_threads_load_at_once(tiny_folders: TinyFolders) -> None:
    loaded: list[LanguageModel] = []
    folder = str(tiny_folders("llama"))
    threads = [threading.Thread(target=lambda: loaded.append(load_model(folder, device="cpu"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = random_ids(loaded[0], rows=1, pos=3)
    assert torch.equal(loaded[0].log_probs_of_ids(ids), loaded[1].log_probs_of_ids(ids))
