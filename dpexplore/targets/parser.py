"""Recipe text to recipe: Python's `ast` walked against the list of known names; nothing is evaluated.

The text is first cut into a small set of tokens, and its length, nesting and string escapes are
checked there, so that Python's parser only ever sees short, shallow, well-formed pieces.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from collections.abc import Callable
from typing import Any, NoReturn

from dpexplore.checks import check_text
from dpexplore.errors import InputError
from dpexplore.targets.recipe import MAX_PARTS, Recipe
from dpexplore.targets.sources import capture, entropy, file, order, pos, random_prompt, tokens
from dpexplore.targets.strings import strings

MAX_CHARACTERS = 50_000
MAX_DEPTH = 30  # brackets within brackets; deeper than any recipe of MAX_PARTS parts needs to be

CONSTRUCTORS: dict[str, Callable[..., Recipe]] = {
    "entropy": entropy,
    "capture": capture,
    "random_prompt": random_prompt,
    "pos": pos,
    "tokens": tokens,
    "order": order,
    "file": file,
    "strings": strings,
}
TRANSFORMS: dict[str, Callable[..., Recipe]] = {
    "shuffle": Recipe.shuffle,
    "matched": Recipe.matched,
    "temperature": Recipe.temperature,
    "top_k": Recipe.top_k,
    "mix": Recipe.mix,
}

_ESCAPE = r"\\(?:[\\'\"abfnrtv]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})"
_TOKEN = re.compile(
    rf"""
      (?P<space>\s+)
    | (?P<string>"(?:[^"\\\r\n]|{_ESCAPE})*" | '(?:[^'\\\r\n]|{_ESCAPE})*')
    | (?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))
    | (?P<name>[A-Za-z_][A-Za-z_0-9]*(?!["']))
    | (?P<open>[(\[{{])
    | (?P<close>[)\]}}])
    | (?P<mark>[,:=.-])
    """,
    re.VERBOSE,
)


def parse_recipe(text: str) -> Recipe:
    """The recipe that `text` writes, such as `capture("I love").shuffle(seed=1)`.

    `str(parse_recipe(text))` is the canonical text, and `parse_recipe(str(recipe)) == recipe`.
    InputError names the place (column, from 1) and the offending word; no text raises anything else.
    """
    if not isinstance(text, str):
        raise InputError('A recipe is a text, as in `entropy(bits=7, seed=0)` or `capture("I love")`.')
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"The recipe has {len(text):,} characters; use at most {MAX_CHARACTERS:,}.")
    check_text("recipe", text)
    line = _one_line(text)
    if not line.strip():
        raise InputError('The recipe is empty; try `entropy(bits=7, seed=0)` or `capture("I love")`.')
    return _Walker(line).recipe(_syntax_tree(line))


def _one_line(text: str) -> str:
    """The text with every blank a space, so that columns stay and lines may be broken."""
    parts: list[str] = []
    at = depth = names = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            _fail(_unreadable(text, at), at)
        if match.lastgroup == "open":
            depth += 1
            if depth > MAX_DEPTH:
                _fail(f"Brackets are nested more than {MAX_DEPTH} deep", at)
        elif match.lastgroup == "close":
            depth -= 1
        elif match.lastgroup == "mark" and match[0] == ".":
            names += 1
            if names > 2 * MAX_PARTS:
                _fail(f"The recipe has more than {MAX_PARTS} parts", at)
        elif match.lastgroup == "mark" and match[0] == "-" and not _number_follows(text, match.end()):
            _fail("A minus sign stands where no number follows", at)
        parts.append(" " * len(match[0]) if match.lastgroup == "space" else match[0])
        at = match.end()
    return "".join(parts)


def _number_follows(text: str, at: int) -> bool:
    match = _TOKEN.match(text, at)
    return match is not None and match.lastgroup == "number"


def _unreadable(text: str, at: int) -> str:
    if text[at] in "\"'":
        rest = re.compile(rf"(?:[^{text[at]}\\\r\n]|{_ESCAPE})*").match(text, at + 1)
        end = rest.end() if rest else at + 1
        if text[end : end + 1] == "\\":
            return f"The text in quotes holds `{text[end : end + 2]}`, an unknown escape; a backslash is written `\\\\`"
        if end < len(text):
            return "The text in quotes runs over the end of the line; a line break is written `\\n`"
        return "The quotation mark is never closed"
    word = re.compile(r"[\w.]+|.", re.DOTALL).match(text, at)
    return f"`{word[0][:40] if word else text[at]}` cannot be read"


def _syntax_tree(line: str) -> ast.expr:
    stripped = len(line) - len(line.lstrip())
    try:
        return ast.parse(line[stripped:], mode="eval").body
    except SyntaxError as error:
        reason = str(error.msg).split(". Perhaps")[0]
        _fail(f"The recipe cannot be read ({reason})", stripped + max((error.offset or 1) - 1, 0))
    except (ValueError, RecursionError, MemoryError):
        _fail("The recipe cannot be read", 0)


def _fail(reason: str, at: int) -> NoReturn:
    raise InputError(f"{reason}, at column {at + 1} of the recipe.")


class _Walker:
    """Builds recipes from syntax trees of one line."""

    def __init__(self, line: str) -> None:
        self.indent = len(line) - len(line.lstrip())
        self.source = line[self.indent :].encode()

    def column(self, node: ast.expr | ast.keyword) -> int:
        """Characters before the node; `ast` counts bytes."""
        return self.indent + len(self.source[: node.col_offset].decode(errors="ignore"))

    def recipe(self, node: ast.expr) -> Recipe:
        """A constructor call with transforms called on it."""
        transforms: list[ast.Call] = []
        while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            transforms.append(node)
            node = node.func.value
        if isinstance(node, ast.Name) or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            name = node.id if isinstance(node, ast.Name) else node.func.id  # type: ignore[union-attr]
            self.check_name(name, CONSTRUCTORS, "recipe", self.column(node))
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            known = ", ".join(f"{name}(…)" for name in CONSTRUCTORS)
            _fail(f"A recipe begins with one of {known}; something else stands", self.column(node))
        made = self.call(node, node.func.id, CONSTRUCTORS[node.func.id], (), self.column(node))
        for call in reversed(transforms):
            assert isinstance(call.func, ast.Attribute)
            at = self.column(call.func) + self.dot_distance(call.func)
            self.check_name(call.func.attr, TRANSFORMS, "transform", at)
            made = self.call(call, call.func.attr, TRANSFORMS[call.func.attr], (made,), at)
        return made

    def dot_distance(self, node: ast.Attribute) -> int:
        """Characters from a chain's beginning to the name after its last dot."""
        span = self.source[node.col_offset : node.end_col_offset].decode(errors="ignore")
        return len(span) - len(node.attr)

    def check_name(self, name: str, known: dict[str, Callable[..., Recipe]], kind: str, at: int) -> None:
        if name not in known:
            near = difflib.get_close_matches(name[:40], known, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}"
            _fail(f"`{name[:40]}` is no {kind} ({hint})", at)

    def call(
        self, node: ast.Call, name: str, make: Callable[..., Recipe], bound: tuple[Recipe, ...], at: int
    ) -> Recipe:
        """`make(*bound, <the call's arguments>)`."""
        signature = inspect.signature(make)
        spelled = [parameter for parameter in signature.parameters if parameter != "self"]
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None or keyword.arg not in spelled:
                _fail(f"`{name}` takes no `{keyword.arg}`; it takes {', '.join(spelled)}", self.column(keyword))
            if keyword.arg in named:
                _fail(f"`{keyword.arg}` is given twice", self.column(keyword))
            named[keyword.arg] = self.value(keyword.value)
        try:
            arguments = signature.bind(*bound, *map(self.value, node.args), **named)
        except TypeError as error:
            _fail(f"`{name}` takes {', '.join(spelled)} ({error})", at)
        try:
            return make(*arguments.args, **arguments.kwargs)
        except InputError as error:
            raise InputError(f"{str(error).rstrip('.')}, in `{name}` at column {at + 1} of the recipe.") from None

    def value(self, node: ast.expr) -> Any:
        """A literal, a list or table of literals, or a recipe."""
        match node:
            case ast.Constant(value=None | bool() | int() | float() | str() as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if not isinstance(
                value, bool
            ):
                return -value
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return [self.value(element) for element in elements]
            case ast.Dict(keys=keys, values=values):
                return self.table(keys, values)
            case ast.Call() | ast.Name():
                return self.recipe(node)
        _fail(
            "Only texts in quotes, numbers, True, False, None, lists, tables and recipes can stand here",
            self.column(node),
        )

    def table(self, keys: list[ast.expr | None], values: list[ast.expr]) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        for key_node, value_node in zip(keys, values, strict=True):
            if not isinstance(key_node, ast.Constant):
                _fail("A table's keys are texts in quotes or token ids", self.column(key_node or value_node))
            key = self.value(key_node)
            if key in made:
                _fail(f"`{str(key)[:40]}` is given twice", self.column(key_node))
            made[key] = self.value(value_node)
        return made
