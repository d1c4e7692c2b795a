"""Prompts in a model's chat template: what stands around the user's words, as text and as ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpexplore.errors import InputError
from dpexplore.models.language_model import LanguageModel
from dpexplore.models.templates import render

_WORDS = "\N{REPLACEMENT CHARACTER}"  # marks the place of the user's or the assistant's words


def has_chat(lm: LanguageModel) -> bool:
    """Whether the model has a chat template."""
    return bool(getattr(lm.tokenizer, "chat_template", None))


def chat_text(lm: LanguageModel, words: str) -> str:
    """The conversation in which the user has said `words` and the assistant is to answer.

    InputError if there is no template, if it fails, or if the words are not in what it writes.
    """
    written = _written(lm, words, None)
    if words.strip() not in written:
        raise InputError(f"The chat template of {lm.name} does not write the user's words; leave chat off.")
    return written


def chat_halves(lm: LanguageModel) -> tuple[str, str]:
    """What the template writes before and after the user's words, up to the assistant's answer."""
    before, mark, after = _written(lm, _WORDS, None).partition(_WORDS)
    if not mark or _WORDS in after:
        how = "more than once" if mark else "not at all"
        raise InputError(f"The chat template of {lm.name} writes the user's words {how}; leave chat off.")
    return before, after


def end_of_answer(lm: LanguageModel, words: str) -> int:
    """The token that the template puts behind an answer; the end-of-sequence token if that is no special one."""
    behind = _written(lm, words, _WORDS).rpartition(_WORDS)[2]
    special = lm.control_ids
    found = next((i for i in lm.text_ids(behind) if i in special), lm.tokenizer.eos_token_id)
    if found is None:
        raise InputError(f"{lm.name} has no token that ends an answer; use a closing mark and eos=False.")
    return int(found)  # type: ignore[arg-type]


def _written(lm: LanguageModel, words: str, answer: str | None) -> str:
    """The template's text; content as parts where it writes a plain text's words away."""
    template, marks = _template(lm), _special_tokens(lm)

    def write(parts: bool) -> str:
        messages = [_message("user", words, parts), *([] if answer is None else [_message("assistant", answer, parts)])]
        return render(lm.name, template, {**marks, "messages": messages, "add_generation_prompt": answer is None})

    wanted = [text.strip() for text in (words, answer or "")]
    plain: str | InputError
    try:
        plain = write(parts=False)
        if all(text in plain for text in wanted):
            return plain
    except InputError as error:
        plain = error
    try:
        by_parts = write(parts=True)
        if all(text in by_parts for text in wanted):
            return by_parts
    except InputError:
        pass
    if isinstance(plain, InputError):
        raise plain
    return plain


def _message(role: str, words: str, parts: bool) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": words}] if parts else words}


def _template(lm: LanguageModel) -> str:
    template = getattr(lm.tokenizer, "chat_template", None)
    if isinstance(template, Mapping):  # a set of named ones
        if "default" not in template:
            names = ", ".join(map(str, template)) or "none"
            raise InputError(f"{lm.name} has chat templates named {names} and no default one; leave chat off.")
        template = template["default"]
    if not template:
        raise InputError(f"{lm.name} has no chat template; leave chat off.")
    if not isinstance(template, str):
        raise InputError(f"The chat template of {lm.name} is not text; save the tokenizer again or leave chat off.")
    return template


def _special_tokens(lm: LanguageModel) -> dict[str, str]:
    return {name: str(token) for name, token in lm.tokenizer.special_tokens_map.items() if isinstance(token, str)}
