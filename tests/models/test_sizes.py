"""Counting an architecture's parameters before it is built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel, load_model, sizes
from dpexplore.models.sizes import count_parameters
from tests.tiny_models import ARCHITECTURES


def test_parameters_are_those_of_the_model(tiny_lm: Callable[[str], LanguageModel]) -> None:
    for architecture in ARCHITECTURES:
        lm = tiny_lm(architecture)
        assert count_parameters(lm.model.config, architecture) == lm.parameter_count


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 10**5}, {"num_hidden_layers": 10**12}])
@pytest.mark.parametrize("prefix", ["", "random:"])
def test_a_model_of_very_many_layers_is_refused(
    changes: dict[str, Any], prefix: str, tiny_folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folders("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match="layers"):
        load_model(f"{prefix}{folder}", device="cpu")


def test_building_stops_at_a_number_of_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=4, num_attention_heads=1)
    everything = count_parameters(config, "it")
    monkeypatch.setattr(sizes, "MOST_MODULES", 20)
    with pytest.raises(InputError, match="it asks for more modules"):
        count_parameters(config, "it")
    monkeypatch.undo()
    assert count_parameters(config, "it") == everything


def test_a_missing_package_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 3n sees with a part that comes from timm."""

    def build(*_arguments: object, **_options: object) -> None:
        raise ImportError("\nTimmWrapperModel requires the timm library but it was not found\n")

    monkeypatch.setattr(sizes.AutoModelForCausalLM, "from_config", build)
    with pytest.raises(
        InputError, match=r"it needs a Python package that is not installed \(TimmWrapper.*timm library"
    ):
        count_parameters(LlamaConfig(), "it")


def test_sizes_that_contradict_each_other() -> None:
    config = LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.vocab_size = -8
    with pytest.raises(InputError, match=r"No model can be built .*upgrade transformers"):
        count_parameters(config, "it")
