"""Files that the Strings tab is given: JSON of the paper's repository, or one outcome a line."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import count
from pathlib import Path

from dpexplore.errors import InputError
from dpexplore.serving.app_context import sentence
from dpexplore.targets import Strings
from dpexplore.targets.string_files import parse_strings
from dpexplore.ui.components.markup import message
from dpexplore.ui.components.string_view import read_lines

MOST_FILES = 200
MOST_CHARACTERS = 2_000_000
SHOWN_PROBLEMS = 5


def read_uploads(paths: Sequence[str], most: int = MOST_CHARACTERS) -> tuple[dict[str, Strings], list[str]]:
    """The targets by their files' names, in order, and a sentence for every file that holds none, or if none came.

    A file has `most` characters at most.
    """
    found: dict[str, Strings] = {}
    problems = [] if paths else ["There is no .json file there; use JSON files as in the paper's repository."]
    files = sorted((Path(path) for path in paths), key=lambda file: file.name)
    for file in files[:MOST_FILES]:
        try:
            found[_free(file.name, found)] = _read(file, most)
        except Exception as error:
            told = sentence(error)
            problems.append(told if file.name in told else f"{file.name!r}: {told}")
    if len(files) > MOST_FILES:
        problems.append(f"{len(files):,} files were given; the first {MOST_FILES} by name were read.")
    return found, problems


def uploads_html(found: dict[str, Strings], problems: list[str]) -> str:
    """What became of several files."""
    several = f"{len(found):,} targets are loaded; “Begin with” offers them all." if len(found) > 1 else ""
    more = len(problems) - SHOWN_PROBLEMS
    rest = f"{more:,} more files could not be read either." if more > 0 else ""
    told = [message(problem, "error") for problem in problems[:SHOWN_PROBLEMS]]
    return "".join([message(several, "info"), *told, message(rest, "error")])


def _read(file: Path, most: int) -> Strings:
    if file.stat().st_size > 4 * most:  # bytes that a character takes at most
        raise InputError(f"{file.name!r} has more than {most:,} characters, the most that are read.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{file.name!r} is not UTF-8 text; use JSON, or one outcome a line.") from None
    if len(text) > most:
        raise InputError(f"{file.name!r} has {len(text):,} characters; at most {most:,} are read.")
    return parse_strings(file.name, text) if file.suffix.lower() == ".json" else Strings(tuple(read_lines(text)))


def _free(name: str, taken: Container[str]) -> str:
    """A name of its own: files of several folders may be called the same."""
    return next(free for i in count(1) if (free := name if i == 1 else f"{name} ({i})") not in taken)
