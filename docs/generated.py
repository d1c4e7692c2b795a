"""mkdocs hook: writes what is generated from the code into the pages that ask for it by a comment."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

from typer.cli import get_docs_for_click
from typer.main import get_command

from dpexplore.cli import cli
from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.knobs import KNOBS, Knob

API = Path(__file__).parents[1] / "dpexplore" / "ui" / "api.py"


def on_page_markdown(markdown: str, **_others: Any) -> str:
    generated = {
        "<!-- command line -->": command_line,
        "<!-- settings -->": settings,
        "<!-- endpoints -->": endpoints,
    }
    for mark, generate in generated.items():
        if mark in markdown:
            markdown = markdown.replace(mark, generate())
    return markdown


def command_line() -> str:
    """Every command with its options, from typer."""
    command: Any = get_command(cli)
    context = command.context_class(command, info_name="dpexplore")
    return get_docs_for_click(obj=command, ctx=context, name="dpexplore", title="Commands").replace("# Commands", "", 1)


def settings() -> str:
    """The settings of a run as a table."""
    rows = [f"| `{knob.name}` | {knob.text.replace('|', chr(92) + '|')} | {_values(knob)} |" for knob in KNOBS.values()]
    return "\n".join(
        ["| setting | what it does | values | paper |", "|---|---|---|---|", *map(_with_papers, rows, KNOBS)]
    )


def _values(knob: Knob) -> str:
    if knob.choices:
        return ", ".join(f"`{choice}`" for choice in knob.choices)
    return f"{knob.low:,} to {knob.high:,}" if knob.low is not None and knob.high is not None else ""


def _with_papers(row: str, name: str) -> str:
    value = getattr(TuneConfig(), name)
    return f"{row} {'' if value is None or value == () else value} |"


def endpoints() -> str:
    """The named endpoints with their arguments, read from the source: Gradio takes seconds to import."""
    tree = ast.parse(API.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "api"]
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    parts = []
    for call in calls:
        name = next(ast.literal_eval(word.value) for word in call.keywords if word.arg == "api_name")
        function = functions[ast.unparse(call.args[0])]
        arguments = function.args.args
        defaults = [None] * (len(arguments) - len(function.args.defaults)) + function.args.defaults
        text, _, listed = inspect.cleandoc(ast.get_docstring(function) or "").partition("Args:")
        meanings = dict(re.findall(r"^ +(\w+): (.*)$", listed, re.M))
        rows = [
            f"| `{argument.arg}` | {meanings[argument.arg]} | {ast.unparse(default) if default else 'required'} |"
            for argument, default in zip(arguments, defaults, strict=True)
            if argument.arg != "request"
        ]
        table = ["| argument | | default |", "|---|---|---|", *rows, ""] if rows else []
        parts += [f"### /{name}", "", text.strip(), "", *table]
    return "\n".join(parts)
