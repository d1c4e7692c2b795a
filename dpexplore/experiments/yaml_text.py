"""YAML as it is written: plain scalars stay text until somebody wants a number, and a key given twice is refused.

YAML 1.1, which PyYAML reads, turns `no` into False, `012` into 10, `12:30` into 750 and `1e-2` into text. Here a
document is read as texts, lists and tables; `scalar` gives a plain text's value by the core schema of YAML 1.2.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from dpexplore.checks import check_text
from dpexplore.errors import InputError

MAX_CHARACTERS = 2**20
MAX_NODES = 100_000
"""Tables, lists and texts of a document, those that an alias repeats counted each time."""
_INTEGER = re.compile(r"[-+]?[0-9]+")
_PREFIXED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?)\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS = {"null": None, "Null": None, "NULL": None, "~": None, "": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


class Plain(str):
    """A scalar written without quotes: its text, which may mean a number, a truth value or nothing."""


def read_yaml(name: str, text: str) -> Any:
    """The document as tables (`dict`), lists, `Plain` for unquoted and `str` for quoted scalars.

    `name` is what errors call it. InputError with the line for broken YAML and for a key given twice.
    """
    check_text(name, text)
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{name} has {len(text):,} characters; a spec has at most {MAX_CHARACTERS:,}.")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if node is None else _Reader(name).value(node)
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{name} cannot be read as YAML{place}: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{name} cannot be read as YAML: {' '.join(str(error).split())[:200]}.") from None
    except RecursionError:
        raise InputError(f"{name} is nested too deeply.") from None


def scalar(value: Any) -> Any:
    """What a plain scalar means in YAML 1.2 (None, bool, int, float or its text); anything else as it is."""
    if not isinstance(value, Plain):
        return value
    if value in _WORDS:
        return _WORDS[value]
    if len(value) <= 400:
        if _INTEGER.fullmatch(value):
            return int(value)
        if _PREFIXED.fullmatch(value):
            return int(value, 0)
        if _FLOAT.fullmatch(value):
            return float(value)
        if match := _SPECIAL.fullmatch(value):
            return float(f"{match[1] or ''}{value.lstrip('+-')[1:4]}")
    return str(value)


class _Reader:
    """One document, read with the number of its nodes in mind: aliases can make a small text very large."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes = 0

    def value(self, node: yaml.Node) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise InputError(f"{self.name} has more than {MAX_NODES:,} values.")
        if isinstance(node, yaml.ScalarNode):
            return Plain(node.value) if node.style is None else node.value
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item) for item in node.value]
        assert isinstance(node, yaml.MappingNode)
        table: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"{self.name} has a key that is not text in line {line}; write a name.")
            if key.value in table:
                both = f"lines {lines[key.value]} and {line}"
                raise InputError(f"{self.name} has the key {key.value!r} twice, in {both}; leave one out.")
            lines[key.value] = line
            table[key.value] = self.value(item)
        return self.merged(table) if "<<" in table else table

    def merged(self, table: dict[str, Any]) -> dict[str, Any]:
        """A table with what `<<` takes over from others (not in YAML 1.2, but people use it); its own keys win."""
        others = table.pop("<<")
        for other in others if isinstance(others, list) else [others]:
            if not isinstance(other, dict):
                raise InputError(f"{self.name} takes `<<` over from {str(other)[:40]!r}, which is not a table.")
            table = {**other, **table}
        return table
