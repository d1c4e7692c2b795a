"""Links that restore a setup: whatever comes in by an address is checked, and what was sent comes back."""

from __future__ import annotations

import base64
import json
import random
import zlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpexplore.errors import InputError
from dpexplore.serving.share import MOST_CHARACTERS, VERSION, Setup, decode_setup, encode_setup
from dpexplore.tuning import TuneConfig

RECIPES = [
    "entropy(bits=7, seed=0)",
    'capture("I love").shuffle(seed=1)',
    'tokens({" yes": 0.7, " no": 0.3})',
    'capture("“ü” & <b> \\"quoted\\" 中文", model="gpt2")',
]
CONFIGS = st.builds(
    TuneConfig,
    method=st.sampled_from(("soft", "hard")),
    length=st.integers(1, 50),
    restarts=st.integers(1, 100),
    steps=st.integers(1, 10_000),
    seed=st.integers(0, 2**40),
    patience=st.none() | st.integers(1, 100),
    objective=st.sampled_from(("kl", "js")),
    forbid=st.lists(st.text(max_size=5) | st.integers(0, 100), max_size=4).map(tuple),
)


def packed(content: Any) -> str:
    """A link's text around any content."""
    data = zlib.compress(json.dumps(content).encode(), wbits=-15)
    return VERSION + base64.urlsafe_b64encode(data).decode().rstrip("=")


def answer(text: str) -> str:
    """What a link's text leads to: a setup, or the sentence that refuses it."""
    try:
        return repr(decode_setup(text))
    except InputError as error:
        return str(error)


@given(st.sampled_from(RECIPES), CONFIGS, st.text("abc/-.: ", min_size=1).filter(str.strip))
def test_a_link_gives_back_what_went_in(recipe: str, config: TuneConfig, model: str) -> None:
    text = encode_setup(Setup(model, recipe, config))
    assert decode_setup(text) == Setup(model.strip(), recipe, config)
    assert text.replace("-", "").replace("_", "").isalnum()  # needs no escaping in an address


def test_a_usual_link_is_short() -> None:
    text = encode_setup(Setup("smollm2-135m-instruct", RECIPES[0], TuneConfig.preset("fast", method="hard")))
    assert len(text) < 250


@given(st.text(max_size=300))
@example("")
@example(VERSION)
@example("0abc")
@example(VERSION + "A" * 9000)
def test_any_text_is_a_setup_or_a_sentence(text: str) -> None:
    assert answer(text).startswith(("This link", "Setup("))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_content_is_a_setup_or_a_sentence(content: Any) -> None:
    for wrapped in (content, ["m", "entropy(bits=2)", content], [content, content, content]):
        assert answer(packed(wrapped)).startswith(("This link", "Setup("))


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_link_that_was_cut_off_says_so(cut: int) -> None:
    text = encode_setup(Setup("m", RECIPES[1], TuneConfig(seed=3, length=7)))
    with pytest.raises(InputError, match="damaged"):
        decode_setup(text[:-cut])


def test_a_small_link_cannot_become_a_large_one() -> None:
    data = zlib.compress(b" " * 4_000_000, 9, wbits=-15)
    short = VERSION + base64.urlsafe_b64encode(data).decode().rstrip("=")
    assert len(short) < MOST_CHARACTERS
    with pytest.raises(InputError, match="damaged"):
        decode_setup(short)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (["m", "entropy(bits=2)", {"restarts": 0}], "`restarts` is 0"),
        (["m", "entropy(bits=2)", {"colour": 1}], "unknown field"),
        (["m", "entropy(bit=2)", {}], "takes no `bit`"),
        (["", "entropy(bits=2)", {}], "names no model"),
        (["m" * 301, "entropy(bits=2)", {}], "names no model"),
        (["m", "entropy(bits=2)"], "damaged"),
        ({"m": 1}, "damaged"),
    ],
)
def test_a_link_that_asks_for_the_impossible_says_what(content: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        decode_setup(packed(content))


def test_what_does_not_travel_is_said() -> None:
    for recipe in (
        'file("/tmp/x.npz")',
        'file("/tmp/x.npz").mix(entropy(bits=2), 0.5)',
        'entropy(bits=2).mix(file("x.csv"), 0.5)',
    ):
        with pytest.raises(InputError, match="cannot hold the target's file"):
            encode_setup(Setup("m", recipe, TuneConfig()))
    noise = base64.b64encode(random.Random(0).randbytes(30_000)).decode()
    with pytest.raises(InputError, match="addresses hold"):
        encode_setup(Setup("m", f'capture("{noise}")', TuneConfig()))
