"""The documents: they build strictly, their notebooks run, and they agree with the code and with each other."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import dpexplore as dp
from dpexplore.cli import cli
from dpexplore.models import LanguageModel
from tests.live_server import ROOT

DOCS = ROOT / "docs"
NOTEBOOKS = sorted((DOCS / "tutorials").glob("*.ipynb"))
README_BYTES = 8_000


def test_the_pages_build_without_a_warning_and_hold_the_reference(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "command-line.html").read_text(encoding="utf-8")
    for name in ("models", "target", "floor", "tune", "sweep", "figures", "diffuse", "generalise", "app", "space push"):
        assert f"dpexplore {name}" in commands
    assert "--learning-rate" in commands
    python = (tmp_path / "python.html").read_text(encoding="utf-8")
    for name in dp.__all__:
        assert name == "DEFAULT_MODEL" or f'id="dpexplore.{name}"' in python, f"docs/python.md lacks {name}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tutorial_runs_from_top_to_bottom(
    path: Path, default_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = dp.load_model

    def load_once(name: str, **settings: Any) -> LanguageModel:
        return default_lm if name == dp.DEFAULT_MODEL else load(name, **settings)

    monkeypatch.setattr(dp, "load_model", load_once)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), path.name, "exec"), names)


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= README_BYTES
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_documents_name_only_commands_that_exist() -> None:
    known = {command.name or command.callback.__name__ for command in cli.registered_commands if command.callback}
    known |= {group.name for group in cli.registered_groups}
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        blocks = "".join(re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))
        named = re.findall(r"^(?:python -m )?dpexplore (\w+)", blocks, re.M)
        assert set(named) <= known, page.name


def test_the_citation_agrees_with_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == dp.__version__
    assert f"## {dp.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_public_name_explains_itself() -> None:
    """Names of `dpexplore` and what their classes offer, inherited descriptions included."""
    silent = []
    for name in dp.__all__:
        thing = getattr(dp, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            members = {f"{name}.{key}": value for key, value in inspect.getmembers(thing) if key[0] != "_"}
            own = {
                key: value
                for key, value in members.items()
                if inspect.isfunction(value) or inspect.ismethod(value) or isinstance(value, property)
            }
            silent += [key for key, value in {name: thing, **own}.items() if not inspect.getdoc(value)]
    assert silent == []


def test_every_line_of_what_is_trusted_names_tests_that_there_are() -> None:
    """The table of what is enforced against visitors, in `docs/deploying.md`: no line without a test of its own."""
    table = (DOCS / "deploying.md").read_text(encoding="utf-8").split("| from a visitor |")[1].split("\n\n")[0]
    lines = table.splitlines()[2:]
    assert len(lines) >= 10
    for line in lines:
        *_, tests, _ = line.split("|")
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", tests)
        assert named, line
        for file, name in named:
            source = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"{file} has no {name}"
        for module in re.findall(r"`([\w/]+\.py)`", line.split("|")[3]):
            assert (ROOT / "dpexplore" / module).is_file(), module
