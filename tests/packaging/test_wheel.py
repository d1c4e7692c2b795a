"""The package as people install it: a wheel in an environment of its own, used from another folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
import urllib.request
import venv
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dpexplore.errors import InputError
from dpexplore.extras import EXTRAS, extra
from tests.live_server import ROOT, free_port

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


LOOK_INSIDE = """
from dpexplore.experiments.gallery import shipped_gallery
from dpexplore.shipped import ASSETS
from dpexplore.space import load_manifest
print(ASSETS, load_manifest().space.title, len(shipped_gallery()))
"""


PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone."""
    folder = tmp_path_factory.mktemp("source") / "dpexplore"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist as installers do that find no wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", SDIST, str(folder)], cwd=source, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(sdist)]
    subprocess.run([*PIP, *build], check=True)
    (built,) = folder.glob("*.whl")
    return built


def install(folder: Path, *what: str) -> Path:
    """`dpexplore` of a fresh environment: the package itself, and this environment's packages as its dependencies."""
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    python = folder / "env" / "bin" / "python"
    arguments = ["--python", str(python), "install", "--no-deps", "--no-build-isolation", *what]
    subprocess.run([*PIP, *arguments], check=True)
    return folder / "env" / "bin" / "dpexplore"


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("installed"), str(wheel))


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """An environment in which the checkout cannot be found by accident."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_installed_command_tunes_from_another_folder(
    command: Path, elsewhere: dict[str, str], tmp_path: Path, tiny_folders: Callable[[str], Path]
) -> None:
    arguments = ["tune", "--model", str(tiny_folders("gpt2")), "--target", "entropy(bits=3)", "--out", "capsule.json"]
    done = subprocess.run(
        [command, *arguments, "--steps", "2", "--restarts", "1", "--json"],
        cwd=tmp_path, env=elsewhere, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["capsule"] == json.loads((tmp_path / "capsule.json").read_text(encoding="utf-8"))


def test_the_installed_page_has_its_scripts_and_manifest(
    command: Path, elsewhere: dict[str, str], tmp_path: Path, tiny_folders: Callable[[str], Path]
) -> None:
    port = free_port()
    arguments = [command, "app", "--port", str(port), "--model", str(tiny_folders("gpt2"))]
    with subprocess.Popen(arguments, cwd=tmp_path, env=elsewhere, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == f"dpexplore is at http://127.0.0.1:{port}\n"
            _get(f"http://127.0.0.1:{port}/", server)
            assert "function" in _get(f"http://127.0.0.1:{port}/scripts/charts.js", server)
        finally:
            server.send_signal(signal.SIGTERM)
    done = subprocess.run(
        [command.with_name("python"), "-c", LOOK_INSIDE],
        cwd=tmp_path, env=elsewhere, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assets, title, figures = done.stdout.split()
    assert "site-packages" in assets
    assert title == "dpexplore"
    assert int(figures) > 10


def _get(address: str, server: subprocess.Popen[str]) -> str:
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{address} does not answer")


def test_an_editable_install_finds_its_assets_in_the_checkout(
    source: Path, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    command = install(tmp_path, "--editable", str(source))
    script = "from dpexplore.shipped import ASSETS, SPACEFILE; print(ASSETS, SPACEFILE.is_file())"
    done = subprocess.run(
        [command.with_name("python"), "-c", script],
        cwd=tmp_path, env=elsewhere, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(source / "assets"), "True"]


LEFT_OUT = (".parquet",)
"""Tracked below the package and its assets, and not shipped: raw results, 1 MB."""


def test_the_wheel_holds_every_tracked_file_by_way_of_the_sdist(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "dpexplore", "assets"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    shipped = [name for name in tracked if not name.endswith(LEFT_OUT)]
    expected = {name if name.startswith("dpexplore/") else f"dpexplore/{name}" for name in shipped}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}
    assert held == expected


def test_nothing_that_the_core_needs_refuses_numpy_2_or_python_3_13() -> None:
    """By the installed packages' own metadata; a package of the core that pins either shows here, without an index."""
    environment = {"python_version": "3.13", "python_full_version": "3.13.0", "extra": ""}
    waiting, seen = [Requirement(line) for line in PROJECT["project"]["dependencies"]], set[str]()
    while waiting:
        needed = waiting.pop()
        if needed.marker is not None and not needed.marker.evaluate(environment):
            continue
        if needed.name.lower() == "numpy":
            assert needed.specifier.contains("2.3.0"), f"a package asks for {needed}"
        if needed.name.lower() in seen:
            continue
        seen.add(needed.name.lower())
        try:
            found = metadata.distribution(needed.name)
        except metadata.PackageNotFoundError:  # another platform's, or for another Python
            continue
        assert SpecifierSet(found.metadata["Requires-Python"] or "").contains("3.13.0"), needed.name
        waiting += [Requirement(line) for line in found.requires or []]
    assert {"torch", "transformers", "gradio", "numpy", "scipy"} <= seen
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains("3.13.0")


def test_every_package_is_in_the_wheel() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "dpexplore").rglob("__init__.py")}
    packages = {".".join(folder.parts) for folder in folders}
    packages |= {
        ".".join(("dpexplore", *path.relative_to(ROOT).parts))
        for path in [ROOT / "assets", *(ROOT / "assets").rglob("*")]
        if path.is_dir() and any(not file.name.endswith(LEFT_OUT) for file in path.glob("*.*"))
    }
    assert listed == packages


def test_requirements_txt_is_the_core_with_its_extras() -> None:
    """What a plain checkout installs is what the package asks for, apart from Ray and MCP, which the tests bring."""
    project = PROJECT["project"]
    extras = {name: tuple(listed) for name, listed in project["optional-dependencies"].items() if name != "all"}
    assert extras == EXTRAS
    asked = _by_name([*project["dependencies"], *EXTRAS["pos"], *EXTRAS["diffuse"], *EXTRAS["figures"]])
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    plain = _by_name([line.partition(" #")[0] for line in lines if line.strip() and not line.startswith("#")])
    assert asked.keys() == plain.keys()
    for name, requirement in asked.items():
        # pyarrow's newest releases need NumPy 2, which scispaCy refuses: only requirements.txt holds them back.
        assert name == "pyarrow" or requirement.specifier == plain[name].specifier, name


def _by_name(lines: list[str]) -> dict[str, Requirement]:
    return {requirement.name.lower(): requirement for requirement in map(Requirement, lines)}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_extra_is_one_sentence_with_its_command(name: str) -> None:
    with pytest.raises(InputError) as caught, extra(name, "This"):
        __import__("a_module_that_is_not_there")
    sentence = str(caught.value)
    assert sentence.startswith("This needs packages that are not installed")
    assert all(f"'{requirement}'" in sentence for requirement in EXTRAS[name])
    assert "\n" not in sentence
