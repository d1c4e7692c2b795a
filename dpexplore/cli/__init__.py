"""The command line: `dpexplore COMMAND`, the same as `python -m dpexplore COMMAND`.

Results go to standard output (one JSON object a line under `--json`), progress to standard error.
Exit code 0 on success, 1 if part of a sweep failed or a capsule is damaged, 2 for bad input with one line that says
what was wrong, 130 if stopped without a result. Commands import what they need when they run: help and
completion load no torch.
"""

from __future__ import annotations

import io
import logging
import os
import sys

import typer
from typer.exceptions import Abort, TyperException

from dpexplore.cli import app as app_command
from dpexplore.cli import (
    capsule,
    diffuse,
    figures,
    floor,
    frontier,
    generalise,
    models,
    reach,
    space,
    sweep,
    target,
    tune,
)
from dpexplore.cli.common import INTERRUPTED, end_progress, interruptible
from dpexplore.errors import InputError

BAD_INPUT = 2

cli = typer.Typer(
    name="dpexplore",
    help="See, touch and measure what a language model can and cannot say as a probability distribution.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    no_args_is_help=False,
)
for panel, commands in {
    "One target": (target.target, floor.floor, frontier.frontier, reach.reach, tune.tune, capsule.capsule),
    "Experiments": (sweep.sweep, figures.figures, diffuse.diffuse, generalise.generalise),
    "Models and the page": (models.models, app_command.app),
}.items():
    for command in commands:
        cli.command(rich_help_panel=panel)(command)
cli.add_typer(space.space, name="space", rich_help_panel="Models and the page")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for stream in (sys.stdout, sys.stderr):  # a character that the terminal's encoding lacks costs no result
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with interruptible():
            given = sys.argv[1:] if arguments is None else arguments
            return cli([_as_typed(text) for text in given], standalone_mode=False) or 0
    except InputError as error:
        return _refuse(str(error))
    except TyperException as error:  # what typer's own parser refuses
        return _refuse(f"{error.format_message().rstrip('.')}. See `dpexplore --help`.")
    except (KeyboardInterrupt, Abort):
        end_progress()
        return INTERRUPTED
    except OSError as error:
        return _refuse(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))


def _as_typed(argument: str) -> str:
    """An argument in UTF-8, whatever the locale; in locale C Python has read its bytes as halves of characters."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        return argument


def _refuse(sentence: str) -> int:
    end_progress()
    print(f"dpexplore: {' '.join(sentence.split())}", file=sys.stderr)
    return BAD_INPUT
