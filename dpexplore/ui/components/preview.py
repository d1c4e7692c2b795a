"""What the page shows of a target before anything is tuned."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.serving.app_context import AppContext, check_single_tokens, sentence
from dpexplore.serving.streams import RankStream
from dpexplore.targets import (
    Target,
    outlier_mass,
    outlier_range,
    pos_histogram,
    pos_left_out,
    search_tokens,
    token_name,
    top_tokens,
)
from dpexplore.ui.components.markup import bar, message, probability, token
from dpexplore.ui.components.recipes import mass_of, read_weights, token_value

SHOWN_TOKENS = 8
MOST_MATCHES = 50
"""Matches of a search that are offered at once."""
PICKS_LABEL = "Chosen (none: random)"
MOST_BARS = 12
"""Weights by hand that get a bar; further ones are edited as text."""


@dataclass(frozen=True)
class Preview:
    stream: str
    """The rank chart's stream."""
    tokens: str
    """The most probable tokens, as HTML."""
    facts: str
    """Entropy and what it means, as HTML."""


def preview(lm: LanguageModel, target: Target) -> Preview:
    """Rank against probability, the top tokens, the entropy in bits and nats. InputError for targets over strings."""
    check_single_tokens(target)
    stream = RankStream(shape_name(lm, target), target.probs.numpy(), lm.token_text).text
    return Preview(stream, tokens_html(lm, target), facts_html(lm, target))


def shape_name(lm: LanguageModel, target: Target) -> str:
    """The name of a target's preview, by which a page sees whether a number is this target's."""
    return hashlib.sha256(f"{lm.identity} {target.recipe}".encode()).hexdigest()[:12]


def tokens_html(lm: LanguageModel, target: Target) -> str:
    top = [item for item in top_tokens(target, lm, SHOWN_TOKENS) if item.probability > 0]
    rows = "".join(
        f"<li>{token(item.token)}{bar(item.probability / top[0].probability, 'target')}"
        f"<b>{probability(item.probability)}</b></li>"
        for item in top
    )
    return f"<ol class='dpx-top' aria-label='Most probable tokens of the target'>{rows}</ol>"


def facts_html(lm: LanguageModel, target: Target) -> str:
    """Entropy in both units, what was lost on the way, and the prompt where it was drawn at random."""
    bits, nats = target.entropy_bits, target.entropy_nats
    choices = 2**bits
    among = f"{choices:,.0f}" if choices >= 10 else f"{choices:.2f}".rstrip("0").rstrip(".")
    warnings = "".join(message(str(text), "error") for text in target.provenance.get("warnings", []))
    moved = target.provenance.get("migration")
    if moved:
        warnings = (
            f"<p class='dpx-note'>Migrated: {moved['mass_kept']:.0%} of the probability and "
            f"{moved['tokens_kept']:.0%} of the tokens exist here.</p>{warnings}"
        )
    drawn = target.provenance.get("kind") == "random_prompt" and target.provenance.get("identity") == lm.identity
    if drawn:
        words = "".join(token(lm.token_text(i)) for i in target.provenance["prompt_ids"])
        warnings = f"<p class='dpx-note dpx-drawn'>Prompt drawn: {words}</p>{warnings}"
    return (
        f"<p class='dpx-facts-line'><b data-bits='{bits:.6f}'>{bits:.2f} bits</b> = <b>{nats:.2f} nats</b>, "
        f"a fair choice of <b>{escape(among)}</b></p>{warnings}"
    )


def outlier_line(
    app: AppContext, model: str, bits: float | None, count: float | None, picks: list[str] | None, mass_name: str
) -> Any:
    """What k outliers can hold at this entropy, and up to where they stand out (App. A)."""
    if not model or bits is None or count is None:
        return gr.skip()
    try:
        k = len(picks) if picks else int(count)
        size = app.pool.get(model).lm.vocab_size
        mass, most = outlier_mass(size, k, bits, mass_of(mass_name)), outlier_mass(size, k, bits)
        span = outlier_range(size, k)
    except Exception as error:
        return message(sentence(error), "error")
    some = "1 outlier holds" if k == 1 else f"{k} outliers hold"
    could = f" They could hold {most:.2f}, and the target would be easier to reach."
    beyond = " Above that nothing is asked of them." if bits > span.max_bits else ""
    return (
        f"<p class='dpx-note'>At {bits:.2f} bits {some} m = <b>{mass:.2f}</b> of the probability; "
        f"they stand out from 0 to {span.max_bits:.2f} bits.{beyond}{could if most > mass else ''}</p>"
    )


def token_choices(app: AppContext, model: str, query: str, picks: list[str] | None) -> Any:
    """Tokens that match, and those already chosen: never the whole vocabulary."""
    if not model:
        return gr.skip()
    lm = app.pool.get(model).lm
    kept = [(pick[1:], pick) for pick in picks or ()]
    found = [
        (f"{item.token.replace(' ', '␣')}  (id {item.token_id})", token_value(token_name(lm, item.token_id)))
        for item in search_tokens(lm, query, MOST_MATCHES)
    ]
    label = f"No token contains “{query[:20]}”" if query and not found else PICKS_LABEL
    return gr.update(choices=[*kept, *(choice for choice in found if choice[1] not in (picks or ()))], label=label)


def pos_bars(app: AppContext, model: str, tag: str, mode: str) -> Any:
    """The vocabulary's part-of-speech histogram (Fig. 12)."""
    if not model:
        return gr.skip()
    try:
        lm, way = app.pool.get(model).lm, "paper" if mode == "paper" else "strict"
        counts, out = pos_histogram(lm, way), pos_left_out(lm, way)
    except Exception as error:
        return message(sentence(error), "error")
    top = max(counts.values(), default=1)
    rows = "".join(
        f"<li class='{'is-chosen' if name == tag else ''}'><code>{escape(name)}</code>"
        f"{bar(n / top, 'target')}<b>{n:,}</b></li>"
        for name, n in list(counts.items())[:8]
    )
    reasons = " and ".join(f"{count:,} with {why}" for why, count in out.items())
    return (
        f"<ol class='dpx-top is-pos' aria-label='Tokens of each part of speech'>{rows}</ol>"
        f"<p class='dpx-note'>Tokens of letters that are left out: {reasons}.</p>"
    )


def hand_bars(lines: str) -> Any:
    """The weights as sliders, for assets/page.js: one line of JSON."""
    try:
        weights = read_weights(lines)
    except InputError:
        return gr.skip()
    return json.dumps(
        [{"token": str(token), "weight": weight} for token, weight in weights[:MOST_BARS]], ensure_ascii=False
    )
