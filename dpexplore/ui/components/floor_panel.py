"""Why can't it get closer? The certified floor, the gap ladder, the tokens behind it, the floor curve of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from dpexplore.floor import FloorResult
from dpexplore.floor.over_entropies import KINDS, floor_curve
from dpexplore.models import LanguageModel
from dpexplore.plots import FloorPoint, figure_json, token_shares
from dpexplore.plots import floor_curve as floor_figure
from dpexplore.serving.app_context import AppContext, sentence
from dpexplore.targets import Target
from dpexplore.tuning.record.bounds import bounds_sentence
from dpexplore.tuning.single_token import best_single_token, is_known, score_tokens
from dpexplore.ui.components.markup import bar, message, probability, progress_bar, quantity, table, token
from dpexplore.ui.components.preview import shape_name
from dpexplore.ui.components.target_panel import QUIET, TargetPanel
from dpexplore.ui.components.widgets import card_title, chart, view
from dpexplore.ui.visitor import session_of

SCORING = "single-token scoring"
"""Queue of everything that runs a whole vocabulary through a model."""
SINGLE = "hard, one token (exact)"
NEGLIGIBLE_NATS = 5e-3
"""A floor below this is shown as none: it would round to 0.00."""
CURVE_POINTS = 24


@dataclass(frozen=True)
class FloorPanel:
    sentence: gr.HTML
    ladder: gr.HTML
    why: gr.HTML
    draw: gr.Button
    score: gr.Button
    progress: gr.HTML
    curve: gr.HTML


def floor_sentence(floor: FloorResult) -> str:
    """The certificate in words."""
    bound = max(floor.lower_bound_nats, 0.0)
    data = f"data-floor='{bound:.6f}'"
    if bound < NEGLIGIBLE_NATS:
        return (
            f"<p class='dpx-floor is-free' {data}>This model's head can say this target: its floor is "
            f"<b>{quantity(bound, 'kl')}</b>. What remains after tuning is the Transformer's and the search's.</p>"
        )
    return (
        f"<p class='dpx-floor' {data}>No prompt, of any length, can bring this model closer than "
        f"<b>{quantity(bound, 'kl')}</b> to this target (certified).</p>"
    )


def rising_sentence(bound_nats: float) -> str:
    """What is certified so far, while the floor is still being computed."""
    if bound_nats < NEGLIGIBLE_NATS:
        return message("Computing the certified floor …", "busy")
    return (
        f"<p class='dpx-floor' data-moving data-rising='{bound_nats:.6f}'>At least <b>{quantity(bound_nats, 'kl')}</b> "
        "from this target, whatever the prompt (certified so far)</p>"
    )


def ladder_html(floor: FloorResult, tuned: dict[str, float], single_token_nats: float | None = None) -> str:
    """The gap ladder from the bottom up; `tuned` are the session's best KLs in nats for this target, by method.

    single_token_nats: of the best prompt of one token, where every token has been scored.
    """
    rungs: list[tuple[str, str, float]] = []
    if floor.unconstrained_kl_nats is not None:
        bottleneck = min(floor.unconstrained_kl_nats, floor.kl_nats)
        rungs.append(("softmax bottleneck", "floor", bottleneck))
    rungs.append(("final norm: certified floor", "floor", max(floor.lower_bound_nats, 0.0)))
    if floor.head_optimum_nats is not None:
        rungs.append(("head optimum (estimate)", "head", floor.head_optimum_nats))
    reached = tuned if single_token_nats is None else {**tuned, SINGLE: single_token_nats}
    rungs += [(name, "achieved", reached[name]) for name in sorted(reached, key=_place)]
    top = max(max(nats for _, _, nats in rungs), 10 * NEGLIGIBLE_NATS)
    goal = min((nats for name, nats in tuned.items() if name != "re-encoded"), default=None)
    rows = "".join(
        f"<li><span>{name}</span>{bar(nats / top, role)}<b>{quantity(nats, 'kl')}</b>"
        f"<small>{f'{min(nats / goal, 1):.0%}' if goal and role != 'achieved' else ''}</small></li>"
        for name, role, nats in rungs
    )
    share = "<p class='dpx-note'>Per cent: how much of your best KL lies below that rung.</p>" if goal else ""
    closed = bounds_sentence(floor.lower_bound_nats, goal) if goal is not None else None
    bounds = f"<p class='dpx-note' id='bounds'>{closed}</p>" if closed else ""
    return f"<ol class='dpx-ladder' aria-label='Gap ladder'>{rows}</ol>{bounds}{share}"


def _place(rung: str) -> tuple[int, str]:
    """Where a rung stands: the direct token, soft, soft within a norm budget, hybrid, hard, re-encoded, one token."""
    order = ("direct", "best soft", "soft within", "best hybrid", "best hard", "re-encoded", SINGLE)
    return next((i for i, start in enumerate(order) if rung.startswith(start)), len(order)), rung


def why_html(lm: LanguageModel, target: Target, floor: FloorResult) -> str:
    """Which tokens the unreachable part lies on: the floor's optimum against the target."""
    if floor.kl_nats < NEGLIGIBLE_NATS:
        return "<p class='dpx-note'>Nothing here: the head can say this target as it is.</p>"
    shares = token_shares(target.probs.numpy(), floor.log_probs.numpy(), count=10)
    top = max(max(share.target, share.achieved) for share in shares)
    rows = [
        [
            token(lm.token_text(share.token_id)),
            probability(share.target),
            bar(share.target / top, "target") + bar(share.achieved / top, "floor"),
            probability(share.achieved),
            f"{100 * share.kl_nats / floor.kl_nats:+.1f} %",
        ]
        for share in sorted(shares, key=lambda share: -share.kl_nats)
    ]
    headers = [
        ("token", "is-token"),
        ("target p", "is-num"),
        ("", "is-bars"),
        ("closest q", "is-num"),
        ("share", "is-num"),
    ]
    return table(headers, rows, "The closest the head can come, token by token, costliest first")


def follow_floor(app: AppContext, session: str, model: str, recipe: str) -> Iterator[list[Any]]:
    """Values for (sentence, ladder, why) of a recipe's floor: first that it is being worked on, then what it is."""
    if not model:
        return
    try:
        lm, target = app.pool.get(model).lm, app.target(model, recipe)
    except Exception:  # the target panel says what is wrong with the recipe
        return
    shown = app.sessions.targets_shown(session)
    # The rungs of the target before go at once: an old number beside a new target looks like its answer.
    rest: list[Any] = ["", ""]
    try:
        with closing(app.rising_floor(session, lm, target)) as rising:
            told = None
            for now in rising:
                if isinstance(now, FloorResult):
                    break
                if app.sessions.has_left(session, model, target.recipe, shown):
                    return  # a page has one answer under way, and the next target waits for it
                if now != told:
                    yield [_of(lm, target, rising_sentence(now)), *rest]
                    told, rest = now, [gr.skip(), gr.skip()]
            else:
                return
    except Exception as error:
        yield [f"<p class='dpx-floor is-none'>No floor here: {message(sentence(error))}</p>", "", ""]
        return
    floor = now
    tuned = app.sessions.tuned(session, model, target.recipe)
    single = best_single_token(lm, target).kl_nats if is_known(lm) else None
    yield [_of(lm, target, floor_sentence(floor)), ladder_html(floor, tuned, single), why_html(lm, target, floor)]


def _of(lm: LanguageModel, target: Target, told: str) -> str:
    """A sentence that says which target it is about; assets/page.js hides it beside the preview of another one."""
    recipe = escape(target.recipe, quote=True)
    return f"<div data-target='{recipe}' data-shape='{shape_name(lm, target)}'>{told}</div>"


def draw_curve(app: AppContext, session: str, model: str, recipe: str) -> Iterator[list[Any]]:
    """Values for (progress, curve): the model's floor over all entropies, one kind of target after the other."""
    families: dict[str, list[FloorPoint]] = {}
    try:
        lm = app.pool.get(model).lm
        here = _here(app, session, lm, model, recipe)
        for number, kind in enumerate(KINDS):
            yield [progress_bar(f"Floors of {kind} targets", number / len(KINDS)), gr.skip()]
            points = floor_curve(lm, kinds=[kind], points=CURVE_POINTS)[kind]
            families[kind] = [FloorPoint(p.entropy_bits, p.lower_bound_nats, p.head_optimum_nats) for p in points]
            yield [gr.skip(), figure_json(floor_figure(families, here)) + "\n"]
    except Exception as error:
        yield [message(sentence(error), "error"), gr.skip()]
        return
    yield [
        "<p class='dpx-note'>Each point is a certificate: no prompt gets below it. Kept for this model.</p>",
        gr.skip(),
    ]


def follow_scoring(app: AppContext, session: str, model: str, recipe: str) -> Iterator[list[Any]]:
    """Values for (progress, ladder): the time it takes, how far it is, then the ladder with the best single token."""
    if not model:
        yield [message("The tokens can be scored as soon as the model is ready.", "info"), gr.skip()]
        return
    try:
        lm, target = app.pool.get(model).lm, app.target(model, recipe)
        app.check_scoring(lm)
        for now in score_tokens(lm):
            left = f"{now.seconds_left:,.0f} s" if now.seconds_left < 120 else f"{now.seconds_left / 60:,.0f} min"
            yield [
                progress_bar(f"Scoring {lm.vocab_size:,} prompts of one token, about {left} left", now.share),
                gr.skip(),
            ]
        best = best_single_token(lm, target)
        floor = app.wait_for_floor(session, lm, target)
    except Exception as error:
        yield [message(sentence(error), "error"), gr.skip()]
        return
    told = (
        f"<p class='dpx-note' data-single='{best.kl_nats:.6f}'>Of all {lm.vocab_size:,} prompts of one token "
        f"{token(best.token)} comes closest: <b>{quantity(best.kl_nats, 'kl')}</b> (exact).</p>"
    )
    tuned = app.sessions.tuned(session, model, target.recipe)
    yield [told, ladder_html(floor, tuned, best.kl_nats)]


def _here(app: AppContext, session: str, lm: LanguageModel, model: str, recipe: str) -> FloorPoint | None:
    try:
        target = app.target(model, recipe)
        return FloorPoint(target.entropy_bits, app.wait_for_floor(session, lm, target).lower_bound_nats)
    except Exception:  # the curve does not need a target
        return None


def build_floor_card() -> tuple[gr.HTML, gr.HTML]:
    """The card as (sentence, ladder)."""
    told = view(message("The floor appears with the target.", "info"), live=True, elem_id="floor")
    return told, view(elem_id="ladder")


def build_why_card(told: gr.HTML, ladder: gr.HTML) -> FloorPanel:
    card_title("Why is this hard?")
    why = view("<p class='dpx-note'>The tokens that the model's head cannot serve appear here.</p>", elem_id="why")
    draw = gr.Button("Draw this model's floor over all entropies", size="sm", elem_id="draw-curve")
    score = gr.Button("Score every prompt of one token", size="sm", elem_id="score-tokens")
    progress = view(live=True, elem_id="curve-progress")
    empty = "One click: the floor at every entropy, for the paper's kinds of target. No tuning needed."
    curve = chart("figure", [("dpx-figure", "")], empty, elem_id="floor-curve")
    return FloorPanel(told, ladder, why, draw, score, progress, curve)


def wire_floor_panel(
    app: AppContext, panel: FloorPanel, target: TargetPanel, result: gr.HTML, model: gr.Textbox
) -> None:
    def follow(request: gr.Request, model: str, recipe: str) -> Iterator[list[Any]]:
        yield from follow_floor(app, session_of(app, request), model, recipe)

    def draw(request: gr.Request, model: str, recipe: str) -> Iterator[list[Any]]:
        yield from draw_curve(app, session_of(app, request), model, recipe)

    def scoring(request: gr.Request, model: str, recipe: str) -> Iterator[list[Any]]:
        yield from follow_scoring(app, session_of(app, request), model, recipe)

    shown = [panel.sentence, panel.ladder, panel.why]
    # A new preview is a new target; a finished run is a new rung of the ladder.
    gr.on([target.chart.change, result.change], follow, [model, target.recipe], shown, **QUIET)
    panel.draw.click(
        draw,
        [model, target.recipe],
        [panel.progress, panel.curve],
        show_progress="hidden",
        concurrency_limit=2,
        api_visibility="private",
    )
    panel.score.click(
        scoring,
        [model, target.recipe],
        [panel.progress, panel.ladder],
        show_progress="hidden",
        concurrency_id=SCORING,
        concurrency_limit=1,
        api_visibility="private",
    )
