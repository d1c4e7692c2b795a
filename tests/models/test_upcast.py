"""A bfloat16 model computed in float32, layer by layer, beside the same weights loaded in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dpexplore.models import LanguageModel, load_model
from dpexplore.models.upcast import in_float32
from dpexplore.targets.outcome_tree import OutcomeTree
from dpexplore.tuning.objectives.sequences import packed_log_probs
from tests.tiny_models import ARCHITECTURES

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def rounded(tiny_folders: Folder, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Architecture -> folder of its tiny model with weights that bfloat16 holds."""

    def save(architecture: str) -> Path:
        lm = load_model(str(tiny_folders(architecture)), device="cpu", dtype="bfloat16")
        folder = tmp_path_factory.mktemp(architecture)
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_operation_is_in_float32(architecture: str, rounded: Folder) -> None:
    folder = str(rounded(architecture))
    low, whole = (load_model(folder, device="cpu", dtype=dtype) for dtype in ("bfloat16", "float32"))
    ids = torch.tensor([[5, 9, 4], [30, 2, 77]])
    expected = whole.log_probs_of_ids(ids)
    with in_float32(low) as exact:
        torch.testing.assert_close(exact.log_probs_of_ids(ids), expected, atol=1e-5, rtol=0)
        assert exact.embed(ids).dtype == exact.dtype == torch.float32
    assert low.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in low.model.parameters()} == {torch.bfloat16}
    assert (low.log_probs_of_ids(ids) - expected).abs().max() > 1e-3


def test_strings_are_scored_too(rounded: Folder) -> None:
    folder = str(rounded("llama"))
    low, whole = (load_model(folder, device="cpu", dtype=dtype) for dtype in ("bfloat16", "float32"))
    tree = OutcomeTree.of([[5, 6, 7], [5, 8, 9]], [[3]])

    def score(lm: LanguageModel) -> torch.Tensor:
        with torch.no_grad():
            return packed_log_probs(lm, lm.embed(torch.tensor([[10, 11]])), tree)

    with in_float32(low) as exact:
        torch.testing.assert_close(score(exact), score(whole), atol=1e-5, rtol=0)


def test_weights_are_shared_and_given_back(rounded: Folder) -> None:
    low = load_model(str(rounded("llama")), device="cpu", dtype="bfloat16")
    ids = torch.tensor([[5, 9]])
    before = low.log_probs_of_ids(ids)
    with in_float32(low) as exact:
        exact.log_probs_of_ids(ids)
        with pytest.raises(RuntimeError):
            exact.model(inputs_embeds=torch.zeros(1, 2, 3), use_cache=False)  # fails within a layer
        assert [id(parameter) for parameter in exact.model.parameters()] == [
            id(parameter) for parameter in low.model.parameters()
        ]
    assert torch.equal(low.log_probs_of_ids(ids), before)


def test_a_float32_model_is_its_own_view(lm: LanguageModel) -> None:
    with in_float32(lm) as exact:
        assert exact is lm
