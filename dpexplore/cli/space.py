"""`dpexplore space check|push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpexplore.cli.common import say
from dpexplore.errors import InputError
from dpexplore.shipped import CHECKOUT

space = typer.Typer(help="The Hugging Face Space: check what it is made from, deploy it.")

FolderOption = Annotated[Path | None, typer.Option(help="The checkout; default: the one this command comes from.")]


@space.command()
def check(folder: FolderOption = None) -> None:
    """Check that the Spacefile is valid and that requirements.txt and the code agree with it."""
    from dpexplore.space.check import disagreements

    problems = disagreements(folder or CHECKOUT)
    if problems:
        raise InputError(" ".join(problems))
    say("The Spacefile is valid, and requirements.txt and the code agree with it.")


@space.command()
def push(
    repo: Annotated[str, typer.Option(help="user/name of the Space.")],
    folder: FolderOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this option it is a dry run.")] = False,
) -> None:
    """Create or update a Space; a dry run unless --yes is given."""
    from dpexplore.space.push import plan_push
    from dpexplore.space.push import push as carry_out

    folder = folder or CHECKOUT
    plan = plan_push(folder, repo)
    say("\n".join(plan.lines()))
    if not yes:
        say("Nothing was changed; --yes carries it out.")
        return
    say(f"Deployed: {carry_out(folder, plan)}")
