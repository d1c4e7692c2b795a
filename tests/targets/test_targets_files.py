"""Targets to files and back, and files that are wrong, cut short or hostile."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import capture, file, save_target, token_id
from dpexplore.targets import files as target_files
from dpexplore.targets.csv_tables import read_table

LoadTiny = Callable[[str], LanguageModel]


@pytest.fixture
def lm(tiny_lm: LoadTiny) -> LanguageModel:
    return tiny_lm("gpt2")


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-15), ("float32", 1e-7)])
def test_npz_there_and_back(lm: LanguageModel, tmp_path: Path, dtype: str, tolerance: float) -> None:
    target = capture("I love").build(lm)
    path = tmp_path / "target.npz"
    save_target(target, path, dtype)  # type: ignore[arg-type]
    with np.load(path, allow_pickle=False) as archive:
        assert archive["probs"].shape == (lm.vocab_size,)
        assert archive["probs"].dtype == dtype
        assert str(archive["recipe"]) == target.recipe
    read = file(path).build(lm)
    assert torch.allclose(read.probs, target.probs, atol=tolerance)
    assert read.provenance["file"] == "target.npz"
    assert len(read.provenance["sha256"]) == 64


def test_where_nothing_can_be_written(lm: LanguageModel, tmp_path: Path) -> None:
    target = capture("I love").build(lm)
    with pytest.raises(InputError, match=r"\.npz"):
        save_target(target, tmp_path / "target.txt")
    with pytest.raises(InputError, match="cannot be written"):
        save_target(target, tmp_path / "no" / "folder.npz")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'token,probability\n" the",0.6\na,0.2\n'),
        ("b.csv", " the,0.6\r\na,0.2\r\n"),
        ("c.csv", "id,p\n{the},0.6\n{a},0.2\n"),
        ("d.csv", "\ufeff the,3\n\na,1\n"),
        ("e.json", '{" the": 0.6, "a": 0.2}'),
        ("f.json", '[[" the", 0.6], ["a", 0.2]]'),
        ("g.json", '[{"token": " the", "p": 3}, {"token": "a", "p": 1}]'),
        ("h.json", '[{"id": {the}, "token": "Ġthe", "p": 3}, {"id": {a}, "p": 1}]'),
        ("i.json", '{"tokens": [" the", "a"], "probs": [0.6, 0.2]}'),
        ("j.json", '{"token_id": {"0": {the}, "1": {a}}, "count": {"0": 3, "1": 1}}'),
        (
            "k.json",
            '[{"score": 0.6, "token": {the}, "token_str": "the"}, {"score": 0.2, "token": {a}, "token_str": "a"}]',
        ),
        ("l.csv", "token;count\n the;7\u202f500\na;2\u202f500\n"),
        ("m.csv", "token,count\n the,7'500\na,2'500\n"),
        ("n.csv", "id,token,p,logprob\n{the},the,0.6,-0.5\n{a},a,0.2,-1.6\n"),
    ],
)
def test_tables_of_token_and_probability(lm: LanguageModel, tmp_path: Path, name: str, text: str) -> None:
    the, a = token_id(lm, " the"), token_id(lm, "a")
    path = tmp_path / name
    path.write_bytes(text.replace("{the}", str(the)).replace("{a}", str(a)).encode())
    probs = file(path).build(lm).probs
    assert probs[the] == pytest.approx(0.75)
    assert probs[a] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.csv", b"a,0.5,0.5\n", "3 columns"),
        ("a.csv", b"a,x\n", "line 1 .* where a probability"),
        ("a.csv", b"token,p\na,0.1\na,0.1\n", "given twice"),
        ("a.csv", b"a,-1\n", "0 or more"),
        ("a.csv", b"a,nan\n", "0 or more"),
        ("a.csv", b"a,inf\n", "0 or more"),
        ("a.csv", b"a,0\n", "All weights are 0"),
        ("a.csv", b"", "All weights are 0"),
        ("a.csv", b"thethe,1\n", "not one token"),
        ("a.csv", b"id,p\nx,1\n", "where a token id"),
        ("a.csv", b'"a,1\n', "no CSV .* quotation mark"),
        ("a.csv", b"\xff\xfe\xff", "UTF-8"),
        ("a.csv", "token,p\na,1\n".encode("utf-16-be"), "UTF-8"),
        ("a.csv", "token,p\na,1\n".encode("utf-32"), "UTF-8"),
        ("a.csv", b"token,p\na,0.5\nb,0.5\nTotal,1\n", "line 4, 'Total', looks like the sum"),
        ("a.csv", b"token;n\na;1.000\nb;500\n", "'1.000' among whole numbers"),
        ("a.csv", b"token,p,p\na,1,2\n", "two columns of numbers, 'p' and 'p'"),
        ("a.csv", b"id,token,p\n5, the,0.6\n6,a,0.4\n", "calls the token id 5 ' the'"),
        ("a.csv", "Ġthe,1\n".encode(), "tokenizer's own name for ' the'"),
        ("a.csv", b"a,1\n" + b"b" * 200_000, "CSV"),
        ("a.json", b"{", "no JSON"),
        ("a.json", b"[" * 100_000, "no JSON"),
        ("a.json", b"7", "holds no tokens"),
        ("a.json", b"[0.5, 0.5]", "has 2 numbers"),
        ("a.json", b'{"tokens": ["a"], "p": [1, 2]}', "lists of 1 and 2"),
        ("a.json", b'[{"token": "1", "p": 1}]', "tokens='id'"),
        ("a.json", b'[{"token": 1, "p": 1}]', "tokens='id'"),
        ("a.json", b'{"choices": [{"logprobs": null}]}', "without its likeliest tokens"),
        ("a.json", b'{"recipe": "x", "top": []}', "other things than tokens"),
        ("a.json", b'{"a": 1, "a": 2}', "given twice"),
        ("a.json", b'{"a": "x"}', "where a probability"),
        ("a.json", b'{"a": true}', "where a probability"),
        ("a.json", b'{"a": NaN}', "0 or more"),
        ("a.json", b'{"a": 1' + b"0" * 5000 + b"}", "JSON"),
        ("a.json", b'{"a": [1]}', "other things than tokens"),
        ("a.json", b'[{"p": 1}]', "no token and p"),
        ("a.json", b"[[1, 2]]", "no token and p"),
        ("a.json", b'[{"id": 1.5, "p": 1}]', "where a token id"),
        ("a.json", b'[{"id": 100000, "p": 1}]', "no token id"),
        ("a.npz", b"no archive", "no .npz file"),
        ("a.txt", b"a,1", "is not a target file.*call a table .csv"),
        ("a.csv.gz", b"a,1", "unpack it"),
        ("a.pt", b"a,1", "numpy.save"),
    ],
)
def test_bad_files_get_a_sentence(lm: LanguageModel, tmp_path: Path, name: str, data: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=says) as caught:
        file(path).build(lm)
    assert str(tmp_path) not in str(caught.value)


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_bad_arrays_get_a_sentence(lm: LanguageModel, tmp_path: Path) -> None:
    path, size = tmp_path / "a.npz", lm.vocab_size
    good = np.full(size, 1 / size)
    for array, says in (
        (np.full(7, 1 / 7), rf"7 numbers.*{size}"),
        (np.stack([good, good]), "not a row"),
        (np.full(size, "x"), "not a row"),
        (np.ones(size, dtype=np.int64), "kind='weights'"),
        (np.where(np.arange(size) == 3, np.nan, good), "NaN"),
        (np.where(np.arange(size) == 3, -good, good), "negative"),
        (good * 2, "sums to 2.*kind='weights'"),
    ):
        with pytest.raises(InputError, match=says):
            file(npz(path, probs=array)).build(lm)
    with pytest.raises(InputError, match=r"holds 'a', 'b'; say which array"):
        file(npz(path, a=good, b=good)).build(lm)
    assert torch.equal(file(npz(path, a=good, b=good), array="b").build(lm).probs, torch.from_numpy(good))


def test_counts_are_normalised_on_request(lm: LanguageModel, tmp_path: Path) -> None:
    counts = np.arange(lm.vocab_size)
    for array in (counts, counts.astype(np.uint16), counts / 7):
        read = file(npz(tmp_path / "a.npz", n=array), kind="weights").build(lm).probs
        np.testing.assert_allclose(read, counts / counts.sum())
    with pytest.raises(InputError, match="is 0"):
        file(npz(tmp_path / "a.npz", n=0 * counts), kind="weights").build(lm)
    (tmp_path / "a.json").write_text(json.dumps(counts.tolist()))
    np.testing.assert_allclose(file(tmp_path / "a.json").build(lm).probs, counts / counts.sum())


def test_the_only_row_of_several_arrays_is_taken(lm: LanguageModel, tmp_path: Path) -> None:
    """Unless another one may say whose numbers these are."""
    path, good = tmp_path / "a.npz", np.full(lm.vocab_size, 1 / lm.vocab_size)
    assert torch.equal(file(npz(path, kl=0.5, p=good, prompt="x")).build(lm).probs, torch.from_numpy(good))
    for names in ({"p": good, "tokens": np.full(len(good), "x")}, {"probs": good, "ids": np.arange(len(good))[::-1]}):
        with pytest.raises(InputError, match=r"another order than the model's ids; write file\(…, array='p"):
            file(npz(path, **names)).build(lm)
        assert file(path, array=next(iter(names))).build(lm).probs[0] == good[0]


def test_pickles_are_never_read(lm: LanguageModel, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("unpickled",)

    path = npz(tmp_path / "a.npz", probs=np.array([Hostile()] * lm.vocab_size, dtype=object))
    with pytest.raises(InputError, match="not a row"):
        file(path).build(lm)


def test_archives_that_expand_without_end_are_refused(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (lm.vocab_size,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("probs.npy", header.getvalue() + bytes(30_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match="larger than its own header"):
        file(path).build(lm)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("probs.npy", header.getvalue() + bytes(10))
    with pytest.raises(InputError, match=r"no \.npz file"):
        file(path).build(lm)


def test_files_too_large_absent_or_endless(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_files, "MAX_FILE_BYTES", 2**20)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": 1}) + " " * 2**20)
    with pytest.raises(InputError, match="1 MiB"):
        file(path).build(lm)
    for absent in (tmp_path / "b.csv", tmp_path, "x\0.csv"):
        with pytest.raises(InputError):
            file(absent).build(lm)
    endless = tmp_path / "zero.csv"
    endless.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="no file"):
        file(endless).build(lm)


@pytest.mark.parametrize(("text", "told"), [("a," * 2_000_001, "2,000,001 cells"), ("1\n" * 300_001, "300,001 lines")])
def test_a_table_beyond_its_size_is_not_taken_apart(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_table("large.csv", text.encode())
