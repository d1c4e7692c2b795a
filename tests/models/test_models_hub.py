"""Models of the Hub, from a hub of our own on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel, load_model
from dpexplore.models.hub import wanted_files
from tests.fake_hub import COMMIT, FakeHub, serve

TinyFolders = Callable[[str], Path]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folders: TinyFolders) -> Iterator[FakeHub]:
    """A hub with the tiny Llama as `lab/tiny`, and an empty cache of the hub's client."""
    folder = shutil.copytree(tiny_folders("llama"), tmp_path / "repository")
    (folder / "README.md").write_text("# tiny")
    (folder / "consolidated.safetensors").write_bytes(b"the same weights in another layout")
    with serve(FakeHub({"lab/tiny": folder})) as hub:
        cache = str(tmp_path / "cache")
        _point_at(hub.url, monkeypatch)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", cache)
        yield hub


def _point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def unplug(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Takes the network away: nothing listens on the port that the client is pointed at."""
    return lambda: _point_at("http://127.0.0.1:9", monkeypatch)


def load(name: str, **options: object) -> LanguageModel:
    return load_model(name, device="cpu", **options)  # pyright: ignore[reportArgumentType]


def test_loads_what_the_folder_holds(hub: FakeHub, tiny_lm: Callable[[str], LanguageModel]) -> None:
    seen: list[tuple[str, float | None]] = []
    lm = load("lab/tiny", progress=lambda text, fraction: seen.append((text, fraction)))
    ids = torch.tensor([[3, 1, 4]])
    assert torch.equal(lm.log_probs_of_ids(ids), tiny_lm("llama").log_probs_of_ids(ids))
    assert lm.identity == f"hub:lab/tiny@{COMMIT}"
    assert "README.md" not in hub.served
    assert "consolidated.safetensors" not in hub.served
    fractions = [fraction for text, fraction in seen if text == "Downloading lab/tiny" and fraction is not None]
    assert fractions
    assert fractions == sorted(fractions)
    assert 0.9 < fractions[-1] <= 1  # config.json came before


def test_cached_model_loads_without_network(hub: FakeHub, unplug: Callable[[], None]) -> None:
    load("lab/tiny")
    hub.served.clear()
    load("lab/tiny")
    assert hub.served == []
    unplug()
    assert load("lab/tiny").identity == f"hub:lab/tiny@{COMMIT}"


def test_no_network_and_no_cache(hub: FakeHub, unplug: Callable[[], None]) -> None:
    unplug()
    with pytest.raises(InputError, match="cannot be reached"):
        load("lab/tiny")


def test_no_such_model(hub: FakeHub) -> None:
    for name in ("lab/absent", "not a valid id", "two//slashes"):
        with pytest.raises(InputError, match=f"There is no model {name}; use a name"):
            load(name)


def test_gated_model(hub: FakeHub) -> None:
    hub.gated.add("lab/tiny")
    with pytest.raises(InputError, match="lab/tiny is gated"):
        load("lab/tiny")


def test_hub_out_of_order(hub: FakeHub) -> None:
    hub.broken.add("lab/tiny")
    with pytest.raises(InputError, match="answered 500"):
        load("lab/tiny")


def test_too_large_is_said_before_the_weights_are_downloaded(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpexplore.models.config.memory_present", lambda _device: 2**20)
    with pytest.raises(InputError, match=r"needs about 0\.3 GB .* but only 0\.0 GB"):
        load("lab/tiny")
    assert "model.safetensors" not in hub.served


def test_random_downloads_no_weights(hub: FakeHub) -> None:
    lm = load("random:lab/tiny", seed=3)
    assert lm.identity == "random:3:lab/tiny"
    assert "model.safetensors" not in hub.served


def test_repository_without_a_transformers_model(hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "gguf-only"
    folder.mkdir()
    (folder / "weights.gguf").write_bytes(b"GGUF")
    hub.folders["lab/gguf"] = folder
    with pytest.raises(InputError, match=r"no transformers model.*give its path"):
        load("lab/gguf")


def test_one_format_of_weights_is_wanted() -> None:
    names = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names += ["model.safetensors.index.json", "tokenizer.json", "pytorch_model.bin", "onnx/model.onnx", "README.md"]
    assert sorted(wanted_files(names, weights=True)) == sorted(names[:5])
    assert sorted(wanted_files(names, weights=False)) == [
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    assert "pytorch_model.bin" in wanted_files(["config.json", "pytorch_model.bin"], weights=True)
