"""Chat templates are programs of strangers: every one is rendered, or refused in a sentence; no user's word is lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel, templates
from dpexplore.models.chat import chat_halves, chat_text, end_of_answer
from dpexplore.targets import capture, strings
from dpexplore.tuning import TuneConfig
from dpexplore.tuning.init.layout import Layout
from tests.tiny_models import byte_level_tokenizer

LOOP = "{% for message in messages %}<|begin|>{{ message.role }}\n"
ANSWER = "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
PLAIN = LOOP + "{{ message['content'] | trim }}<|end|>\n{% endfor %}" + ANSWER
PARTS = LOOP + "{% for part in message.content %}{{ part.text }}{% endfor %}<|end|>\n{% endfor %}"
TYPED = (
    LOOP + "{% for part in message.content if part.type == 'text' %}{{ part['text'] }}{% endfor %}<|end|>\n{% endfor %}"
)


def one_sentence(error: InputError) -> None:
    assert "\n" not in str(error)


@pytest.fixture
def with_template(tiny_lm: Callable[[str], LanguageModel]) -> Callable[[object], LanguageModel]:
    def make(template: object) -> LanguageModel:
        tokenizer = byte_level_tokenizer()
        tokenizer.chat_template = template  # type: ignore[assignment]
        return dataclasses.replace(tiny_lm("gpt2"), tokenizer=tokenizer)

    return make


WithTemplate = Callable[[object], LanguageModel]


@pytest.mark.parametrize("template", [PLAIN, PARTS, TYPED])
def test_the_users_words_stand_in_the_prompt(with_template: WithTemplate, template: str) -> None:
    lm = with_template(template)
    assert "I love it" in chat_text(lm, "I love it")
    ids = capture("I love", chat=True).build(lm).provenance["prompt_ids"]
    assert "I love" in lm.decode(ids)
    before, after = chat_halves(lm)
    assert before + "sea" + after == chat_text(lm, "sea")
    assert end_of_answer(lm, "sea") == lm.tokenizer.eos_token_id
    layout = Layout.of(lm, TuneConfig(method="hard", length=1, chat=True))
    free = int(layout.hard.nonzero()[0])
    assert lm.decode(layout.ids[:free].tolist()) == before
    assert lm.decode(layout.ids[free + 1 :].tolist()) == after


def test_a_text_slot_in_the_users_turn_is_the_captured_prompt(with_template: WithTemplate) -> None:
    lm = with_template(PLAIN)
    layout = Layout.of(lm, TuneConfig(method="hard", slots='"I love the" hard*1', chat=True))
    whole = capture("I love the sea", chat=True).build(lm).provenance["prompt_ids"]
    free = int(layout.hard.nonzero()[0])
    assert layout.ids[:free].tolist() == whole[:free]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no system role') }}", "refuses this conversation .*no system role"),
        ("{% for x in %}", "cannot be read"),
        ("{{ messages[5].content }}", "refuses this conversation"),
        ("{{ 1 / 0 }}", "fails"),
        ("nothing of it", "does not write the user's words"),
        ({"tool_use": PLAIN, "rag": PLAIN}, "templates named tool_use, rag and no default"),
        (7, "is not text"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 1 seconds"),
        ("{{ 9**(9**9) }}", "more than 1 seconds"),
        ("{{ 'x' * 10**10 }}", "fails|ended the process"),
        ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "writes more than"),
        ("{{ ''.__class__.__mro__ }}", "refuses this conversation|does not write"),
        ("x" * 600_000, "characters, more than"),
    ],
)
def test_templates_that_misbehave_are_a_sentence_everywhere(
    with_template: WithTemplate, monkeypatch: pytest.MonkeyPatch, template: object, says: str
) -> None:
    monkeypatch.setattr(templates, "SECONDS", 1.0)
    lm = with_template(template)
    with pytest.raises(InputError, match=says) as refusal:
        chat_text(lm, "hello")
    assert "\n" not in str(refusal.value)
    if "seconds" in says or "writes" in says:  # slow ones once are enough
        return
    for use in (
        lambda: capture("hello", chat=True).build(lm),
        lambda: Layout.of(lm, TuneConfig(chat=True)),
        lambda: strings({"{1}": 1}, request="hello").build(lm),
    ):
        with pytest.raises(InputError):
            use()


def test_a_default_among_named_templates_is_taken(with_template: WithTemplate) -> None:
    assert "hello" in chat_text(with_template({"default": PLAIN, "tool_use": "x"}), "hello")


def test_words_written_twice_leave_no_place_for_slots(with_template: WithTemplate) -> None:
    lm = with_template(PLAIN + "{{ messages[0].content }}")
    with pytest.raises(InputError, match="more than once"):
        Layout.of(lm, TuneConfig(chat=True))


def test_tokens_beyond_the_embeddings_are_one_sentence_everywhere(with_template: WithTemplate) -> None:
    lm = with_template(PLAIN.replace("<|begin|>", "<tool>"))
    lm.tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})  # type: ignore[dict-item]
    for use in (
        lambda: capture("hello", chat=True).build(lm),
        lambda: Layout.of(lm, TuneConfig(chat=True)),
        lambda: strings({"{1}": 1}, request="hello").build(lm),
        lambda: lm.encode("<tool>"),
    ):
        with pytest.raises(InputError, match="no embedding for"):
            use()


@settings(max_examples=25)
@given(words=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12))
def test_rendering_is_what_transformers_renders(tiny_lm: Callable[[str], LanguageModel], words: str) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = PLAIN + "{{ messages | tojson }}{{ bos_token }}"
    lm = dataclasses.replace(tiny_lm("gpt2"), tokenizer=tokenizer)
    turn = [{"role": "user", "content": words}]
    assert chat_text(lm, words) == tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


PIECES = st.sampled_from(
    [
        *("{{ messages }}", "{% if x %}", "{% endif %}", "{{ messages[0]", "['content'] }}", "{# "),
        *("{% set a = 'b' * 999999 %}", "{{ a.b.c }}", "{% for m in messages %}", "{% endfor %}"),
        *("{{ m.content }}", "{% break %}", "{{ m.x() }}"),
    ]
)


@settings(max_examples=60)
@given(pieces=st.lists(PIECES, max_size=6))
def test_no_template_raises_anything_but_a_sentence(tiny_lm: Callable[[str], LanguageModel], pieces: list[str]) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = " ".join(pieces) or "x"
    lm = dataclasses.replace(tiny_lm("gpt2"), tokenizer=tokenizer)
    try:
        assert "hello" in chat_text(lm, "hello")
    except InputError as refusal:
        message = str(refusal)
        assert message.count("\n") == 0
