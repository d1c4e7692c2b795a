"""From what a person names on the command line to requests with their outcomes."""

from __future__ import annotations

from pathlib import Path

from dpexplore.diffuse.families import FAMILIES, Task, family
from dpexplore.errors import InputError
from dpexplore.targets import Strings, parse_recipe
from dpexplore.targets.string_files import read_strings


def collect(prompts: list[str], size: str = "small") -> list[Task]:
    """The requests that a command line names: families, recipes, files and folders. InputError for anything else."""
    if not prompts:
        raise InputError(
            "No prompts were named; a JSON file, a folder of them, a recipe strings(…) or one of "
            f"{', '.join(FAMILIES)} is needed."
        )
    tasks: list[Task] = []
    for text in prompts:
        if text in FAMILIES and not Path(text).exists():
            tasks += [Task(f"{text}/{task.name}", task.strings) for task in family(text, size)]  # type: ignore[arg-type]
        elif text.lstrip().startswith("strings("):
            recipe = parse_recipe(text)
            assert isinstance(recipe, Strings)
            tasks.append(Task(recipe.request[:40] or "strings", recipe))
        else:
            tasks += [Task(found.name, found.strings) for found in read_strings(text)]
    return tasks
