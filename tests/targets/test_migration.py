"""Migration between tokenizers of different families, checked against the texts their tokens decode to."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel, load_model
from dpexplore.targets import capture, random_prompt
from dpexplore.targets.migration import map_vocabulary, migrate

LoadTiny = Callable[[str], LanguageModel]

BYTE_LEVEL, SENTENCEPIECE, PADDED = "gpt2", "mistral", "qwen2"


def plain_texts(lm: LanguageModel) -> dict[int, str]:
    """Id -> text, by the two families' own rules written out, for tokens of printable ASCII and spaces."""
    found = {}
    for token, i in lm.tokenizer.get_vocab().items():
        text = token.replace("Ġ", " ").replace("▁", " ")
        if text.isascii() and text.isprintable() and not (text.startswith("<") and len(text) > 1):
            found[i] = text
    return found


@pytest.mark.parametrize(("source", "tuning"), [(BYTE_LEVEL, SENTENCEPIECE), (SENTENCEPIECE, BYTE_LEVEL)])
def test_every_shared_text_is_mapped_between_the_families(tiny_lm: LoadTiny, source: str, tuning: str) -> None:
    from_lm, to_lm = tiny_lm(source), tiny_lm(tuning)
    mapped = map_vocabulary(from_lm, to_lm).target_ids
    theirs, ours = plain_texts(from_lm), plain_texts(to_lm)
    shared = {text for text in theirs.values() if text in set(ours.values())}
    assert sum(text.startswith(" ") for text in shared) >= 15
    for i, text in theirs.items():
        if text in shared:
            assert ours[int(mapped[i])] == text
    for i in range(from_lm.vocab_size):
        if mapped[i] >= 0 and (data := from_lm.token_bytes(i)):
            assert to_lm.token_bytes(int(mapped[i])) == data


def test_bytes_meet_byte_fallback_tokens(tiny_lm: LoadTiny) -> None:
    from_lm, to_lm = tiny_lm(BYTE_LEVEL), tiny_lm(SENTENCEPIECE)
    mapped = map_vocabulary(from_lm, to_lm).target_ids
    names, vocab = to_lm.tokenizer.convert_ids_to_tokens, from_lm.tokenizer.get_vocab()
    assert names(int(mapped[vocab["Ã"]])) == "<0xC3>"
    assert names(int(mapped[vocab["a"]])) == "a"  # the whole piece, not <0x61>


@pytest.mark.parametrize(("source", "tuning"), [(BYTE_LEVEL, SENTENCEPIECE), (SENTENCEPIECE, BYTE_LEVEL)])
def test_mass_is_moved_summed_and_renormalised(tiny_lm: LoadTiny, source: str, tuning: str) -> None:
    from_lm, to_lm = tiny_lm(source), tiny_lm(tuning)
    names: list[str] = []

    def load(name: str) -> LanguageModel:
        names.append(name)
        return from_lm

    target = capture("I love the", model="source").build(to_lm, load=load)
    assert names == ["source"]
    before = capture("I love the").build(from_lm).probs
    by_bytes: dict[bytes, float] = {}
    for i in range(from_lm.vocab_size):
        if (data := from_lm.token_bytes(i)) is not None:
            by_bytes[data] = by_bytes.get(data, 0) + float(before[i])
    ours = {to_lm.token_bytes(i) for i in range(to_lm.vocab_size)} - {None}
    kept = math.fsum(p for data, p in by_bytes.items() if data in ours)
    after: dict[bytes, float] = {}
    for i, p in enumerate(target.probs.tolist()):
        if p > 0:
            data = to_lm.token_bytes(i)
            assert data is not None
            after[data] = after.get(data, 0) + p
    assert after.keys() == {data for data in by_bytes if data in ours}
    for data, p in after.items():
        assert p == pytest.approx(by_bytes[data] / kept, abs=1e-9)
    migration = target.provenance["migration"]
    assert migration["mass_kept"] == pytest.approx(kept, abs=1e-9)
    assert 0 < migration["tokens_kept"] < 1
    assert bool(target.provenance.get("warnings")) == (kept < 0.5)


def test_little_mass_kept_is_warned_of_and_none_refused(tiny_lm: LoadTiny) -> None:
    from_lm, to_lm = tiny_lm(SENTENCEPIECE), tiny_lm(BYTE_LEVEL)
    mapped = map_vocabulary(from_lm, to_lm).target_ids
    lost, kept = int((mapped < 0).nonzero()[0]), int((mapped >= 0).nonzero()[0])
    probs = torch.zeros(from_lm.vocab_size, dtype=torch.float64)
    probs[lost], probs[kept] = 0.9, 0.1
    moved, told = migrate(probs, {}, from_lm, to_lm)
    assert moved[mapped[kept]] == 1
    assert "10%" in told["warnings"][0]
    probs[lost], probs[kept] = 1, 0
    with pytest.raises(InputError, match="No token"):
        migrate(probs, {}, from_lm, to_lm)


def test_equal_vocabularies_change_nothing(tiny_lm: LoadTiny) -> None:
    lm, twin = tiny_lm("gpt2"), tiny_lm("qwen3")  # other weights, same tokenizer
    assert map_vocabulary(twin, lm).same
    target = random_prompt(4, seed=3, model="twin").build(lm, load=lambda _: twin)
    assert torch.equal(target.probs, random_prompt(4, seed=3).build(twin).probs)
    assert "migration" not in target.provenance
    assert torch.equal(capture("I love", model=lm.name).build(lm).probs, capture("I love").build(lm).probs)


def test_padded_rows_lose_their_mass_and_get_none(tiny_lm: LoadTiny) -> None:
    padded, lm = tiny_lm(PADDED), tiny_lm(BYTE_LEVEL)
    assert padded.vocab_size > lm.vocab_size
    before = capture("I love").build(padded).probs
    after = capture("I love", model="padded").build(lm, load=lambda _: padded)
    assert after.provenance["migration"]["mass_kept"] == pytest.approx(float(before[: lm.vocab_size].sum()), abs=1e-12)
    back = capture("I love", model="plain").build(padded, load=lambda _: lm).probs
    assert back[lm.vocab_size :].sum() == 0


def test_a_source_that_was_loaded_for_capture_is_released(
    tiny_lm: LoadTiny, tiny_folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[LanguageModel]] = []

    def loading(name: str) -> LanguageModel:
        lm = load_model(name, device="cpu")
        alive.append(weakref.ref(lm))
        return lm

    monkeypatch.setattr("dpexplore.models.load_model", loading)
    folder = str(tiny_folders(SENTENCEPIECE))
    target = capture("I love", model=folder).build(tiny_lm(BYTE_LEVEL))
    gc.collect()
    assert target.provenance["model"] == folder
    assert [reference() for reference in alive] == [None]
