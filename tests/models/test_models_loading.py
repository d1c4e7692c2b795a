"""What `load_model` accepts, what it refuses and how it says so; random models; memory."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

from dpexplore.errors import InputError
from dpexplore.models import DEFAULT_MODEL, LanguageModel, describe_models, load_model
from dpexplore.models.random_model import bytes_llama_config, drawn_on, initialise, random_identity
from dpexplore.models.registry import REGISTRY, memory_needed
from tests.tiny_models import ARCHITECTURES

TinyFolders = Callable[[str], Path]
TinyLm = Callable[[str], LanguageModel]


@pytest.fixture
def folder(tiny_folders: TinyFolders, tmp_path: Path) -> Path:
    """A copy of the tiny Llama's folder, to be spoilt."""
    return shutil.copytree(tiny_folders("llama"), tmp_path / "model")


def refusal(name: str | Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        load_model(str(name), device=str(options.pop("device", "cpu")), **options)  # pyright: ignore
    message = str(caught.value)
    assert message.count("\n") == 0
    assert message.endswith(".")
    return message


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "nowhere.gguf"])
def test_no_such_model(name: str) -> None:
    assert refusal(name).startswith(f"There is no model {name}; use a name")


@pytest.mark.parametrize("name", ["  ", "random:"])
def test_no_model_named(name: str) -> None:
    assert "No model was named" in refusal(name)


def test_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "holds no config.json" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "llama", "vocab_size": "many"}'])
def test_damaged_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json of" in refusal(folder)


def test_folder_without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "has no tokenizer" in refusal(folder)


def test_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    assert "tokenizer of" in refusal(folder)


def test_missing_damaged_and_mismatched_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    assert "missing, damaged or do not match" in refusal(folder)
    weights.unlink()
    assert "missing, damaged or do not match" in refusal(folder)
    weights.write_bytes(data)
    edit_config(folder, vocab_size=7)
    assert "missing, damaged or do not match" in refusal(folder)


def test_weights_without_some_tensors(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=3)
    assert "lack" in refusal(folder)


def test_code_of_the_repository_is_never_run(folder: Path) -> None:
    marker = folder / "ran"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    (folder / "configuration_new.py").write_text(code)
    (folder / "modeling_new.py").write_text(code)
    auto_map = {"AutoConfig": "configuration_new.NewConfig", "AutoModelForCausalLM": "modeling_new.NewModel"}
    edit_config(folder, model_type="brand_new", auto_map=auto_map)
    assert "never runs" in refusal(folder)
    assert "never runs" in refusal(f"random:{folder}")
    edit_config(folder, model_type="llama", auto_map=auto_map)  # what transformers knows needs none of the code
    assert load_model(str(folder), device="cpu").vocab_size > 0
    assert not marker.exists()


def test_unknown_architecture(folder: Path) -> None:
    edit_config(folder, model_type="brand_new")
    assert "architecture brand_new" in refusal(folder)


def test_not_a_causal_language_model(folder: Path, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    masked = shutil.copytree(folder, tmp_path / "masked")
    (masked / "model.safetensors").unlink()
    BertForMaskedLM(BertConfig(vocab_size=340, **sizes)).save_pretrained(masked)
    assert "is not a causal language model (bert)" in refusal(masked)
    edit_config(folder, model_type="vit")
    assert "is not a causal language model (vit)" in refusal(folder)
    edit_config(folder, model_type="t5", is_encoder_decoder=True)
    assert "is not a causal language model (t5)" in refusal(folder)


def test_classifier_without_language_model_head(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=False)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder)
    classifier.save_pretrained(folder)
    assert "lm_head.weight" in refusal(folder)


def test_too_large_says_the_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpexplore.models.config.memory_present", lambda _device: 10**9)
    edit_config(folder, hidden_size=4096, intermediate_size=16384, num_hidden_layers=40)
    for name in (str(folder), f"random:{folder}", "llama-3-8b"):
        message = refusal(name)
        assert "only 1.0 GB are free on cpu" in message
        assert "GB of memory in float32" in message


def test_devices_that_are_not_there(folder: Path) -> None:
    assert "no device tpu3000; it has cpu" in refusal(folder, device="tpu3000")
    assert "This machine has no device cuda:99" in refusal(folder, device="cuda:99")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a gguf file at all" * 100])
def test_damaged_gguf(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    assert "is damaged or of an architecture" in refusal(file)


def test_nothing_is_written_on_the_terminal(folder: Path, tmp_path: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        load_model(str(folder), device="cpu")
        load_model("random:bytes-llama", device="cpu")
        refusal(tmp_path)
    assert out.getvalue() == ""
    assert err.getvalue() == ""


def test_identity_names_the_weights(folder: Path, tiny_lm: TinyLm) -> None:
    first = load_model(str(folder), device="cpu").identity
    assert first == tiny_lm("llama").identity
    assert first.startswith("sha256:")
    assert first != tiny_lm("qwen2").identity


def test_dtype_is_what_was_asked_for(folder: Path) -> None:
    lm = load_model(str(folder), device="cpu", dtype=torch.bfloat16)
    assert lm.dtype == torch.bfloat16
    embeds = lm.embed(torch.tensor([[1, 2]])).float().requires_grad_()  # the optimiser's copies are float32
    log_probs = lm.log_probs(embeds)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(), torch.tensor(1.0))
    (gradient,) = torch.autograd.grad(log_probs[0, 0], embeds)
    assert gradient.dtype == torch.float32


class TestRandom:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_same_architecture_other_weights(
        self, architecture: str, tiny_folders: TinyFolders, tiny_lm: TinyLm
    ) -> None:
        trained = tiny_lm(architecture)
        lm = load_model(f"random:{tiny_folders(architecture)}", device="cpu", seed=5)
        assert type(lm.model) is type(trained.model)
        assert lm.parameter_count == trained.parameter_count
        assert lm.vocab_size == trained.vocab_size
        assert lm.encode("the sea") == trained.encode("the sea")
        assert not torch.equal(lm.embedding_table, trained.embedding_table)
        assert not any(parameter.requires_grad for parameter in lm.model.parameters())

    def test_weights_come_from_the_seed(self) -> None:
        models = [load_model("random:bytes-llama", device="cpu", seed=seed) for seed in (1, 1, 2)]
        first, again, other = (lm.log_probs_of_ids(torch.tensor([[65, 66]])) for lm in models)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert [lm.identity for lm in models] == [f"random:{seed}:bytes-llama" for seed in (1, 1, 2)]

    def test_large_models_are_drawn_where_they_go(self) -> None:
        cpu, card = torch.device("cpu"), torch.device("cuda", 0)
        assert [drawn_on(parameters, card) for parameters in (10**8, 10**9)] == [cpu, card]
        assert drawn_on(10**10, cpu) == cpu
        assert random_identity(3, "gpt2", cpu, torch.bfloat16) == "random:3:gpt2"
        assert random_identity(3, "gpt2", card, torch.bfloat16) == "random:3:gpt2@cuda-bfloat16"

    def test_weights_are_drawn_on_the_device_in_its_dtype(self) -> None:
        """On `meta` the path of a card runs, without numbers."""
        model = initialise(bytes_llama_config(), 0, torch.device("meta"), torch.bfloat16)
        assert {(each.device.type, each.dtype) for each in model.parameters()} == {("meta", torch.bfloat16)}

    def test_global_generator_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        load_model("random:bytes-llama", device="cpu", seed=1)
        assert torch.equal(torch.get_rng_state(), before)

    def test_bytes_llama_reads_any_text(self) -> None:
        lm = load_model("random:bytes-llama", device="cpu")
        text = "naïve 🐙\n"
        assert b"".join(lm.token_bytes(i) or b"" for i in lm.encode(text)) == text.encode()
        assert lm.decode(lm.encode(text)) == text
        assert len(lm.encode(text)) == len(text.encode())
        assert lm.vocab_size == len(lm.ordinary_ids) + 1

    def test_folder_needs_no_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        assert load_model(f"random:{folder}", device="cpu").vocab_size > 0

    def test_no_such_configuration(self) -> None:
        assert "There is no model ./nowhere" in refusal("random:./nowhere")


class TestRegistry:
    def test_picker(self) -> None:
        infos = describe_models("cpu")
        assert [info.name for info in infos if info.is_default] == [DEFAULT_MODEL]
        assert {info.name for info in infos} == set(REGISTRY)
        assert all(info.gated == info.hub_id.startswith("meta-llama/") for info in infos)
        for info in infos:
            assert info.bytes_needed > 4 * info.parameters
            assert info.fits == (info.bytes_needed <= info.bytes_present)

    def test_memory_grows_with_parameters_and_precision(self) -> None:
        assert memory_needed(2 * 10**9, torch.float32) > memory_needed(10**9, torch.float32)
        assert memory_needed(10**9, torch.float32) > memory_needed(10**9, torch.bfloat16)
