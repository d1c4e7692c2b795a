"""Tokenizers by what they do: every kind of `tokenizers` against the texts it encodes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.models.pieces import encode_behind
from dpexplore.models.tokens import TokenTable
from dpexplore.targets import token_id, tokens
from dpexplore.tuning import TuneConfig
from dpexplore.tuning.init.layout import Layout
from tests.tiny_models import CORPUS, byte_level_tokenizer, sentencepiece_tokenizer

LETTERS = sorted({*"".join(CORPUS), *"abcdefghijklmnopqrstuvwxyz,.:;!? "})


WORDS = [*CORPUS, *LETTERS]


def word_piece() -> PreTrainedTokenizerBase:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    made.train_from_iterator(
        WORDS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


def unigram() -> PreTrainedTokenizerBase:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.train_from_iterator(
        WORDS, trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def suffixes() -> PreTrainedTokenizerBase:
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    made.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(vocab_size=250, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def whole_words() -> PreTrainedTokenizerBase:
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(
        WORDS, trainers.WordLevelTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "byte level": byte_level_tokenizer,
    "byte fallback": sentencepiece_tokenizer,
    "WordPiece": word_piece,
    "Metaspace": unigram,
    "suffixes": suffixes,
    "no decoder": whole_words,
}


@cache
def table(kind: str) -> TokenTable:
    return TokenTable(KINDS[kind]())


@pytest.mark.parametrize("kind", KINDS)
@given(words=st.lists(st.text(st.sampled_from(LETTERS), min_size=1, max_size=6), min_size=1, max_size=5))
def test_the_bytes_of_tokens_joined_are_the_text(kind: str, words: list[str]) -> None:
    found, text = table(kind), " ".join(words)
    ids = found.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert isinstance(ids, list)
    if any(i in found.control_ids for i in ids):  # a character that this tokenizer does not know
        return
    decoded = found.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert isinstance(decoded, str)
    joined = b"".join(found.token_bytes(i) or b"" for i in ids).decode()
    assert joined.strip(" ") == decoded.strip(" ")  # what a text begins or ends with is the decoder's own affair


@pytest.mark.parametrize(("kind", "inside", "begins"), [("WordPiece", "##ing", "the"), ("suffixes", "th", "the</w>")])
def test_tokens_inside_a_word_bring_no_space(kind: str, inside: str, begins: str) -> None:
    found = table(kind)
    vocab = found.tokenizer.get_vocab()
    if inside in vocab:
        assert found.token_bytes(vocab[inside]) == inside.removeprefix("##").encode()
    assert found.token_bytes(vocab[begins]) == {"the": b" the", "the</w>": b"the "}[begins]


@pytest.mark.parametrize("architecture", ["gpt2", "mistral", "phi3"])
@given(text=st.sampled_from([",", ":", "a", " the", "sea", "the sea", ".", "!", " love", "\n", "x y"]))
def test_pieces_are_encoded_as_they_stand_in_the_whole(
    tiny_lm: Callable[[str], LanguageModel], architecture: str, text: str
) -> None:
    """Nobody's piece gains or loses a space: bytes of the piece are its text, wherever it stands behind something."""
    lm = tiny_lm(architecture)
    for before in (None, "I", "I love", "for i in"):
        ids = encode_behind(lm, before, text)
        assert b"".join(lm.token_bytes(i) or b"" for i in ids) == text.encode()
        whole = lm.text_ids((before or "") + text)
        if before and whole[: len(lm.text_ids(before))] == lm.text_ids(before):
            assert lm.text_ids(before) + ids == whole
    assert encode_behind(lm, "", text) == lm.text_ids(text)


@pytest.mark.parametrize("architecture", ["gpt2", "mistral"])
def test_slots_have_no_space_that_nobody_wrote(tiny_lm: Callable[[str], LanguageModel], architecture: str) -> None:
    lm = tiny_lm(architecture)
    layout = Layout.of(lm, TuneConfig(method="hard", slots='"the" hard*1 ":"'))
    free = int(layout.hard.nonzero()[0])
    behind = layout.ids[free + 1 :].tolist()
    assert b"".join(lm.token_bytes(i) or b"" for i in behind) == b":"
    assert layout.ids[:free].tolist() == lm.encode("the")


@pytest.mark.parametrize("architecture", ["gpt2", "mistral"])
@pytest.mark.parametrize("text", [",", "a", "the", " the", ":"])
def test_allow_forbid_and_tokens_mean_the_same_token(
    tiny_lm: Callable[[str], LanguageModel], architecture: str, text: str
) -> None:
    lm = tiny_lm(architecture)
    try:
        expected = int(tokens({text: 1}).build(lm).probs.argmax())
    except InputError:
        with pytest.raises(InputError, match="not one token"):
            Layout.of(lm, TuneConfig(method="hard", length=1, allow=(text,)))
        return
    assert Layout.of(lm, TuneConfig(method="hard", length=1, allow=(text,))).allowed.tolist() == [expected]
    assert expected not in Layout.of(lm, TuneConfig(method="hard", length=1, forbid=(text,))).allowed
    assert token_id(lm, text) == expected


def test_special_tokens_are_no_text(tiny_lm: Callable[[str], LanguageModel]) -> None:
    lm = tiny_lm("gpt2")
    for i, added in lm.tokenizer.added_tokens_decoder.items():
        assert (i in lm.control_ids) == (added.special or lm.token_bytes(i) is None)
    assert not torch.isin(torch.tensor(sorted(lm.control_ids)), lm.ordinary_ids).any()
