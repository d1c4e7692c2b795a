"""JSON from elsewhere: counted before it is parsed, and finite."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpexplore.json_text import JsonLimits, JsonRefused, check_json, read_json

PLENTY = JsonLimits(10**9, 10**9)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


def depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(VALUES)
def test_what_json_writes_is_read_and_its_depth_is_counted_exactly(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False).encode()):
        assert read_json(text, PLENTY) == value
        check_json(text, JsonLimits(10**9, depth(value)))
        if depth(value):
            with pytest.raises(JsonRefused, match="deep"):
                check_json(text, JsonLimits(10**9, depth(value) - 1))


@given(st.text(st.sampled_from('[]{},:"\\1a ')) | st.binary())
def test_any_text_is_a_value_or_a_sentence(text: str | bytes) -> None:
    for most in (PLENTY, JsonLimits(3, 2)):
        with suppress(JsonRefused):  # and nothing else
            read_json(text, most)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 10**6, "values"),
        ("[" * 1000, "deep"),
        ('{"a":' * 1000, "deep"),
        ("[" + "1," * 2000 + "1]", "values"),
        ("[NaN]", "NaN"),
        ("-Infinity", "Infinity"),
        ("[1e999]", "beyond"),
        ("[" + "9" * 5000 + "]", "too long"),
        (b"\xff", "UTF-8"),
        ("", "Expecting value"),
    ],
)
def test_what_is_refused_is_said(text: str | bytes, told: str) -> None:
    with pytest.raises(JsonRefused, match=told):
        read_json(text, JsonLimits(2000))


@pytest.mark.parametrize("part", ['"\\"', '"\\', "[", '"', "\\", '"a",'])
def test_counting_keeps_no_part_of_the_text(part: str) -> None:
    text = part * 100_000
    tracemalloc.start()
    try:
        check_json(text, PLENTY)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
