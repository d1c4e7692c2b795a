"""Tokens as bytes and text, over both families of tokenizers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel, load_model

TinyLm = Callable[[str], LanguageModel]

# Lone surrogates are no text: nothing can encode them.
# At most 4 bytes a character: short enough for the tiny models' positions.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=15)

BYTE_LEVEL = ["gpt2", "llama", "qwen3"]
SENTENCEPIECE = ["mistral", "gemma2", "phi3"]


def joined(lm: LanguageModel, ids: list[int]) -> bytes:
    return b"".join(lm.token_bytes(i) or b"" for i in ids)


@cache
def single_bytes(lm: LanguageModel) -> set[int]:
    """The bytes that are a token by themselves."""
    tokens = [lm.token_bytes(i) or b"" for i in lm.ordinary_ids.tolist()]
    return {token[0] for token in tokens if len(token) == 1}


@pytest.mark.parametrize("architecture", BYTE_LEVEL)
@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_byte_level_tokens_give_the_text_back(architecture: str, tiny_lm: TinyLm, text: str) -> None:
    lm = tiny_lm(architecture)
    ids = lm.encode(text, bos=False)
    assert joined(lm, ids) == text.encode()
    assert lm.decode(ids) == text


@pytest.mark.parametrize("architecture", SENTENCEPIECE)
@settings(max_examples=150, deadline=None)
@given(text=TEXT.filter(lambda text: "▁" not in text))
def test_sentencepiece_tokens_give_the_text_back(architecture: str, tiny_lm: TinyLm, text: str) -> None:
    lm = tiny_lm(architecture)
    ids = lm.encode(text, bos=False)
    assert joined(lm, ids) == b" " + text.encode()
    assert lm.decode(ids) == text


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_default_model_gives_the_text_back(default_lm: LanguageModel, data: st.DataObject) -> None:
    # SmolLM2's vocabulary lacks a few bytes that its training text did not hold, such as 0x06, and drops them.
    known = single_bytes(default_lm)
    text = data.draw(TEXT.filter(lambda text: known.issuperset(text.encode())))
    ids = default_lm.encode(text)
    assert joined(default_lm, ids) == text.encode()
    assert default_lm.decode(ids) == text


def test_control_tokens_and_padded_rows_are_no_text(tiny_lm: TinyLm) -> None:
    lm = tiny_lm("qwen2")
    tokens = len(lm.tokenizer)
    assert lm.vocab_size > tokens
    ordinary = lm.ordinary_ids.tolist()
    assert ordinary == sorted(set(ordinary))
    special = set(lm.tokenizer.all_special_ids)
    assert set(ordinary) == set(range(tokens)) - special
    for padded in range(tokens, lm.vocab_size):
        assert lm.token_bytes(padded) is None
        assert lm.token_text(padded) == f"<id {padded}>"
    for control in special:
        assert lm.token_bytes(control) is None
        assert lm.token_text(control) == lm.tokenizer.convert_ids_to_tokens(control)


@pytest.mark.parametrize("architecture", [*BYTE_LEVEL, *SENTENCEPIECE])
def test_every_byte_has_a_token_and_readable_text(architecture: str, tiny_lm: TinyLm) -> None:
    lm = tiny_lm(architecture)
    assert single_bytes(lm) == set(range(256))
    for i in range(lm.vocab_size):
        assert lm.token_text(i)
    (last,) = [i for i in lm.ordinary_ids.tolist() if lm.token_bytes(i) == b"\xff"]
    assert lm.token_text(last) == "\\xff"


@pytest.mark.parametrize(
    ("architecture", "bos"), [("llama", True), ("mistral", True), ("gpt2", False), ("phi3", False)]
)
def test_bos_is_what_the_tokenizer_itself_puts_in_front(architecture: str, bos: bool, tiny_lm: TinyLm) -> None:
    lm = tiny_lm(architecture)
    assert lm.bos_ids == ([lm.tokenizer.bos_token_id] if bos else [])
    assert lm.encode("the sea") == lm.tokenizer("the sea")["input_ids"]
    assert lm.encode("the sea") == lm.bos_ids + lm.encode("the sea", bos=False)


def test_added_text_is_ordinary_and_added_marks_are_not(tiny_folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Pythia adds runs of spaces, Qwen adds `<tool_call>`: neither is flagged special."""
    folder = shutil.copytree(tiny_folders("gpt_neox"), tmp_path / "added")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["   ", "<tool_call>"])
    tokenizer.save_pretrained(folder)
    lm = load_model(str(folder), device="cpu")
    spaces, mark = (lm.tokenizer.get_vocab()[token] for token in ("   ", "<tool_call>"))
    assert lm.token_bytes(spaces) == b"   "
    assert spaces in lm.ordinary_ids.tolist()
    assert lm.token_bytes(mark) is None
    assert mark not in lm.ordinary_ids.tolist()
    assert joined(lm, lm.encode("a    b")) == b"a    b"


def test_tokens_without_embedding_are_refused(tiny_folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folders("gpt2"), tmp_path / "outgrown")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<tool_call>"])
    tokenizer.save_pretrained(folder)
    lm = load_model(str(folder), device="cpu")
    assert len(lm.tokenizer) > lm.vocab_size
    assert lm.ordinary_ids.max() < lm.vocab_size
    with pytest.raises(InputError, match="no embedding"):
        lm.encode("sea <tool_call>")
