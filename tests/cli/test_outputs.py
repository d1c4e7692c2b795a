"""Nothing is computed that cannot be kept: outputs are checked before a model is loaded, and never lost after."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dpexplore.cli import diffuse, main, tune
from dpexplore.tuning import load_capsule


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "arguments",
    [
        ["tune", "--target", "entropy(bits=1)", "--out"],
        ["target", "--target", "entropy(bits=1)", "--out"],
        ["reach", "--all", "--out"],
        ["reach", "--first", "a", "--head"],
        ["frontier", "--target", "entropy(bits=1)", "--figure"],
        ["generalise", "--out"],
        ["diffuse", 'strings(["a", "b"], request="r")', "--out"],
        ["figures", "--out"],
    ],
)
def test_outputs_are_checked_before_anything_is_loaded(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    place = tmp_path / "file" / ("x.npz" if arguments[0] == "target" else "x.html")
    model = [] if arguments[0] == "figures" else ["--model", "no-such-model"]
    assert main([*arguments, str(place), *model]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "does not exist" in said[0] or "cannot be written" in said[0]


def test_a_capsule_that_cannot_be_written_is_printed(
    tiny_folders: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tune, "write_file", full)
    asked = ["--target", "entropy(bits=1)", "--steps", "2", "--restarts", "1", "--model", str(tiny_folders("gpt2"))]
    assert main(["tune", *asked, "--out", str(tmp_path / "capsule.json")]) == 2
    out, err = capsys.readouterr()
    assert "the disk is full" in err.splitlines()[-1]
    (tmp_path / "printed.json").write_text(out.splitlines()[-1])
    assert load_capsule(tmp_path / "printed.json")["result"]["kl_nats"] > 0


@pytest.mark.parametrize("method", ["lora", "soft"])
def test_what_diffuse_made_is_kept_elsewhere_if_its_folder_fails(
    method: str,
    tiny_folders: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = diffuse._keep

    def keep(write: Callable[[Path], None], out: Path) -> Path:
        return kept(lambda folder: full() if folder == out else write(folder), out)

    monkeypatch.setattr(diffuse, "_keep", keep)
    limits = ["--passes", "1"] if method == "lora" else ["--steps", "1", "--restarts", "1"]
    asked = ["diffuse", 'strings(["a", "b"], request="r")', "--method", method, *limits, "--samples", "0", "--json"]
    assert main([*asked, "--model", str(tiny_folders("gpt2")), "--out", str(tmp_path / "made")]) == 0
    out, err = capsys.readouterr()
    assert "the disk is full" in err
    result = json.loads(out.splitlines()[-1])
    folder = Path(result["adapter" if method == "lora" else "capsules"])
    assert (folder / ("capsule.json" if method == "lora" else "capsule-0.json")).is_file()
    assert not (tmp_path / "made").exists()
