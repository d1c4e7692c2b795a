"""The Spacefile, its agreement with the rest of the project, and the way to a Space."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from dpexplore.cli import main
from dpexplore.errors import InputError
from dpexplore.models.registry import REGISTRY
from dpexplore.shipped import CHECKOUT
from dpexplore.space.check import disagreements, front_matter, space_readme
from dpexplore.space.manifest import load_manifest
from dpexplore.space.push import plan_push, push
from tests.fake_space import FakeSpaceHub, serve

ROOT = CHECKOUT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a Space is made from, with little in its folders."""
    for name in ("Spacefile", "README.md", "requirements.txt", "pyproject.toml", "LICENSE", "app.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for folder in ("dpexplore", "assets"):
        (tmp_path / folder).mkdir()
    (tmp_path / "dpexplore" / "__init__.py").write_text('"""Here."""\n')
    (tmp_path / "dpexplore" / "__pycache__").mkdir()
    (tmp_path / "dpexplore" / "__pycache__" / "old.pyc").write_bytes(b"\0")
    (tmp_path / "assets" / "page.css").write_text("body {}\n")
    return tmp_path


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_this_checkout_can_be_deployed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", "check"]) == 0
    assert "agree" in capsys.readouterr().out


def test_the_front_matter_is_what_the_hub_reads() -> None:
    manifest = load_manifest()
    top, block, rest = space_readme(ROOT).decode().split("---\n", 2)
    assert top == ""
    read = yaml.safe_load(block)
    assert read == front_matter(manifest)
    assert isinstance(read["python_version"], str)  # 3.10 must not become 3.1
    assert set(read["models"]) == {REGISTRY[name].hub_id for name in manifest.models.allowed}
    assert rest == "\n" + (ROOT / "README.md").read_text(encoding="utf-8")
    assert not rest.lstrip().startswith("---")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("\n[models]\n", "\n[modles]\n", "models is missing"),
        ("[space]", "[space", "no TOML"),
        ('sdk_version = "6.31.0"', 'sdk_version = "latest"', "space.sdk_version is 'latest'"),
        ('hardware = "cpu-basic"', 'hardware = "abacus"', "use one of cpu-basic"),
        ("rows = 10 ", "rows = 0 ", "limits.cpu.rows is 0"),
        ("rows = 10 ", 'rows = "10" ', "limits.cpu.rows is '10'"),
        ("rows = 10 ", "rows = 10\nshoes = 2 ", "limits.cpu.shoes is not a field"),
        ("seconds = 300 ", "#", "limits.cpu.seconds is missing"),
        ("[limits.gpu]", "[limits.tpu]", "tpu"),
        ('    "gpt2",', '    "gpt2", "gpt9",', "gpt9"),
        ('default = "smollm2-135m-instruct"', 'default = "llama-3-8b"', "llama-3-8b"),
        ("preload = []", 'preload = ["falcon-7b"]', "falcon-7b"),
        ("HF_HUB_DISABLE_TELEMETRY =", '"a b" =', "a b"),
    ],
)
def test_a_wrong_manifest_is_told_in_one_sentence(checkout: Path, old: str, new: str, told: str) -> None:
    edit(checkout / "Spacefile", old, new)
    (sentence,) = disagreements(checkout)
    assert told in sentence
    assert "\n" not in sentence
    with pytest.raises(InputError):
        plan_push(checkout, "ada/dpexplore")


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("requirements.txt", "gradio>=6.31,<7", "gradio>=7", "gradio 6.31.0"),
        ("requirements.txt", "gradio>=6.31,<7", "", "does not name gradio"),
        ("requirements.txt", "gradio>=6.31,<7", "gradio>=6.31,<7\n???", "not a requirement"),
        ("pyproject.toml", '>=3.11,<3.14"', '>=3.11,<3.12"', "Python 3.12"),
    ],
)
def test_disagreements_are_found(checkout: Path, file: str, old: str, new: str, told: str) -> None:
    edit(checkout / file, old, new)
    assert any(told in sentence for sentence in disagreements(checkout))


def test_a_missing_file_is_named(checkout: Path) -> None:
    (checkout / "app.py").unlink()
    assert disagreements(checkout) == ["app.py is missing at the top of the project."]


def test_push_makes_the_space_what_the_checkout_is(checkout: Path) -> None:
    with serve(FakeSpaceHub()) as hub:
        for name in ("page.css", "other.css"):  # the second time the Space is there already
            (checkout / "assets" / "page.css").rename(checkout / "assets" / name)
            plan = plan_push(checkout, "ada/dpexplore")
            address = push(checkout, plan, endpoint=hub.url, token=hub.token)
            assert address == f"{hub.url}/spaces/ada/dpexplore"
            there = hub.spaces["ada/dpexplore"]
            assert set(there) - {".gitattributes"} == set(plan.files)
            sent = {name: (checkout / name).read_bytes() for name in plan.files} | {"README.md": space_readme(checkout)}
            assert {name: there[name] for name in plan.files} == sent
            assert hub.variables["ada/dpexplore"] == load_manifest().environment
    assert "dpexplore/__init__.py" in plan.files
    assert not any("__pycache__" in name for name in plan.files)


def test_push_asks_for_the_hardware(checkout: Path) -> None:
    edit(checkout / "Spacefile", 'hardware = "cpu-basic"', 'hardware = "t4-small"')
    plan = plan_push(checkout, "ada/dpexplore")
    with serve(FakeSpaceHub(free_hardware=("t4-small",))) as hub:
        push(checkout, plan, endpoint=hub.url, token=hub.token)
        assert hub.hardware["ada/dpexplore"] == "t4-small"
    with serve(FakeSpaceHub()) as hub, pytest.raises(InputError, match="must be paid"):
        push(checkout, plan, endpoint=hub.url, token=hub.token)


def test_what_stops_a_push_is_one_sentence(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_push(checkout, "ada/dpexplore")
    with serve(FakeSpaceHub(may_write=False)) as hub:
        with pytest.raises(InputError, match="right to write"):
            push(checkout, plan, endpoint=hub.url, token=hub.token)
        with pytest.raises(InputError, match="not valid"):
            push(checkout, plan, endpoint=hub.url, token="hf_of_nobody")
        assert hub.spaces == {}
        gone = hub.url
    with pytest.raises(InputError, match="cannot be reached"):
        push(checkout, plan, endpoint=gone, token="hf_of_the_owner")
    monkeypatch.setattr("dpexplore.space.push.get_token", lambda: None)
    with pytest.raises(InputError, match="No token"):
        push(checkout, plan, endpoint=gone)
    for name in ("", "dpexplore", "a/b/c", "ada/../etc"):
        with pytest.raises(InputError, match="not the name of a Space"):
            plan_push(checkout, name)


def test_a_dry_run_says_what_it_would_do(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", "push", "--repo", "ada/dpexplore", "--folder", str(checkout)]) == 0
    out = capsys.readouterr().out
    assert "ada/dpexplore" in out
    assert "Nothing was changed" in out
