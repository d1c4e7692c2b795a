"""What the page shows of a target before anything is tuned."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from html import escape

import torch

from dpexplore.models import LanguageModel
from dpexplore.targets import Target
from dpexplore.ui.markup import bar, message, probability, token
from dpexplore.ui.streams import RankStream

SHOWN_TOKENS = 8


@dataclass(frozen=True)
class Preview:
    stream: str
    """The rank chart's stream."""
    tokens: str
    """The most probable tokens, as HTML."""
    facts: str
    """Entropy and what it means, as HTML."""


def preview(lm: LanguageModel, target: Target) -> Preview:
    """Rank against probability, the top tokens, the entropy in bits and nats."""
    name = hashlib.sha256(f"{lm.identity} {target.recipe}".encode()).hexdigest()[:12]
    stream = RankStream(name, target.probs.numpy(), lm.token_text).text
    return Preview(stream, tokens_html(lm, target), facts_html(target))


def tokens_html(lm: LanguageModel, target: Target) -> str:
    values, ids = torch.topk(target.probs, min(SHOWN_TOKENS, target.vocab_size))
    top = float(values[0])
    rows = "".join(
        f"<li>{token(lm.token_text(int(i)))}{bar(p / top, 'target')}<b>{probability(p)}</b></li>"
        for p, i in zip(values.tolist(), ids.tolist(), strict=True)
        if p > 0
    )
    return f"<ol class='dpx-top' aria-label='Most probable tokens of the target'>{rows}</ol>"


def facts_html(target: Target) -> str:
    bits, nats = target.entropy_bits, target.entropy_nats
    choices = 2**bits
    among = f"{choices:,.0f}" if choices >= 10 else f"{choices:.2f}".rstrip("0").rstrip(".")
    warnings = "".join(message(str(text), "error") for text in target.provenance.get("warnings", []))
    return (
        f"<p class='dpx-facts-line'><b data-bits='{bits:.6f}'>{bits:.2f} bits</b> = <b>{nats:.2f} nats</b>, "
        f"a fair choice of <b>{escape(among)}</b></p>{warnings}"
    )
