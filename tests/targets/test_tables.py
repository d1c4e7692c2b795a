"""Tables, arrays and server answers as people have them: each is read rightly, or refused with the cure."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import file, parse_recipe, token_id
from dpexplore.targets.arrays import read_array
from dpexplore.targets.csv_tables import read_table
from dpexplore.targets.json_tables import read_json

CASES = Path(__file__).parents[1] / "cases"


def one_sentence(error: InputError) -> None:
    assert "\n" not in str(error)


@pytest.fixture(scope="module")
def lm(tiny_lm: Callable[[str], LanguageModel]) -> LanguageModel:
    return tiny_lm("gpt2")


@pytest.mark.parametrize(
    ("name", "tokens", "values"),
    [
        ("float_ids", [260, 261], [0.6, 0.4]),
        ("header_other", [" the", " a"], [0.6, 0.4]),
        ("pandas_index", [" the", " a"], [0.6, 0.4]),
        ("percent", [" the", " a"], [0.6, 0.2]),
        ("quote_tok", ['"', " the"], [0.5, 0.5]),
        ("quoted_decimal", [" the", " a"], [0.6, 0.2]),
        ("semicolon", [" the", " a"], [0.6, 0.2]),
        ("semicolon_point", [" the", " a"], [0.6, 0.2]),
        ("sep_line", [" the", " a"], [0.6, 0.2]),
        ("trailing_blank", [" the", " a"], [0.6, 0.2]),
        ("utf16", [" the"], [0.6]),
    ],
)
def test_tables_from_peoples_programs(name: str, tokens: list[str | int], values: list[float]) -> None:
    listed = read_table(name, (CASES / "csv" / f"{name}.csv").read_bytes())
    assert [token for token, _ in listed.entries] == tokens
    assert [value for _, value in listed.entries] == pytest.approx(values)
    assert not listed.ids_or_digits


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ((CASES / "csv" / "decimal_comma.csv").read_text(), "decimal comma needs quotes"),
        ("token,p\na,0.5\nb,50%\n", "mixes percentages"),
        ('token,p\na,"1,234"\nb,"5,678"\n', "without commas for thousands"),
        ('token,p\na,"1,5"\nb,2.5\n', "without commas for thousands"),
        ("a,b,c\nx,y,0.5\n", "call the tokens' `token`"),
        ("x,y,0.5\n", "no header"),
        ("token,p\n,0.5\n", "a number and no token"),
        (" the,O.6\n a,0.4\n", "'O.6' where a probability"),
        ("the\na\n", "1 column"),
        ("id,p\n260.5,0.6\n", "where a token id"),
        ("naïve,0.5\n".encode("cp1252").decode("latin1"), ""),
    ],
)
def test_what_reads_in_two_ways_is_refused_with_the_cure(text: str, cure: str) -> None:
    encoding = "utf-8" if cure else "latin1"
    with pytest.raises(InputError, match=cure or "save it as UTF-8") as refusal:
        read_table("x.csv", text.encode(encoding))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["x.csv", "x.json"])
def test_digits_are_never_silently_ids_or_texts(lm: LanguageModel, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("token,p\n1,0.75\n2,0.25\n" if name == "x.csv" else '{"1": 0.75, "2": 0.25}')
    with pytest.raises(InputError, match=r"tokens='id'"):
        file(path).build(lm)
    assert file(path, tokens="id").build(lm).probs[1] == 0.75
    assert file(path, tokens="text").build(lm).probs[token_id(lm, "1")] == 0.75
    assert str(file("a.csv", tokens="id")) == 'file("a.csv", tokens="id")'
    assert parse_recipe('file("a.npz", kind="logits", array="x")') == file("a.npz", kind="logits", array="x")


def test_a_token_that_is_called_as_a_column_is_no_header() -> None:
    listed = read_table("x.csv", b"P,0.25\ntoken,0.75\n")
    assert listed.entries == [("P", 0.25), ("token", 0.75)]


TOKENS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=4).filter(
    lambda text: not text.strip().startswith("sep=") and text.strip() != ""
)


@given(
    weights=st.dictionaries(TOKENS, st.integers(1, 9999), min_size=2, max_size=5),
    separator=st.sampled_from([",", ";", "\t", "|"]),
    decimal=st.sampled_from([".", ","]),
    header=st.sampled_from([None, "token", "Text", "WORD"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    marked=st.booleans(),
    index=st.booleans(),
    blanks=st.integers(0, 2),
    percent=st.booleans(),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_every_dialect_of_a_table_reads_the_same(
    weights: dict[str, int], separator: str, decimal: str, header: str | None, encoding: str, newline: str,
    marked: bool, index: bool, blanks: int, percent: bool, quoting: int,
) -> None:  # fmt: skip
    """Whatever a csv writer writes comes back, or is refused; it never comes back as something else."""
    index = index and header is not None
    stream = io.StringIO(newline="")
    if marked:
        stream.write(f"sep={separator}{newline}")
    writer = csv.writer(stream, delimiter=separator, lineterminator=newline, quoting=quoting)  # type: ignore[arg-type]
    if header:
        writer.writerow([""] * index + [header, "p"])
    for number, (token, weight) in enumerate(weights.items()):
        value = f"{weight / 10_000:.4f}".replace(".", decimal) + "%" * percent
        writer.writerow([str(number)] * index + [token, value])
    for _ in range(blanks):
        stream.write(separator * (1 + index) + newline)
    try:
        listed = read_table("x.csv", stream.getvalue().encode(encoding))
    except InputError as refusal:
        one_sentence(refusal)
        # A quotation mark in a token is the one thing that may keep a well-formed table from being read.
        if header and not any('"' in token for token in weights):
            raise
        return
    scale = 0.01 if percent else 1.0
    expected = [scale * weight / 10_000 for weight in weights.values()]
    assert [value for _, value in listed.entries] == pytest.approx(expected)
    assert [str(token) for token, _ in listed.entries] == list(weights)


def half(values: np.ndarray) -> np.ndarray:
    """Rounded to bfloat16, as two opaque bytes: what `np.save` makes of one."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").view("V2")


def stored(array: np.ndarray, name: str = "probs") -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{name: array})
    return stream.getvalue()


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(-1,), (1, -1), (-1, 1)])
def test_arrays_are_renormalised_within_what_their_precision_loses(
    lm: LanguageModel, precision: str, shape: tuple[int, ...]
) -> None:
    probs = np.random.default_rng(0).dirichlet(np.full(lm.vocab_size, 0.3))
    array = half(probs) if precision == "bfloat16" else probs.astype(precision)
    read, _ = read_array("x.npz", stored(array.reshape(shape), "anything"), lm, None, None)
    assert read.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(read, probs, rtol=0.01, atol=1e-7)
    bare = io.BytesIO()
    np.save(bare, array)
    np.testing.assert_array_equal(read_array("x.npy", bare.getvalue(), lm, None, None)[0], read)


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 20), st.sampled_from(["float16", "float32"]))
def test_logits_and_log_probabilities_are_softmaxed_on_request_and_recognised_otherwise(
    lm: LanguageModel, seed: int, spread: float, precision: str
) -> None:
    logits = (spread * np.random.default_rng(seed).normal(size=lm.vocab_size)).astype(precision)
    wide = logits.astype(np.float64)
    expected = np.exp(wide - wide.max()) / np.exp(wide - wide.max()).sum()
    np.testing.assert_allclose(read_array("x", stored(logits), lm, "logits", None)[0], expected, rtol=1e-9)
    with pytest.raises(InputError, match="kind='logits'"):
        read_array("x", stored(logits), lm, None, None)
    logs = np.log(expected).astype("float32")
    np.testing.assert_allclose(read_array("x", stored(logs), lm, "logprobs", None)[0], expected, rtol=1e-3)
    with pytest.raises(InputError, match="kind='logprobs'"):
        read_array("x", stored(logs), lm, None, None)
    with pytest.raises(InputError, match="not 1"):
        read_array("x", stored(logs - 2), lm, "logprobs", None)


def test_log_probabilities_may_be_minus_infinity(lm: LanguageModel) -> None:
    logs = np.full(lm.vocab_size, -np.inf)
    logs[[3, 5]] = np.log([0.25, 0.75])
    assert read_array("x", stored(logs), lm, "logprobs", None)[0][[3, 5]] == pytest.approx([0.25, 0.75])
    logs[0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        read_array("x", stored(logs), lm, "logprobs", None)


ALTERNATIVES = [(" the", math.log(0.5)), ("a", math.log(0.25))]
CHAT = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in ALTERNATIVES]
SERVERS = {
    "chat": {"choices": [{"logprobs": {"content": [{"token": " the", "logprob": -0.7, "top_logprobs": CHAT}]}}]},
    "completions": {"choices": [{"logprobs": {"tokens": [" the"], "top_logprobs": [dict(ALTERNATIVES)]}}]},
    "echo": {"choices": [{"logprobs": {"tokens": ["x", " the"], "top_logprobs": [None, dict(ALTERNATIVES)]}}]},
    "responses": {"output": [{"content": [{"logprobs": [{"token": " the", "logprob": -0.7, "top_logprobs": CHAT}]}]}]},
    "ollama": {"response": " the", "logprobs": [{"token": " the", "logprob": -0.7, "top_logprobs": CHAT}]},
    "llama.cpp": {"completion_probabilities": [{"id": 5, "token": " the", "top_logprobs": CHAT}]},
    "llama.cpp old": {
        "completion_probabilities": [
            {"content": " the", "probs": [{"tok_str": token, "prob": math.exp(v)} for token, v in ALTERNATIVES]}
        ]
    },
    "tgi": {
        "details": {"top_tokens": [[{"id": 1, "text": t, "logprob": v, "special": False} for t, v in ALTERNATIVES]]}
    },
    "gemini": {
        "candidates": [
            {
                "logprobsResult": {
                    "topCandidates": [
                        {"candidates": [{"token": t, "tokenId": 7, "logProbability": v} for t, v in ALTERNATIVES]}
                    ]
                }
            }
        ]
    },
    "list": [{"token": token, "logprob": value} for token, value in ALTERNATIVES],
}


@pytest.mark.parametrize("server", SERVERS)
def test_answers_of_servers_are_recognised_and_the_rest_is_spoken_of(
    lm: LanguageModel, tmp_path: Path, server: str
) -> None:
    path = tmp_path / "dump.json"
    path.write_text(json.dumps(SERVERS[server]))
    target = file(path).build(lm)
    the, a = token_id(lm, " the"), token_id(lm, "a")
    assert target.probs[[the, a]].tolist() == pytest.approx([0.5, 0.25])
    assert target.probs[0] == pytest.approx(0.25 / (lm.vocab_size - 2))
    assert target.provenance["rest"] == pytest.approx(0.25)
    assert "25.00% is spread evenly" in target.provenance["warnings"][0]
    assert file(path, rest="drop").build(lm).probs[the] == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="rest='spread'"):
        file(path, rest="refuse").build(lm)


def test_sglang_and_vllm_give_ids(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "dump.json"
    for answer in (
        {"meta_info": {"output_top_logprobs": [[[math.log(0.5), 5, None], [math.log(0.5), 6, None]]]}},
        {"logprobs": [{"5": {"logprob": math.log(0.5), "rank": 1}, "6": {"logprob": math.log(0.5), "rank": 2}}]},
        {"choices": [{"logprobs": {"top_logprobs": [{"token_id:5": math.log(0.5), "token_id:6": math.log(0.5)}]}}]},
    ):
        path.write_text(json.dumps(answer))
        assert file(path).build(lm).probs[[5, 6]].tolist() == pytest.approx([0.5, 0.5])


def test_tokens_of_another_vocabulary_are_left_out_of_a_dump_and_named(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "dump.json"
    path.write_text(json.dumps([*SERVERS["list"], {"token": " unheard-of", "logprob": math.log(0.2)}]))  # type: ignore[misc]
    with pytest.raises(InputError, match="not one token"):  # a list of one's own is meant as it is written
        file(path).build(lm)
    both = [*CHAT, {"token": " unheard-of", "logprob": math.log(0.2)}]
    path.write_text(json.dumps({"logprobs": [{"top_logprobs": both}]}))
    warnings = file(path).build(lm).provenance["warnings"]
    assert "1 of the 3 tokens" in warnings[0]
    assert "75.00%" in warnings[1]


def test_lists_say_what_their_numbers_are(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(dict(ALTERNATIVES)))
    with pytest.raises(InputError, match="kind='logprobs'"):
        file(path).build(lm)
    assert file(path, kind="logprobs", rest="drop").build(lm).probs.max() == pytest.approx(2 / 3)
    path.write_text(json.dumps({" the": 2.0, "a": -1.0}))
    with pytest.raises(InputError, match="kind='logits'"):
        file(path).build(lm)
    assert file(path, kind="logits").build(lm).probs.max() == pytest.approx(1 / (1 + math.exp(-3)))
    with pytest.raises(InputError, match="0 or less"):
        file(path, kind="logprobs").build(lm)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["token", "p", "id", "logprob", "top_logprobs", "logprobs", "bytes", "probs", "content"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_json_raises_anything_but_a_sentence(lm: LanguageModel, value: object) -> None:
    from dpexplore.targets.listed import listed_target

    try:
        listed = read_json("x.json", json.dumps(value))
        probs, _ = listed_target("x.json", listed, lm, None, None, None)
    except InputError as refusal:
        one_sentence(refusal)
    else:
        assert torch.isclose(probs.sum(), torch.tensor(1.0, dtype=torch.float64))


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="replace")))
def test_no_bytes_raise_anything_but_a_sentence(data: bytes) -> None:
    try:
        read_table("x.csv", data)
    except InputError as refusal:
        one_sentence(refusal)


@pytest.mark.parametrize("name", ["tgt", "tok", "req"])
def test_half_a_character_is_a_sentence(lm: LanguageModel, name: str) -> None:
    from dpexplore.targets.string_files import read_strings

    path = CASES / "json" / f"{name}.json"
    with pytest.raises(InputError, match="half of a character"):
        file(path).build(lm) if name == "tok" else read_strings(path)
    for recipe in ('capture("\ud83d")', 'tokens({"\ud83d": 1})', 'file("\ud83d.csv")', "\ud83d"):
        with pytest.raises(InputError):
            parse_recipe(recipe)
