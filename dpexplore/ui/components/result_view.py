"""A finished run, as a person reads it: the prompt found, how good it is, where the rest of the loss lies."""

from __future__ import annotations

import json
import math
import re
from html import escape

import numpy as np

from dpexplore.files import write_file
from dpexplore.models import LanguageModel
from dpexplore.serving.uploads import download_folder
from dpexplore.targets import Target
from dpexplore.tuning import TuneResult
from dpexplore.tuning.record.build import nearest_tokens
from dpexplore.tuning.record.steps import NearestToken
from dpexplore.ui.components.markup import message, quantity, token

STATUS_TEXT = {
    "converged": "converged: no restart improved any more",
    "max_steps": "all steps used",
    "cancelled": "stopped; this is the best so far",
    "nonfinite": "no restart stayed finite",
}
EMPTY_RESULT = (
    "<p class='dpx-empty-card'>The prompt that is found appears here: its tokens, the text to copy, "
    "how far it came. Press an example above, or set a target and press <b>Tune</b>.</p>"
)


def result_html(lm: LanguageModel, target: Target, result: TuneResult) -> str:
    """Everything about the best prompt but its tokens under the microscope."""
    return (
        f"<div class='dpx-result' data-status='{result.status}' data-kl='{result.kl_nats:.6f}'>"
        f"{_headline(target, result)}{_bounds(result)}{_prompt(lm, result)}{_spread(result)}{_distances(result)}</div>"
    )


def capsule_file(result: TuneResult) -> str:
    """The run's capsule as a file to download; its name tells model, method and KL."""
    capsule = result.capsule
    label = f"dpexplore-{capsule['model']['name']}-{capsule['config']['method']}-{result.kl_nats:.3f}nats"
    folder = download_folder()
    path = folder / (re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")[:100] + ".json")
    write_file(path, json.dumps(capsule, indent=1, ensure_ascii=False))
    return str(path)


def _headline(target: Target, result: TuneResult) -> str:
    hard = result.prompt_ids is not None
    facts = [
        (
            f"<b class='is-achieved'>{quantity(result.kl_nats, 'kl', 3)}</b>",
            f"KL(p‖q) {'at the ids' if hard else 're-scored'}",
        )
    ]
    if hard:
        facts.append(_round_trip(result))
    facts.append(
        (f"<b>{quantity(result.entropy_nats, 'h')}</b>", f"entropy of q; target {quantity(target.entropy_nats, 'h')}")
    )
    facts.append((f"<b>{result.steps} steps</b>", f"{result.seconds:.1f} s; {STATUS_TEXT[result.status]}"))
    return (
        "<div class='dpx-facts'>"
        + "".join(f"<div>{number}<span>{what}</span></div>" for number, what in facts)
        + "</div>"
    )


def _bounds(result: TuneResult) -> str:
    """What a direct run knows of all other prompts, and why its token did not reach the head's optimum."""
    notes = [note for note in (result.bounds_sentence, result.bounds.note) if note]
    return "".join(f"<p class='dpx-note' data-bounds>{escape(note)}</p>" for note in notes)


def _round_trip(result: TuneResult) -> tuple[str, str]:
    if result.kl_reencoded_nats is None:
        return "<b>none</b>", "re-encoded <em class='dpx-badge is-bad'>the text cannot be encoded</em>"
    survives = abs(result.kl_reencoded_nats - result.kl_nats) < 1e-3
    badge = "is-good'>✓ survives copying" if survives else "is-bad'>⚠ changes when copied"
    return f"<b>{quantity(result.kl_reencoded_nats, 'kl', 3)}</b>", f"re-encoded <em class='dpx-badge {badge}</em>"


def _prompt(lm: LanguageModel, result: TuneResult) -> str:
    if result.prompt_ids is not None:
        chips = "".join(
            f"<li class='dpx-chip' title='token id {i}'>{token(lm.token_text(i))}<small>{i}</small></li>"
            for i in result.prompt_ids
        )
        text = result.prompt_text or ""
        return (
            f"<ol class='dpx-chips' data-ids='{result.prompt_ids}' aria-label='The prompt, token by token'>{chips}</ol>"
            f"<div class='dpx-copy'><code id='dpx-prompt-text'>{escape(text)}</code>"
            f"<button type='button' data-copy=\"{escape(text)}\">Copy text</button>"
            f"<button type='button' data-copy='{result.prompt_ids}'>Copy ids</button></div>"
        )
    # Between soft tokens stand fixed and hard ones: their embedding is a token's own.
    own = nearest_tokens(lm, result.prompt_embeds, 1) if None in result.nearest else []
    chips = "".join(
        _soft_chip(near) if near else _exact_chip(own[position]) for position, near in enumerate(result.nearest)
    )
    return (
        f"<ol class='dpx-chips is-soft' aria-label='The prompt, position by position'>{chips}</ol>"
        "<p class='dpx-note'>Soft tokens are free vectors. The words are their nearest vocabulary tokens with the "
        "cosine between them: a reading aid, not a prompt you could type.</p>"
    )


def _exact_chip(own: list[NearestToken]) -> str:
    if not own or own[0].cosine < 0.999:  # a special token
        return "<li class='dpx-chip is-exact'>special</li>"
    return f"<li class='dpx-chip is-exact'>{token(own[0].token)}<small>{own[0].token_id}</small></li>"


def _soft_chip(near: list[NearestToken]) -> str:
    first, *others = near
    rest = "".join(f"<span>{token(item.token)} <small>{item.cosine:.2f}</small></span>" for item in others[:2])
    return (
        f"<li class='dpx-chip'><span>{token(first.token)} <small>cos {first.cosine:.2f}</small></span>"
        f"<span class='dpx-others'>{rest}</span></li>"
    )


def _distances(result: TuneResult) -> str:
    """The other distances between p and q, and a word where the model's precision moves the KL."""
    reverse, js = result.distances["reverse_kl"], result.distances["js"]
    back = quantity(reverse, "kl") if math.isfinite(reverse) else "infinite: the target excludes tokens"
    minimised = "" if result.objective == "kl" else f" Minimised: {escape(result.objective)}."
    warning = message(result.precision_warning, "error") if result.precision_warning else ""
    return (
        f"<p class='dpx-note'>KL(q‖p) {back} · Jensen-Shannon {quantity(js, 'kl')} · total variation "
        f"{result.distances['tv']:.2f} of 1 · {result.top_overlap:.0%} of p’s top ten in q’s.{minimised}</p>{warning}"
    )


def _spread(result: TuneResult) -> str:
    values = [value for value in result.kl_nats_per_restart if value is not None]
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    width = max(high - low, 1e-9)
    dots = "".join(
        f"<i class='{'is-best' if i == result.best_restart else ''}' "
        f"style='left:{100 * (value - low) / width:.1f}%'></i>"
        for i, value in enumerate(result.kl_nats_per_restart)
        if value is not None
    )
    return (
        f"<div class='dpx-spread'><span>{len(values)} restarts: best {quantity(low, 'kl')}, mean "
        f"{quantity(float(np.mean(values)), 'kl')}, worst {quantity(high, 'kl')}</span>"
        f"<div aria-hidden='true'>{dots}</div></div>"
    )
