"""Where uploaded files lie, and which files a recipe may read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dpexplore.errors import InputError
from dpexplore.targets import Recipe
from dpexplore.targets.sources import File
from dpexplore.targets.transforms import Mix, Transform


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
