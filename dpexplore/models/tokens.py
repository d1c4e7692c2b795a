"""What each token id of a tokenizer stands for: bytes, readable text, and whether it is an ordinary token."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from transformers import PreTrainedTokenizerBase

METASPACE = "▁"  # SentencePiece writes a space as U+2581

# Added tokens that look like these mark structure (`<tool_call>`, `<|fim_prefix|>`, `[INST]`); the other
# added tokens are plain text that the tokenizer's authors wanted whole, such as Pythia's runs of spaces.
_CONTROL = re.compile(r"<.+>|\[.+\]", re.DOTALL)
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte, inverse of GPT-2's `bytes_to_unicode`: printable Latin-1 stands for itself."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in set(kept)]
    return {chr(byte): byte for byte in kept} | {chr(256 + i): byte for i, byte in enumerate(moved)}


BYTE_OF_CHARACTER = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    if all(character in BYTE_OF_CHARACTER for character in token):
        return bytes(BYTE_OF_CHARACTER[character] for character in token)
    return token.encode()  # an added token is stored as plain text


def _replacements(decoder: dict) -> list[tuple[str, str]]:
    """The text replacements of one decoder step that do not depend on where in the text a token stands."""
    if decoder["type"] == "Metaspace":
        return [(decoder.get("replacement", METASPACE), " ")]
    if decoder["type"] == "Replace" and "String" in decoder["pattern"]:
        return [(decoder["pattern"]["String"], decoder["content"])]
    return []


ToBytes = Callable[[int, str], bytes]
"""Id and stored string of a token -> the bytes it stands for behind other text."""


def _by_decoder(tokenizer: PreTrainedTokenizerBase) -> ToBytes | None:
    """How stored token strings turn into bytes, read off the tokenizer's decoder; None if it has none known here."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder: dict | None = json.loads(backend.to_str())["decoder"] if backend is not None else {"type": "Metaspace"}
    if decoder is None:
        return None
    steps: list[dict] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    if any(step["type"] == "ByteLevel" for step in steps):
        return lambda _id, token: _byte_level(token)
    replacements = [pair for step in steps for pair in _replacements(step)]

    def to_bytes(_id: int, token: str) -> bytes:
        if match := _BYTE_FALLBACK.fullmatch(token):
            return bytes([int(match[1], 16)])
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()

    return to_bytes


def _by_trying(tokenizer: PreTrainedTokenizerBase) -> ToBytes:
    """What decoding a token behind another adds to that other's text: WordPiece, suffixes, whatever a decoder does."""

    def decoded(ids: list[int]) -> str:
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    neutral = _neutral(tokenizer, decoded)
    front = neutral or _ids(tokenizer, "a")[-1:]
    first, last = decoded(front), decoded(neutral)

    def to_bytes(token_id: int, token: str) -> bytes:
        if match := _BYTE_FALLBACK.fullmatch(token):
            return bytes([int(match[1], 16)])
        whole = decoded([*front, token_id, *neutral])
        return whole.removeprefix(first).removesuffix(last).encode()

    return to_bytes


def _neutral(tokenizer: PreTrainedTokenizerBase, decoded: Callable[[list[int]], str]) -> list[int]:
    """A token that brings no space of its own on either side (WordPiece's `##a`); empty if there is none."""
    for token, i in islice(tokenizer.get_vocab().items(), _NEUTRAL_TRIED):
        if len(token) <= 6 and any(map(str.isalpha, token)):
            text = decoded([i])
            if text.isalpha() and decoded([i, i]) == 2 * text:
                return [i]
    return []


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return list(ids)  # type: ignore[arg-type]


def _token_to_bytes(tokenizer: PreTrainedTokenizerBase) -> ToBytes:
    """The decoder's way where it gives known texts back, else by trying."""
    to_bytes = _by_decoder(tokenizer)
    if to_bytes is None or not _gives_back(tokenizer, to_bytes):
        return _by_trying(tokenizer)
    return to_bytes


def _gives_back(tokenizer: PreTrainedTokenizerBase, to_bytes: ToBytes) -> bool:
    """Whether the tokens of a few texts, one after the other, are what the tokenizer itself decodes them to."""
    for text in _PROBES:
        try:
            ids = _ids(tokenizer, text)
            stored = tokenizer.convert_ids_to_tokens(ids)
            expected = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        except Exception:  # a text that this tokenizer cannot take says nothing about its bytes
            continue
        joined = b"".join(to_bytes(i, token) for i, token in zip(ids, stored, strict=True))
        if joined.decode(errors="replace").lstrip(" ") != str(expected).lstrip(" "):
            return False
    return True


_NEUTRAL_TRIED = 20_000
_PROBES = ("The sea, 12 times: unbelievable!", "naïve café 😀", "a b")


@dataclass(frozen=True, eq=False)
class TokenTable:
    """The tokenizer's vocabulary by id. Ids the tokenizer does not know are padding rows of the model."""

    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Id -> token as the tokenizer stores it, added tokens included."""
        return {index: token for token, index in self.tokenizer.get_vocab().items()}

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Special tokens, and added tokens that mark structure rather than stand for text."""
        added = self.tokenizer.added_tokens_decoder
        marks = {i for i, token in added.items() if token.special or _CONTROL.fullmatch(token.content)}
        return frozenset(marks | set(self.tokenizer.all_special_ids))

    @cached_property
    def _to_bytes(self) -> ToBytes:
        return _token_to_bytes(self.tokenizer)

    def token_bytes(self, token_id: int) -> bytes | None:
        """Bytes of an ordinary token; None for control tokens and ids the tokenizer does not know."""
        token = self.tokens.get(token_id)
        if token is None or token_id in self.control_ids:
            return None
        return self._to_bytes(token_id, token)

    def token_text(self, token_id: int) -> str:
        r"""Readable text, never empty: bytes that are not valid UTF-8 by themselves are written `\xe2\x80`."""
        data = self.token_bytes(token_id)
        text = self.tokens.get(token_id, "") if data is None else data.decode(errors="backslashreplace")
        return text or f"<id {token_id}>"

    def ordinary_ids(self, limit: int) -> list[int]:
        """Sorted ids below `limit` that stand for text."""
        return sorted(i for i in self.tokens if i < limit and self.token_bytes(i))
