"""Model folders as people have them: adapters, pointers, files that never end; and devices that are not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from dpexplore.errors import InputError
from dpexplore.models import load_model


@pytest.fixture
def folder(tiny_folders: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folders("gpt2"), tmp_path / "model")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's own
def test_an_adapter_is_loaded_with_its_base(folder: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    adapted = get_peft_model(
        base, LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    )
    adapted.save_pretrained(str(tmp_path / "adapter"))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(folder)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    plain, lm = load_model(str(folder), device="cpu"), load_model(str(tmp_path / "adapter"), device="cpu")
    ids = torch.tensor([lm.encode("I love the sea")])
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits[:, -1].log_softmax(-1)
    assert torch.allclose(lm.log_probs_of_ids(ids), expected, atol=1e-4)
    assert not torch.allclose(plain.log_probs_of_ids(ids), expected, atol=1e-2)
    assert lm.identity.startswith(plain.identity + "+adapter:")
    config["base_model_name_or_path"] = str(tmp_path / "nowhere")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="There is no model"):
        load_model(str(tmp_path / "adapter"), device="cpu")


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json"])
def test_a_git_lfs_pointer_is_called_one(folder: Path, name: str) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match=f"{name} .* git-lfs pointer"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"model_type": ["gpt2"]}', '{"model_type": 7}', "\udcff"])
def test_a_config_that_is_none_is_a_sentence(folder: Path, content: str) -> None:
    (folder / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match="damaged"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "hyperbolic", "factor": 2.0},
        {"type": "hyperbolic", "factor": 2.0},
        {"rope_type": ["linear"], "factor": 2.0},
        {"rope_type": "linear", "factor": "two"},
        "linear",
        [1],
    ],
)
def test_a_rotation_that_transformers_does_not_know_is_a_sentence(
    tiny_folders: Callable[[str], Path], tmp_path: Path, scaling: object
) -> None:
    folder = shutil.copytree(tiny_folders("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_scaling": scaling, "rope_parameters": None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"hyperbolic|damaged|upgrade transformers") as refusal:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(refusal.value)


def test_a_config_that_never_ends_is_not_read(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(InputError, match="damaged"):
        load_model(str(folder), device="cpu")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="damaged"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "cuda:99", "hpu", "nonsense", "vulkan"])
def test_a_device_that_is_not_here_is_answered_with_those_that_are(folder: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"no device {device}; it has cpu"):
        load_model(str(folder), device=device)
