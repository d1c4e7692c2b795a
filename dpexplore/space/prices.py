"""What a request costs, from its text alone: the one cost model, asked before anything is parsed, tokenized or built.

Every price is an upper bound, found in one pass over the text with a few integers: a text has at most as many tokens
as bytes. `VisitorRules` holds the prices against the limits of the Spacefile.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dpexplore.targets import Recipe, Strings
from dpexplore.targets.sources import Capture, Entropy, File, Order, Pos, RandomPrompt
from dpexplore.targets.transforms import Matched
from dpexplore.tuning import TuneConfig

TEMPLATE_TOKENS = 64
"""What a chat template or a tokenizer puts around a text."""
ORDER_PARTS = 4
"""An order is decided within seconds; this many other parts take as long."""


@dataclass(frozen=True)
class RecipePrice:
    """What building a target costs."""

    captured_tokens: int
    """Of all texts that are run through a model."""
    solved_parts: int
    """Parts that are found by descent, by a solver or by reading the whole vocabulary, a tenth of a second each."""
    string_bytes: int
    """Bytes that a tokenizer reads for a target over strings, every outcome behind its request."""
    file_bytes: int
    """Of all files that are read."""


def price_recipe(recipe: Recipe) -> RecipePrice:
    """The price of a parsed recipe, whose own text is bounded."""
    captured = solved = strings = files = 0
    for part in recipe.walk():
        if isinstance(part, Capture):
            captured += text_tokens(part.text) + TEMPLATE_TOKENS
        elif isinstance(part, RandomPrompt):
            captured += part.length + TEMPLATE_TOKENS
        elif isinstance(part, Strings):
            strings += _string_bytes(part)
        elif isinstance(part, File):
            with suppress(OSError, ValueError):  # said by who reads it
                files += Path(part.path).stat().st_size
        solved += ORDER_PARTS if isinstance(part, Order) else isinstance(part, Entropy | Pos | Matched)
    return RecipePrice(captured, solved, strings, files)


def _string_bytes(asked: Strings) -> int:
    behind = text_tokens(asked.request) + TEMPLATE_TOKENS
    responses = [text_tokens(prefix) for prefix in asked.response]
    outcomes = sum(text_tokens(text) for text in asked.texts)
    # Each response stands behind the request, each outcome behind the request and the first response; the tree of
    # tokens stands behind every response.
    read = len(responses) * behind + sum(responses) + len(asked.texts) * (behind + responses[0]) + outcomes
    return read + len(responses) * outcomes


def text_tokens(text: str) -> int:
    """Tokens that a text has at most: its bytes in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


@dataclass(frozen=True)
class RunPrice:
    """What a run costs, of any model."""

    restarts: int
    steps: int
    evaluations: int
    """Prompts scored for each restart."""
    tuned_tokens: int
    """Of the prompt; its fixed text comes on top."""


def price_run(config: TuneConfig) -> RunPrice:
    """The price of a run."""
    slots = config.parsed_slots()
    tuned = slots.free("soft") + slots.free("hard")
    return RunPrice(config.restarts, config.most_steps, config.most_evaluations, tuned)


def price_scoring(parameters: int, vocab_size: int, length: int) -> float:
    """Teraflops of running every token of a vocabulary through a model: two for each parameter and position."""
    return 2e-12 * parameters * vocab_size * length
