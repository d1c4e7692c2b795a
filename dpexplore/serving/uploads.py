"""Where uploaded files lie, and which files a recipe may read."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dpexplore.errors import InputError
from dpexplore.targets import Recipe
from dpexplore.targets.sources import File
from dpexplore.targets.transforms import Mix, Transform

KEPT_SECONDS = 7200.0
"""An uploaded or offered file lies this long."""


def upload_folder() -> Path:
    """The folder into which Gradio puts uploaded files."""
    return Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio").resolve()


def check_files(recipe: Recipe, folder: Path) -> None:
    """InputError if a recipe reads a file outside `folder`: a page must not open the server's own files."""
    for source in _sources(recipe):
        if isinstance(source, File) and not Path(source.path).resolve().is_relative_to(folder.resolve()):
            raise InputError("The page reads uploaded files only; put the file into the File tab.")


def _sources(recipe: Recipe) -> Iterator[Recipe]:
    while isinstance(recipe, Transform):
        if isinstance(recipe, Mix):
            yield from _sources(recipe.other)
        recipe = recipe.base
    yield recipe


def download_folder() -> Path:
    """A fresh folder for a file that a page offers; it goes with what else is old there."""
    parent = upload_folder() / "downloads"
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    remove_old_files(parent)
    return Path(tempfile.mkdtemp(dir=parent))


def remove_old_files(folder: Path, seconds: float = KEPT_SECONDS) -> None:
    """Remove files that nobody has written to for long, and the folders that they leave empty."""
    for path in sorted(folder.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):  # another thread was first, or a folder is not empty
            if abs(time.time() - path.lstat().st_mtime) > seconds:
                path.rmdir() if path.is_dir() else path.unlink()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total
