"""Ways to a target over strings, as a person sees them: lines over the steps, bars over the outcomes, answers."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate
from textwrap import shorten
from typing import Any

import plotly.graph_objects as go
from torch import Tensor

from dpexplore.diffuse.report import Answers
from dpexplore.errors import InputError
from dpexplore.experiments.drawing import ON_DARK
from dpexplore.plots import DASHES, NATS_PER_BIT, base_layout, colour, figure_json
from dpexplore.targets import Strings, StringTarget
from dpexplore.targets.strings import OTHER
from dpexplore.ui.components.markup import bar, message, probability, quantity, table, token

WAYS = {"alone": ("request alone", "restart"), "prompt": ("tuned prompt", "achieved"), "lora": ("LoRA", "adapter")}
"""Each way's name and the role whose colour it has."""
UNITS = {"prompt": "step", "lora": "pass"}
"""What each way that moves counts."""
BARS_SECONDS = 1.0
BARS_A_SECOND = 500
"""The bars of a moving way are redrawn after a second, later where there are more outcomes than these."""
SHOWN_REQUEST = 80
"""Characters of a request that a line names."""
SHOWN_ANSWERS = 24
SHOWN_CHARACTERS = 480
"""Of all the answers of a way together: many short ones, or a few long ones."""
EMPTY_BARS = "<p class='dpx-empty-card'>Press Run: how probable each way makes each outcome, beside the target.</p>"
EMPTY_ANSWERS = (
    "<p class='dpx-empty-card'>Press Run: what the model answers to the request as it is, with the tuned prompt, and "
    "with LoRA.</p>"
)
ANSWERS_NOTE = (
    "<p class='dpx-note'>The first answers that were drawn, at temperature 1 from all tokens; one much longer than "
    "every outcome is cut. A dashed frame: no valid outcome.</p>"
)
_BREAK = "<i>↵</i> "


@dataclass
class Way:
    """One way to the target: its course, and what came of it."""

    steps: list[int] = field(default_factory=list)
    cross_entropy_nats: list[float] = field(default_factory=list)
    latest: Tensor | None = None
    """The outcomes' probabilities `(outcomes,)` while it moves, as its run has met them; NaN for those it has not."""
    answers: Answers | None = None
    perplexity: float | None = None
    """Of the held-out text afterwards; None where the weights are as they were."""
    note: str = ""
    """How it ended, and what it cost."""

    @property
    def probabilities(self) -> Tensor | None:
        """The outcomes' `(outcomes,)`, exact once the way has ended; None before there are any."""
        return self.latest if self.answers is None else self.answers.fit.probabilities


@dataclass
class Course:
    """All that a page has seen of one target, by way."""

    target: StringTarget
    ways: dict[str, Way] = field(default_factory=dict)
    perplexity_before: float | None = None
    archive: str | None = None
    """Path of the packed adapter, once there is one."""

    def seen(self) -> list[tuple[str, Way]]:
        """The ways so far, in the order in which they are always shown."""
        return [(key, self.ways[key]) for key in WAYS if key in self.ways]


def course_chart(course: Course) -> str:
    """Cross-entropy by step of every way, with its floor, as a line for the `figure` chart."""
    figure = go.Figure(layout=base_layout("", "step of the prompt, pass of LoRA", "cross-entropy (nats)"))
    last = max([way.steps[-1] for way in course.ways.values() if way.steps], default=10)
    floor = course.target.entropy_nats

    def level(y: float, role: str, name: str) -> None:
        line = {"color": colour(role), "width": 2, "dash": DASHES[role]}
        hover = f"{name}: {y:.4f} nats<extra></extra>"
        figure.add_scatter(x=[0, last], y=[y, y], mode="lines", line=line, hovertemplate=hover)

    level(floor, "floor", "floor H(w)")
    for key, way in course.seen():
        name, role = WAYS[key]
        if key == "alone" and way.answers is not None:
            level(way.answers.fit.cross_entropy_nats, role, name)
        elif way.steps:
            figure.add_scatter(
                x=way.steps,
                y=way.cross_entropy_nats,
                mode="lines" if len(way.steps) > 1 else "markers",
                line={"color": colour(role), "width": 3, "dash": DASHES[role]},
                hovertemplate=f"{name}, %{{x}}: %{{y:.4f}} nats<extra></extra>",
            )
    figure.add_annotation(
        text=f"floor H(w): {floor:.3f} nats = {floor / NATS_PER_BIT:.2f} bits",
        x=1,
        xref="paper",
        xanchor="right",
        y=floor,
        yanchor="top",  # nothing is drawn below the floor
        showarrow=False,
    )
    figure.update_layout(
        showlegend=False, margin={"l": 52, "r": 12, "t": 8, "b": 40}, uirevision="course", meta={"dark": ON_DARK}
    )
    return figure_json(figure) + "\n"


class Pictures:
    """What is drawn of a course. A way that moves costs a line at every look, and now and then its bars."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._ended = -1
        self._drawn = 0.0

    def draw(self) -> list[str]:
        """The chart, the bars and the answers as they stand."""
        ended = sum(way.answers is not None for way in self._course.ways.values())
        pause = max(BARS_SECONDS, len(self._course.target.outcomes) / BARS_A_SECOND)
        if ended > self._ended or time.monotonic() - self._drawn >= pause:
            self._bars, self._drawn = bars_html(self._course), time.monotonic()
        if ended > self._ended:
            self._answers, self._ended = answers_html(self._course), ended
        return [course_chart(self._course), self._bars, self._answers]


def live_line(course: Course, key: str, most: int) -> str:
    """Progress of a moving way, in steps out of at most `most`."""
    way, name = course.ways[key], WAYS[key][0]
    name = name[0].upper() + name[1:]
    if not way.steps or way.latest is None:
        return message(f"{name}: preparing the first {UNITS[key]}", "busy")
    kl = way.cross_entropy_nats[-1] - course.target.entropy_nats
    least = "at least " if way.latest.isnan().any() else ""
    return (
        f"<p class='dpx-message is-busy' data-moving data-way='{key}'><b>{escape(name)}</b> · {UNITS[key]} "
        f"{way.steps[-1]:,} of {most:,} · KL to the target {quantity(kl, 'kl', 4)} · "
        f"valid answers {least}{float(way.latest.nansum()):.2%}</p>"
    )


def ended_line(course: Course, word: str) -> str:
    """What every way came to."""
    seen = [(WAYS[key][0], way.answers) for key, way in course.seen()]
    parts = [f"{name} {quantity(answers.fit.kl_nats, 'kl', 4)}" for name, answers in seen if answers]
    return f"<p class='dpx-message is-ready' data-done='1'>{word}. KL to the target: {', '.join(parts)}.</p>"


def origin_line(asked: Strings, model: str) -> str:
    """Says that what is shown belongs to another target, or another model, than those chosen now."""
    first = ", ".join(token(text) for text in asked.texts[:3])
    more = ", …" if len(asked.texts) > 3 else ""
    request = shorten(asked.request, SHOWN_REQUEST, placeholder=" …")
    return (
        f"<p class='dpx-note' data-earlier>The results below are of an earlier target: {len(asked.texts):,} outcomes "
        f"({first}{more}) of “{escape(request)}” on {escape(model)}. Press Run for the one chosen now.</p>"
    )


def bars_html(course: Course) -> str:
    """Target against achieved over whole strings, one row for each outcome; the bars' scale leaves all else out."""
    ways = [(key, way.probabilities.tolist()) for key, way in course.seen() if way.probabilities is not None]
    if not ways:
        return EMPTY_BARS
    weights = [*course.target.weights.tolist(), 0.0]
    columns = [("target", weights)]
    columns += [(WAYS[key][1], [*found, _all_else(found)]) for key, found in ways]
    top = max(1e-12, *(share for _, shares in columns for share in shares[:-1] if not math.isnan(share)))
    rows = []
    for i, text in enumerate([*course.target.outcomes, OTHER]):
        bars = "" if text == OTHER else "".join(_bar(shares[i] / top, role) for role, shares in columns)
        name = f"<i>{escape(text)}</i>" if text == OTHER else token(text)
        rows.append([name, probability(weights[i]), bars, *(_share(shares[i]) for _, shares in columns[1:])])
    headers = [("outcome", "is-token"), ("target w", "is-num"), ("", "is-bars")]
    headers += [(WAYS[key][0], "is-num") for key, _ in ways]
    return table(headers, rows, "Probability of whole strings, the end of the answer included")


def _all_else(found: list[float]) -> float:
    """What is left to 1; NaN where an outcome's probability is not known."""
    left = 1 - sum(found)
    return left if math.isnan(left) else max(0.0, left)


def _share(value: float) -> str:
    return "–" if math.isnan(value) else probability(value)


def _bar(share: float, role: str) -> str:
    return bar(0.0 if math.isnan(share) else share, role)


def answers_html(course: Course) -> str:
    """Each way's figures and some of its answers."""
    answers = [_way_html(course, key, way) for key, way in course.seen() if way.answers is not None]
    return f"<div class='dpx-ways'>{''.join(answers)}</div>{ANSWERS_NOTE}" if answers else EMPTY_ANSWERS


def _way_html(course: Course, key: str, way: Way) -> str:
    assert way.answers is not None
    fit, facts = way.answers.fit, way.answers.facts
    name, role = WAYS[key]
    numbers: list[tuple[str, str]] = [
        ("KL to the target", quantity(fit.kl_nats, "kl", 4)),
        ("probability of a valid answer", f"{fit.valid_mass:.2%}"),
    ]
    if facts is not None:
        numbers.append(("entropy of the answers drawn", quantity(facts.entropy_nats, "h")))
        numbers += [
            (f"different valid ones in {n} <small>(coverage-{n})</small>", f"{value:.1f}")
            for n, value in facts.coverage.items()
        ]
        numbers.append(("invalid answers drawn", f"{facts.invalid_share:.1%}"))
        if (course.target.weights == 0).any():
            numbers.append(("valid, never trained on", str(facts.unseen)))
        if facts.biographies is not None:
            found = facts.biographies
            numbers += [
                ("sketches in the form asked for", str(found.sketches)),
                ("different first names in them", str(found.first_names)),
                ("different places of birth", str(found.birth_places)),
                ("different careers", str(found.careers)),
            ]
    if course.perplexity_before is not None:
        after = course.perplexity_before if way.perplexity is None else way.perplexity
        numbers.append(("perplexity of held-out text", f"{after:.2f}"))
    listed = "".join(f"<dt>{what}</dt><dd>{number}</dd>" for what, number in numbers)
    valid = set(course.target.outcomes)
    shown = "".join(
        f"<li class='{'' if text in valid else 'is-invalid'}'>{escape(text).replace(chr(10), _BREAK)}</li>"
        for text in _first(way.answers.samples)
    )
    note = f"<p class='dpx-note'>{escape(way.note)}</p>" if way.note else ""
    return (
        f"<section class='dpx-way is-{role}' data-way='{key}' data-kl='{fit.kl_nats:.6f}'>"
        f"<div><h3>{escape(name)}</h3><dl>{listed}</dl>{note}</div>"
        f"<ul class='dpx-answers' aria-label='Answers: {escape(name)}'>{shown}</ul></section>"
    )


def _first(samples: list[str]) -> list[str]:
    """As many of the first answers as there is room for."""
    ends = accumulate(len(text) for text in samples[:SHOWN_ANSWERS])
    return samples[: max(1, sum(end <= SHOWN_CHARACTERS for end in ends))]


def facts_html(target: StringTarget) -> str:
    """What a target asks for, in one line."""
    count, asked = len(target.outcomes), int((target.weights > 0).sum())
    kept = f", {count - asked} of them valid but not asked for" if asked < count else ""
    return (
        f"<p class='dpx-facts-line' data-outcomes='{count}'><b>{count}</b> outcomes{kept} · floor H(w) "
        f"<b>{quantity(target.entropy_nats, 'h')}</b> · {len(target.request_ids)} tokens of the request and "
        f"{len(target.tree.inputs)} of the answers in one pass</p>"
    )


def write_lines(outcomes: tuple[tuple[str, float], ...]) -> str:
    """Outcomes as lines to edit: the text alone for weight 1, else in quotes with its weight."""
    return "\n".join(_line(text, weight) for text, weight in outcomes)


def write_prefixes(response: tuple[str, ...]) -> str:
    """What the answer begins with as lines to edit; nothing for the one empty prefix."""
    return "" if response == ("",) else "\n".join(_text(prefix) for prefix in response)


def read_prefixes(lines: str) -> tuple[str, ...]:
    """What `write_prefixes` writes. InputError for a weight: each prefix is as likely as the others."""
    read = read_lines(lines)
    for prefix, weight in read:
        if weight != 1:
            raise InputError(f"The beginning {prefix!r} has the weight {weight:g}; only outcomes take a weight.")
    return tuple(prefix for prefix, _ in read) or ("",)


def _line(text: str, weight: float) -> str:
    return _text(text) if weight == 1 else f"{json.dumps(text, ensure_ascii=False)} {weight:g}"


def _text(text: str) -> str:
    """A text as one line: as it is, or in quotes where that would not be read back."""
    plain = text != "" and text == text.strip() and text.isprintable() and not text.startswith('"')
    return text if plain else json.dumps(text, ensure_ascii=False)


def read_lines(lines: str) -> list[tuple[str, float]]:
    """What `write_lines` writes, blank lines left out. A line in quotes is JSON, a weight may follow."""
    read: list[tuple[str, float]] = []
    decoder: Any = json.JSONDecoder()
    for line in lines.split("\n"):
        text = line.strip()
        if not text:
            continue
        try:
            name, end = decoder.raw_decode(text) if text.startswith('"') else (text, len(text))
            weight = float(text[end:] or 1)
        except ValueError:
            name, weight = text, 1.0
        read.append((name, weight))
    return read
