"""Creating or updating a Space from this checkout, through the Hub's own client."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, SpaceHardware, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx or httpx2, whichever it uses
)

from dpexplore.errors import InputError
from dpexplore.files import write_file
from dpexplore.space.check import disagreements, space_readme
from dpexplore.space.manifest import Manifest, load_manifest

FOLDERS = ("dpexplore", "assets")
FILES = ("README.md", "Spacefile", "requirements.txt", "pyproject.toml", "LICENSE")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_LEFT_OUT = {"__pycache__"}


@dataclass(frozen=True)
class Plan:
    """What a push will do."""

    repo: str
    files: tuple[str, ...]
    """Paths below the checkout."""
    bytes: int
    hardware: str
    variables: dict[str, str]

    def lines(self) -> list[str]:
        """The plan in words."""
        return [
            f"Space       {self.repo} (created if it is not there)",
            f"Hardware    {self.hardware}",
            f"Upload      {len(self.files)} files, {self.bytes / 2**20:.1f} MiB; other files of the Space are removed",
            *(f"Variable    {name}={value}" for name, value in self.variables.items()),
        ]


def plan_push(root: Path, repo: str) -> Plan:
    """What would be pushed from `root`. InputError if the name is none, or the checkout cannot be deployed."""
    if not _REPO.fullmatch(repo):
        raise InputError(f"{repo!r} is not the name of a Space; write user/name, such as ada/dpexplore.")
    if problems := disagreements(root):
        raise InputError(problems[0])
    manifest: Manifest = load_manifest(root / "Spacefile")
    found = [root / name for name in (manifest.space.app_file, *FILES) if (root / name).is_file()]
    for folder in FOLDERS:
        found += [
            path for path in sorted((root / folder).rglob("*")) if path.is_file() and not _LEFT_OUT & set(path.parts)
        ]
    return Plan(
        repo=repo,
        files=tuple(path.relative_to(root).as_posix() for path in found),
        bytes=sum(path.stat().st_size for path in found),
        hardware=manifest.space.hardware,
        variables=dict(manifest.environment),
    )


def push(root: Path, plan: Plan, *, endpoint: str | None = None, token: str | None = None) -> str:
    """Carry a plan out; the address of the Space. InputError without a token, or with the Hub's refusal.

    `endpoint` and `token`: None for those that the Hub's own tools use.
    """
    token = token or get_token()
    if token is None:
        raise InputError("No token of the Hugging Face Hub was found: log in with `hf auth login`, or set HF_TOKEN.")
    api = HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(plan.repo, repo_type="space", space_sdk="gradio", exist_ok=True)
        with TemporaryDirectory() as staged:
            _stage(root, plan, Path(staged))
            api.upload_folder(
                repo_id=plan.repo,
                repo_type="space",
                folder_path=staged,
                delete_patterns="*",
                commit_message="Deploy dpexplore",
            )
        for name, value in plan.variables.items():
            api.add_space_variable(plan.repo, name, value)
        current = api.get_space_runtime(plan.repo)
        if plan.hardware not in (current.hardware, current.requested_hardware):
            api.request_space_hardware(plan.repo, SpaceHardware(plan.hardware))
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = {
            401: "the token is not valid; log in again with `hf auth login`",
            402: f"the hardware {plan.hardware} must be paid for; choose it in the Space's settings",
            403: f"the token may not write to {plan.repo}; make one with the right to write",
        }.get(status, f"it answered {status}; try again later")
        raise InputError(f"The Hub refused to deploy: {reason}.") from error
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise InputError("The Hugging Face Hub cannot be reached; nothing more was changed there.") from error
    return f"{api.endpoint}/spaces/{plan.repo}"


def _stage(root: Path, plan: Plan, folder: Path) -> None:
    """The plan's files in `folder`, the README with the front matter that the Hub reads."""
    for name in plan.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, folder / name)
    write_file(folder / "README.md", space_readme(root))
