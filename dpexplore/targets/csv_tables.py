"""Tables of token and number as spreadsheets and programs write them: separators, decimal commas, headers, encodings.

What is unambiguous is read; anything else is refused in one sentence that names the cure.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from dataclasses import dataclass

from dpexplore.errors import InputError
from dpexplore.targets.listed import Kind, Listed, Token
from dpexplore.wanted import while_asking

SEPARATORS = (";", "\t", "|", ",")  # in order of trust: a decimal comma may make commas look like separators
ID_NAMES = frozenset({"id", "ids", "token_id", "token_ids", "tokenid", "token id"})
TEXT_NAMES = frozenset({"text", "token_text", "token text", "token_str", "word", "string", "piece", "decoded_token"})
TOKEN_NAMES = frozenset({"token", "tokens"})
PROBABILITY_NAMES = frozenset({"p", "prob", "probs", "probability", "probabilities", "p(x)", "likelihood", "softmax"})
WEIGHT_NAMES = frozenset({"weight", "weights", "share", "frequency", "freq", "count", "counts", "percent", "%"})
LOGPROB_NAMES = frozenset(
    {"logprob", "logprobs", "log_prob", "log_probs", "log prob", "log-probability", "log_probability"}
    | {"log probability", "logp", "log_p", "log p"}
)
LOGIT_NAMES = frozenset({"logit", "logits"})
NUMBER_NAMES = (PROBABILITY_NAMES, WEIGHT_NAMES, LOGPROB_NAMES, LOGIT_NAMES)
"""In the order in which one of several columns of numbers is taken."""
_ALL_NUMBERS = frozenset().union(*NUMBER_NAMES)
TOTAL_NAMES = frozenset({"total", "sum", "grand total", "gesamt", "summe", "gesamtergebnis", "somme", "suma"})
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|nan|[+-]?inf(?:inity)?", re.IGNORECASE)
_PLAIN = re.compile(r"\d+(?:\.\d+)?")
_COMMA_NUMBER = re.compile(r"[+-]?\d*,\d+(?:e[+-]?\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+")
_POINTED = re.compile(r"[1-9]\d{0,2}\.\d{3}")
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(['\u2019 \u2009\u202f])\d{3}(?:\1\d{3})*(?:[.,]\d+)?")
"""Thousands set apart by what is not a decimal sign: apostrophes, spaces of any width."""
_WHOLE = re.compile(r"\d+(?:\.0*)?")
_SHOWN = 40
MOST_CELLS = 2_000_000
"""Four columns of the longest tables; a line of many cells keeps everybody waiting while it is taken apart."""
MOST_LINES = 300_000
"""The largest vocabularies have 262,144 tokens; a line takes several microseconds and 600 bytes."""

Row = tuple[int, list[str]]
"""A line's number, from 1, and its cells."""


@dataclass(frozen=True)
class _Columns:
    token: int
    value: int
    names: bool
    """Whether the first row is a header."""
    token_name: str = ""
    kind: Kind | None = None
    text: int | None = None
    """Column of the tokens' texts beside that of their ids."""


class _Unreadable(Exception):
    """A table that cannot be read with a separator; its text says why."""


def read_table(name: str, data: bytes) -> Listed:
    """The tokens and numbers of a CSV file. InputError for what is not a table or reads in two ways."""
    text = decoded(name, data)
    if (lines := max(text.count("\n"), text.count("\r"))) > MOST_LINES:
        raise InputError(f"{name!r} has {lines:,} lines; use at most {MOST_LINES:,}, one for each token.")
    if (cells := lines + max(text.count(each) for each in SEPARATORS)) > MOST_CELLS:
        raise InputError(
            f"{name!r} has {cells:,} cells; use at most {MOST_CELLS:,}, a token and its number for each line."
        )
    separators = tuple(each for each in SEPARATORS if each in text) or SEPARATORS[-1:]
    first, _, behind = text.partition("\n")
    if (marked := re.fullmatch(r"sep=(.)\r?", first)) is not None:  # Excel's own line
        separators, text = (marked[1],), behind
    reasons: dict[str, str] = {}
    for separator in separators:
        try:
            return _table(_rows(text, separator), separator)
        except _Unreadable as reason:
            reasons[separator] = str(reason)
    raise InputError(f"{name!r} is no CSV file that can be read: {_reason(reasons, text)}.")


def decoded(name: str, data: bytes) -> str:
    """A file's text in UTF-8, or in UTF-16 with its mark as spreadsheets write it. InputError for other encodings."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
        text.encode()  # UTF-16 can hold half characters
        if 3 * text.count("\0") > len(text):  # UTF-16 without its mark, UTF-32
            raise UnicodeError
    except UnicodeError:
        raise InputError(f"{name!r} is not UTF-8 text; save it as UTF-8 (Excel: “CSV UTF-8”).") from None
    return text


def _reason(reasons: dict[str, str], text: str) -> str:
    """Of the separators that were tried, the reason of the one that the text is written with."""
    likeliest = max(reasons, key=lambda separator: (text.count(separator), separator == ","))
    return reasons[likeliest]


def _rows(text: str, separator: str) -> list[Row]:
    """Rows with something in them, without columns that are empty throughout at the right."""
    try:
        rows = _split(text, separator, csv.QUOTE_MINIMAL)
    except csv.Error as error:
        rows = _split_unquoted(text, separator, error)
    rows = [(line, cells) for line, cells in rows if any(cell.strip() for cell in cells)]
    width = max(
        (max((i + 1 for i, cell in enumerate(cells) if cell.strip()), default=0) for _, cells in rows), default=0
    )
    return rows if all(len(cells) <= width for _, cells in rows) else [(line, cells[:width]) for line, cells in rows]


def _split(text: str, separator: str, quoting: int) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, quoting=quoting)  # type: ignore[arg-type]
    return [(reader.line_num, cells) for cells in while_asking(reader)]


def _split_unquoted(text: str, separator: str, error: csv.Error) -> list[Row]:
    """Rows in which a quotation mark alone is a token, written as it is; any other open quotation is refused."""
    try:
        rows = _split(text, separator, csv.QUOTE_NONE)
    except csv.Error:
        raise _Unreadable(str(error)) from None
    if any(cell.startswith('"') and cell != '"' for _, cells in rows for cell in cells):
        raise _Unreadable(f'{error}; a quotation mark is written twice within quotes, as in """",0.5') from None
    return rows


def _table(rows: list[Row], separator: str) -> Listed:
    if not rows:
        return Listed([])
    columns = _columns(rows, separator)
    body = rows[1:] if columns.names else rows
    _no_total(body, columns)
    width = len(rows[0][1])
    for line, cells in body:
        if len(cells) != width:
            raise _Unreadable(_width_sentence(line, cells, width, separator))
        if not cells[columns.token]:
            raise _Unreadable(f"line {line} has a number and no token")
    values = _numbers([(line, cells[columns.value]) for line, cells in body])
    texts = [cells[columns.token] for _, cells in body]
    whole = bool(texts) and all(_WHOLE.fullmatch(text.strip()) for text in texts)
    tokens: list[Token] = list(texts)
    if columns.token_name in ID_NAMES:
        tokens = [_token_id(line, cells[columns.token]) for line, cells in body]
    ambiguous = whole and columns.token_name not in ID_NAMES | TEXT_NAMES
    if ambiguous:
        tokens = [str(int(float(text))) if "." in text else text for text in texts]
    shown = None if columns.text is None else [cells[columns.text] for _, cells in body]
    return Listed(list(zip(tokens, values, strict=True)), columns.kind, ambiguous, shown=shown)


def _no_total(body: list[Row], columns: _Columns) -> None:
    """A spreadsheet's last line may add up the others; as a token it would take half of the probability."""
    line, last = body[-1] if len(body) > 2 else (0, [])
    if last and last[columns.token].strip().rstrip(":").casefold() in TOTAL_NAMES:
        raise _Unreadable(
            f"line {line}, {last[columns.token][:_SHOWN]!r}, looks like the sum of the lines above; delete it, or "
            "put it first if it is a token"
        )


def _width_sentence(line: int, cells: list[str], width: int, separator: str) -> str:
    """Why a row does not fit; a decimal comma between comma-separated columns is the usual reason."""
    said = f"line {line} has {len(cells)} columns, the first line {width}"
    if separator == "," and len(cells) == width + 1 and all(cell.strip().isdigit() for cell in cells[-2:]):
        cell = f"{cells[-2]},{cells[-1]}"
        return f"{said}; a decimal comma needs quotes around the number, as in \"{cell}\", or ';' between the columns"
    return f"{said}; a token and its probability are two, and a token that holds the separator is put in quotes"


def _columns(rows: list[Row], separator: str) -> _Columns:
    line, first = rows[0]
    if len(first) < 2:
        raise _Unreadable(
            f"line {line} has 1 column; a token and its probability are two, separated by , or ; or a tab"
        )
    names = [cell.strip().casefold() for cell in first]
    known = any(name in ID_NAMES | TEXT_NAMES | TOKEN_NAMES | _ALL_NUMBERS for name in names)
    if _is_number(first[-1]) and (len(first) == 2 or not known):  # a token may be called as a column is
        if len(first) != 2:
            raise _Unreadable(
                f"line {line} has {len(first)} columns and no header; a token and its probability are two, or name "
                "the columns `token` and `p` in a first line"
            )
        return _Columns(0, 1, names=False)
    if not known and (len(rows) == 1 or any(character.isdigit() for character in first[-1])):
        raise _Unreadable(f"line {line} has {first[-1][:_SHOWN]!r} where a probability should be")  # no header either
    return _named_columns(rows, names)


def _named_columns(rows: list[Row], names: list[str]) -> _Columns:
    """Which columns a header names; an index that a program has put in front is left out."""
    columns = [i for i in range(len(names)) if not (names[i] in ("", "unnamed: 0", "index") and _is_index(rows, i))]
    by_kind = [next((i for i in columns if names[i] in group), None) for group in (ID_NAMES, TEXT_NAMES, TOKEN_NAMES)]
    token = next((i for i in by_kind if i is not None), None)
    value, *others = next(filter(None, ([i for i in columns if names[i] in group] for group in NUMBER_NAMES)), [None])
    if others:
        both = f"{names[value]!r} and {names[others[0]]!r}"  # type: ignore[index]
        raise _Unreadable(f"it has two columns of numbers, {both}; keep the one that is meant")
    if len(columns) == 2:  # the other of two columns needs no name that is known
        token = token if token is not None else next(i for i in columns if i != value)
        value = value if value is not None else next(i for i in columns if i != token)
    if token is None or value is None:
        raise _Unreadable(
            f"its columns are {', '.join(repr(name[:_SHOWN]) for name in names[:8])}; call the tokens' `token` (or "
            "`id`) and the numbers' `p`"
        )
    kind: Kind | None = (
        "logprobs" if names[value] in LOGPROB_NAMES else "logits" if names[value] in LOGIT_NAMES else None
    )
    text = next((i for i in by_kind[1:] if i is not None), None) if token == by_kind[0] else None
    return _Columns(token, value, True, names[token], kind, text)


def _is_index(rows: list[Row], column: int) -> bool:
    return all(len(cells) > column and cells[column] == str(i) for i, (_, cells) in enumerate(rows[1:]))


def _plain(cell: str) -> str:
    """A number's cell as digits and one decimal sign, without what surrounds it or sets thousands apart."""
    plain = cell.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-").strip().removesuffix("%").strip()
    grouped = _GROUPED.fullmatch(plain)
    return plain.replace(grouped[1], "") if grouped else plain


def _is_number(cell: str) -> bool:
    plain = _plain(cell)
    return bool(_NUMBER.fullmatch(plain) or _COMMA_NUMBER.fullmatch(plain))


def _numbers(cells: list[tuple[int, str]]) -> list[float]:
    """A column of numbers, read one way throughout: decimal point or comma, percent or not."""
    percent = [cell.strip().endswith("%") for _, cell in cells]
    commas = [(line, _plain(cell)) for line, cell in cells if "," in cell]
    points = any("." in cell for _, cell in cells)
    if any(percent) and not all(percent):
        line = cells[percent.index(not percent[0])][0]
        raise _Unreadable(f"line {line} mixes percentages with other numbers; write all of them one way")
    if commas and (points or all(_THOUSANDS.fullmatch(cell) for _, cell in commas)):
        raise _Unreadable(f"line {commas[0][0]} has the number {commas[0][1]!r}; write it without commas for thousands")
    pointed = [(line, cell) for line, cell in cells if "." in cell]
    whole = any(_WHOLE.fullmatch(_plain(cell)) and _plain(cell).strip("0") for _, cell in cells if "." not in cell)
    if whole and pointed and not any(percent) and all(_POINTED.fullmatch(_plain(cell)) for _, cell in pointed):
        line, cell = pointed[0]
        raise _Unreadable(
            f"line {line} has the number {cell!r} among whole numbers, which may be {cell.replace('.', '')} or "
            f"{cell.rstrip('0').rstrip('.')}; write it without points for thousands, or with other decimals"
        )
    scale = 0.01 if any(percent) else 1.0
    return [scale * _number(line, cell) for line, cell in cells]


def _number(line: int, cell: str) -> float:
    if _PLAIN.fullmatch(cell):  # most of a long table
        return float(cell)
    if not _is_number(cell):
        raise _Unreadable(f"line {line} has {cell[:_SHOWN]!r} where a probability should be")
    return float(_plain(cell).replace(",", "."))


def _token_id(line: int, cell: str) -> int:
    if not _WHOLE.fullmatch(cell.strip()) or len(cell) > _SHOWN:
        raise _Unreadable(f"line {line} has {cell[:_SHOWN]!r} where a token id should be")
    return int(cell.strip().partition(".")[0])
