"""Tables of token and number in JSON, and the likeliest next tokens as model servers answer them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from dpexplore import json_text
from dpexplore.checks import check_text
from dpexplore.errors import InputError
from dpexplore.targets.listed import Kind, Listed, Token

_EXAMPLE = '`[{"token": " the", "p": 0.6}, …]` or `{" the": 0.6, …}`'
_VALUES: dict[str, Kind | None] = {
    "p": None,
    "prob": None,
    "probability": None,
    "score": None,
    "weight": None,
    "count": None,
    "logprob": "logprobs",
    "log_prob": "logprobs",
    "logProbability": "logprobs",
    "logit": "logits",
}
_IDS = ("id", "token_id", "tokenId")
_TEXTS = ("token", "text", "tok_str", "token_str", "decoded_token")
_LISTS = {"token": ("tokens", *_TEXTS), "id": ("ids", "token_ids", *_IDS)}
_NUMBERS = {"p": ("probs", "probabilities"), "logprob": ("logprobs", "log_probs"), "logit": ("logits",)}
_ANSWERS = ("choices", "generated_text", "completion_probabilities", "candidates", "response", "details", "meta_info")
"""Fields by which a server's answer is known, whether it tells the likeliest tokens or not."""
_BYTES = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")  # OpenAI's completions write broken UTF-8 so
_BY_ID = re.compile(r"token_id:(\d+)")  # vLLM's --return-tokens-as-token-ids
MOST_JSON = json_text.JsonLimits(items=2_000_000)
"""A table of 256,000 tokens, an object each, has half as many values."""
MAX_DEPTH = 12  # of an answer within which the likeliest tokens are looked for


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as the pairs it was written in: a token given twice must be seen."""

    def get(self, key: str, default: Any = None) -> Any:
        return next((value for name, value in self if name == key), default)

    def has(self, *keys: str) -> bool:
        return any(name in keys for name, _ in self)


def read_json(name: str, text: str) -> Listed:
    """Tokens and numbers of a JSON file. InputError in one sentence for what holds none.

    An object `{token: p}`, a list of such pairs, a list of objects with `token` (or `id`) and `p`, `logprob` or
    `logit`, or an object with a list of each; a list of one number for each id; or the answer of a server with the
    likeliest tokens, of which the first position counts.
    """
    try:
        parsed = json_text.read_json(text, MOST_JSON, pairs=_Pairs, finite=False)  # servers write -Infinity
    except json_text.JsonRefused as refused:
        raise InputError(f"{name!r} is no JSON file that can be read ({refused.reason}).") from None
    if (dump := _dump(name, parsed)) is not None:
        return dump
    if isinstance(parsed, _Pairs):
        columns = _of_columns(name, parsed)
        if columns is None:
            return _object(name, parsed)
        parsed = columns
    if not isinstance(parsed, list):
        raise InputError(f"{name!r} holds no tokens; write {_EXAMPLE}.")
    if len(parsed) > 1 and all(_is_number(value) for value in parsed):
        return Listed([(i, _number(name, "The list", value)) for i, value in enumerate(parsed)], whole=True)
    kinds: set[Kind | None] = set()
    entries: list[tuple[Token, float]] = []
    for index, entry in enumerate(parsed, start=1):
        token, value, kind = _entry(name, f"Entry {index}", entry)
        entries.append((token, value))
        kinds.add(kind)
    if len(kinds) > 1:
        raise InputError(f"{name!r} mixes probabilities with log-probabilities or logits; write all of them one way.")
    ambiguous = all(str(token).isdecimal() for token, _ in entries) and not any(map(_names_kind, parsed))
    if ambiguous:
        entries = [(str(token), value) for token, value in entries]
    shown = [_text_beside(entry) for entry in parsed]
    return Listed(entries, kinds.pop() if kinds else None, bool(entries) and ambiguous, shown=shown)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _names_kind(entry: Any) -> bool:
    """Whether an entry of a list says that its token is an id, or that it is a text."""
    return isinstance(entry, _Pairs) and any(name in (*_IDS, *_TEXTS[1:]) for name, _ in entry)


def _text_beside(entry: Any) -> str:
    """The text that an entry gives beside an id, empty for none."""
    texts = (value for name, value in entry if name in _TEXTS) if isinstance(entry, _Pairs) else ()
    return next((value for value in texts if isinstance(value, str)), "")


def _of_columns(name: str, pairs: _Pairs) -> list[_Pairs] | None:
    """Entries of an object that holds a list, or an object by row, of tokens and one of numbers; None for another."""
    columns: dict[str, list[Any]] = {}
    for field, value in pairs:
        if isinstance(value, list):
            columns[field] = [each for _, each in value] if isinstance(value, _Pairs) else value
    fields = {
        key: next((columns[each] for each in names if each in columns), None)
        for key, names in {**_LISTS, **{key: (key, *_NUMBERS.get(key, ())) for key in _VALUES}}.items()
    }
    found = {key: column for key, column in fields.items() if column is not None}
    if not set(found) & set(_LISTS) or not set(found) & set(_VALUES):
        return None
    if len({len(column) for column in found.values()}) > 1:
        lengths = " and ".join(f"{len(column):,}" for column in found.values())
        raise InputError(f"{name!r} has lists of {lengths} entries; each token takes one number.")
    return [_Pairs(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def _object(name: str, pairs: _Pairs) -> Listed:
    if any(isinstance(value, list) for _, value in pairs):
        if pairs.has(*_ANSWERS):
            raise InputError(
                f"{name!r} is a server's answer without its likeliest tokens; ask the server for them (`logprobs` with "
                "`top_logprobs`, `top_n_tokens` or `n_probs`, as it calls them)."
            )
        raise InputError(f"{name!r} is an object of other things than tokens and numbers; write {_EXAMPLE}.")
    entries: list[tuple[Token, float]] = [
        (check_text(f"token of {name}", token), _number(name, repr(token), value)) for token, value in pairs
    ]
    return Listed(entries, None, bool(entries) and all(token.isdecimal() for token, _ in pairs))


def _entry(name: str, place: str, entry: Any) -> tuple[Token, float, Kind | None]:
    """Token, number and what the number is, of one entry of a list."""
    if isinstance(entry, list) and not isinstance(entry, _Pairs) and len(entry) == 2 and isinstance(entry[0], str):
        return check_text(f"token of {name}", entry[0]), _number(name, place, entry[1]), None
    fields: dict[str, Any] = dict(entry) if isinstance(entry, _Pairs) else {}
    value = next((key for key in _VALUES if key in fields), None)
    by_id = next((key for key in _IDS if fields.get(key) is not None), None)
    if by_id is None and isinstance(fields.get("token"), int):  # fill-mask pipelines; by itself it may be digits
        by_id = "token"
    text = next((fields[key] for key in _TEXTS if isinstance(fields.get(key), str)), None)
    if value is None or (by_id is None and text is None):
        raise InputError(f'{place} of {name!r} has no token and p; write {{"token": " the", "p": 0.6}}.')
    # The id goes first: `target --json` writes both, and the text of a lone byte is no token's text.
    token: Token = _token_id(name, place, fields[by_id]) if by_id else check_text(f"token of {name}", text)
    return token, _number(name, place, fields[value]), _VALUES[value]


def _token_id(name: str, place: str, value: object) -> int:
    if (isinstance(value, int | float) and value is not True and float(value).is_integer()) or (
        isinstance(value, str) and value.isdecimal() and len(value) < 20
    ):
        return int(value)  # type: ignore[call-overload]
    raise InputError(f"{place} of {name!r} has {str(value)[:40]!r} where a token id should be.")


def _number(name: str, place: str, value: object) -> float:
    try:
        return float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else float("x")
    except (ValueError, OverflowError):
        raise InputError(f"{place} of {name!r} has {str(value)[:40]!r} where a probability should be.") from None


# What servers answer.


def _dump(name: str, parsed: Any) -> Listed | None:
    """The first position's likeliest tokens in a server's answer; None if it is none."""
    for server, alternatives in _positions(parsed, MAX_DEPTH):
        entries = [_alternative(name, each) for each in alternatives]
        kinds: set[Kind | None] = {kind for _, _, kind in entries}
        if entries and len(kinds) == 1:
            return Listed([(token, value) for token, value, _ in entries], kinds.pop(), False, server)
    return None


def _positions(node: Any, depth: int) -> Iterator[tuple[str, list[Any]]]:
    """Server and alternatives of each position, the first one first, wherever they stand in the answer."""
    if depth == 0 or not isinstance(node, list):
        return
    if not isinstance(node, _Pairs):
        for item in node:
            yield from _positions(item, depth - 1)
        return
    for key, server in (("top_logprobs", "OpenAI, llama.cpp or Ollama"), ("top_probs", "llama.cpp")):
        found = node.get(key)
        if isinstance(found, _Pairs):
            yield server, [_Pairs([("token", token), ("logprob", value)]) for token, value in found]
        elif isinstance(found, list) and found and isinstance(found[0], _Pairs) and found[0].has(*_TEXTS, *_IDS):
            yield server, found
        elif isinstance(found, list):  # one table for each position; the first token of a prompt has none
            tables = [table for table in found if isinstance(table, _Pairs) and table]
            if tables:
                yield "OpenAI or vLLM", [_Pairs([("token", t), ("logprob", v)]) for t, v in tables[0]]
    yield from _of_other_servers(node)
    for _, child in node:
        yield from _positions(child, depth - 1)


def _of_other_servers(node: _Pairs) -> Iterator[tuple[str, list[Any]]]:
    """Shapes that one server alone writes."""
    prompt = [table for table in node.get("prompt_logprobs") or [] if isinstance(table, _Pairs) and table]
    if prompt:  # the last one says what follows the prompt but for one token
        raise InputError(
            "vLLM's `prompt_logprobs` score the prompt's own tokens; ask for `logprobs` with max_tokens=1 instead."
        )
    tgi = node.get("top_tokens")
    if isinstance(tgi, list) and tgi:
        yield (
            "text-generation-inference",
            tgi[0] if isinstance(tgi[0], list) and not isinstance(tgi[0], _Pairs) else tgi,
        )
    if isinstance(node.get("probs"), list) and node.has("content", "token"):
        yield "llama.cpp", node.get("probs")
    sglang = node.get("output_top_logprobs")
    if isinstance(sglang, list) and sglang and isinstance(sglang[0], list):
        yield "SGLang", [_Pairs([("logprob", row[0]), ("id", row[1])]) for row in sglang[0] if len(row) >= 2]
    gemini = node.get("topCandidates")
    if isinstance(gemini, list) and gemini and isinstance(gemini[0], _Pairs):
        yield "Gemini", gemini[0].get("candidates") or []
    offline = node.get("logprobs")  # vLLM's own Logprob objects by token id
    if isinstance(offline, list) and offline and isinstance(offline[0], _Pairs):
        pairs = list(offline[0])
        if pairs and all(key.isdecimal() and isinstance(value, _Pairs) for key, value in pairs):
            yield "vLLM", [_Pairs([("id", key), ("logprob", value.get("logprob"))]) for key, value in pairs]


def _alternative(name: str, entry: Any) -> tuple[Token, float, Kind | None]:
    """One alternative; its bytes go before its text, which cannot write broken UTF-8."""
    fields: dict[str, Any] = dict(entry) if isinstance(entry, _Pairs) else {}
    if "prob" in fields and "tok_str" in fields:
        fields["p"] = fields["prob"]
    value = next((key for key in _VALUES if fields.get(key) is not None), None)
    if value is None:
        raise InputError(f"An alternative in {name!r} has no log-probability and no probability.")
    number, kind = _number(name, "An alternative", fields[value]), _VALUES[value]
    raw = fields.get("bytes")
    if isinstance(raw, list) and raw and all(isinstance(each, int) and 0 <= each < 256 for each in raw):
        return bytes(raw), number, kind
    text = next((fields[key] for key in _TEXTS if isinstance(fields.get(key), str)), None)
    if text is not None and (match := _BYTES.fullmatch(text)):
        return bytes(int(each, 16) for each in match[1].split("\\x")[1:]), number, kind
    if text is not None and (match := _BY_ID.fullmatch(text)):
        return int(match[1]), number, kind
    by_id = next((key for key in _IDS if fields.get(key) is not None), None)
    if text is None and by_id is None:
        raise InputError(f"An alternative in {name!r} names no token.")
    if text is None:
        return _token_id(name, "An alternative", fields[by_id]), number, kind  # type: ignore[index]
    return check_text(f"token of {name}", text), number, kind
