"""Whether everything that a Space is built from agrees: Spacefile, requirements, code."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from dpexplore.errors import InputError
from dpexplore.models.names import DEFAULT_MODEL
from dpexplore.models.registry import REGISTRY
from dpexplore.space.manifest import Manifest, load_manifest

NEEDED = ("README.md", "requirements.txt", "pyproject.toml", "dpexplore", "assets")


def front_matter(manifest: Manifest) -> dict[str, Any]:
    """The YAML block that the Hub reads from the top of a Space's README, from the manifest."""
    space, models = manifest.space, manifest.models
    block = {
        "title": space.title,
        "emoji": space.emoji,
        "colorFrom": space.color_from,
        "colorTo": space.color_to,
        "sdk": space.sdk,
        "sdk_version": space.sdk_version,
        "python_version": space.python_version,
        "app_file": space.app_file,
        "license": space.license,
        "short_description": space.short_description,
        "suggested_hardware": space.hardware,
        "startup_duration_timeout": space.startup_timeout,
        "models": models.hub_ids,
    }
    # The default model comes with the packages, not from the Hub.
    preloaded = [REGISTRY[name].hub_id for name in models.preload if name != DEFAULT_MODEL]
    return block | ({"preload_from_hub": preloaded} if preloaded else {})


def front_matter_text(manifest: Manifest) -> str:
    """The same as text, from one `---` line to the other."""
    return f"---\n{yaml.safe_dump(front_matter(manifest), sort_keys=False, allow_unicode=True)}---\n"


def disagreements(root: Path) -> list[str]:
    """One sentence for each thing in `root` that would break the Space; empty if it can be deployed."""
    try:
        manifest = load_manifest(root / "Spacefile")
    except InputError as error:
        return [str(error)]
    missing = [name for name in (manifest.space.app_file, *NEEDED) if not (root / name).exists()]
    if missing:
        return [f"{name} is missing at the top of the project." for name in missing]
    return [*_requirements(root, manifest), *_python(root, manifest)]


def _requirements(root: Path, manifest: Manifest) -> list[str]:
    problems: list[str] = []
    named: dict[str, Requirement] = {}
    for line in (root / "requirements.txt").read_text(encoding="utf-8").splitlines():
        text = line.partition(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            problems.append(f"requirements.txt has the line {text!r}, which is not a requirement.")
        else:
            named[requirement.name.lower()] = requirement
    gradio, version = named.get("gradio"), manifest.space.sdk_version
    if gradio is None:
        problems.append("requirements.txt does not name gradio.")
    elif version not in gradio.specifier:
        problems.append(f"The Spacefile asks for gradio {version}, requirements.txt for {gradio.specifier}.")
    return problems


def _python(root: Path, manifest: Manifest) -> list[str]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version, accepted = manifest.space.python_version, project["requires-python"]
    if version in SpecifierSet(accepted):
        return []
    return [f"The Spacefile asks for Python {version}, pyproject.toml for {accepted}."]


def space_readme(root: Path) -> bytes:
    """The Space's README.md: the front matter that the Hub reads, then the checkout's README."""
    front = front_matter_text(load_manifest(root / "Spacefile"))
    return f"{front}\n{(root / 'README.md').read_text(encoding='utf-8')}".encode()
