"""Links: what a page is set to, in an address. `?d=` holds it all; `?run=` names a run on this server."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from dataclasses import dataclass
from typing import Any

from dpexplore.errors import InputError
from dpexplore.targets import parse_recipe
from dpexplore.targets.sources import File
from dpexplore.tuning import TuneConfig

VERSION = "1"
"""First character of a link's text; what follows is base64 of deflated JSON: model, recipe, changed settings."""
MOST_CHARACTERS = 8000
MOST_BYTES = 64 * 1024
MOST_MODEL_CHARACTERS = 300


@dataclass(frozen=True)
class Setup:
    """What a page is set to before a run."""

    model: str
    recipe: str
    config: TuneConfig


def encode_setup(setup: Setup) -> str:
    """A setup as text for an address. InputError if its target does not travel."""
    if any(isinstance(part, File) for part in parse_recipe(setup.recipe).walk()):
        raise InputError("A link cannot hold the target's file; send the file, or the capsule of a run.")
    usual = TuneConfig().to_dict()
    changed = {name: value for name, value in setup.config.to_dict().items() if value != usual[name]}
    content = json.dumps([setup.model, setup.recipe, changed], separators=(",", ":"), ensure_ascii=False)
    packed = zlib.compress(content.encode(), 9, wbits=-15)
    text = VERSION + base64.urlsafe_b64encode(packed).decode().rstrip("=")
    if len(text) > MOST_CHARACTERS:
        raise InputError(
            f"The link would have {len(text):,} characters, and addresses hold {MOST_CHARACTERS:,}; send the capsule."
        )
    return text


def decode_setup(text: str) -> Setup:
    """The setup of a link's text. InputError, with what is wrong, for any other text."""
    if text[:1] != VERSION:
        raise InputError("This link was made by another version of dpexplore, or is damaged; the page starts afresh.")
    try:
        model, recipe, changed = _unpack(text[1:])
        if not (isinstance(model, str) and isinstance(recipe, str) and isinstance(changed, dict)):
            raise TypeError
    except (binascii.Error, zlib.error, ValueError, TypeError, RecursionError):
        raise InputError("This link is damaged, maybe cut off in the middle; the page begins afresh.") from None
    if not 0 < len(model.strip()) <= MOST_MODEL_CHARACTERS:
        raise InputError("This link names no model; the page begins afresh.")
    try:
        return Setup(model.strip(), str(parse_recipe(recipe)), TuneConfig.from_dict(changed))
    except InputError as error:
        raise InputError(f"This link asks for what cannot be: {error}") from error


def _unpack(text: str) -> Any:
    if len(text) > MOST_CHARACTERS:
        raise ValueError
    packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    inflater = zlib.decompressobj(wbits=-15)
    content = inflater.decompress(packed, MOST_BYTES)
    if not inflater.eof or inflater.unused_data:
        raise ValueError
    return json.loads(content)
