"""`python -m dpexplore space check|push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpexplore.errors import InputError
from dpexplore.space.check import disagreements, write_front_matter
from dpexplore.space.manifest import SPACEFILE
from dpexplore.space.push import plan_push
from dpexplore.space.push import push as carry_out

app = typer.Typer(help="The Hugging Face Space: check what it is made from, deploy it.", rich_markup_mode=None)

FolderOption = Annotated[Path, typer.Option("--folder", help="The checkout; default: the one this command is from.")]


@app.command()
def check(
    folder: FolderOption = SPACEFILE.parent,
    write: Annotated[bool, typer.Option("--write", help="First write the front matter into README.md.")] = False,
) -> None:
    """Validate the Spacefile, and that the README's front matter, requirements.txt and the code agree with it."""
    if write:
        write_front_matter(folder)
    problems = disagreements(folder)
    if problems:
        raise InputError(" ".join(problems))
    print("The Spacefile is valid, and README.md, requirements.txt and the code agree with it.")


@app.command()
def push(
    repo: Annotated[str, typer.Option(help="user/name of the Space.")],
    folder: FolderOption = SPACEFILE.parent,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this it is only said what would be done.")] = False,
) -> None:
    """Create or update a Space. A dry run unless told otherwise."""
    plan = plan_push(folder, repo)
    print("\n".join(plan.lines()))
    if not yes:
        print("Nothing was changed; --yes carries it out.")
        return
    print(f"Deployed: {carry_out(folder, plan)}")
