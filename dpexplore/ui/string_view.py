"""Ways to a target over strings, as a person sees them: lines over the steps, bars over the outcomes, answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from dpexplore.diffuse.report import Answers
from dpexplore.errors import InputError
from dpexplore.experiments.drawing import ON_DARK
from dpexplore.plots import DASHES, NATS_PER_BIT, base_layout, colour, figure_json
from dpexplore.targets import StringTarget
from dpexplore.targets.strings import OTHER
from dpexplore.ui.markup import bar, probability, quantity, table, token

WAYS = {"alone": ("request alone", "restart"), "prompt": ("tuned prompt", "achieved"), "lora": ("LoRA", "adapter")}
"""Each way's name and the role whose colour it has."""
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
    told: Answers | None = None
    perplexity: float | None = None
    """Of the held-out text afterwards; None where the weights are as they were."""
    note: str = ""
    """How it ended, and what it cost."""


@dataclass
class Course:
    """All that a page has seen of one target, by way."""

    target: StringTarget
    ways: dict[str, Way] = field(default_factory=dict)
    perplexity_before: float | None = None

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
        if key == "alone" and way.told is not None:
            level(way.told.fit.cross_entropy_nats, role, name)
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


def bars_html(course: Course) -> str:
    """Target against achieved over whole strings, one row for each outcome; the bars' scale leaves all else out."""
    ways = [(key, way) for key, way in course.seen() if way.told is not None]
    if not ways:
        return EMPTY_BARS
    weights = [*course.target.weights.tolist(), 0.0]
    columns = [("target", weights)]
    for key, way in ways:
        assert way.told is not None
        found = way.told.fit.probabilities.tolist()
        columns.append((WAYS[key][1], [*found, max(0.0, 1 - sum(found))]))
    top = max(1e-12, *(max(shares[:-1]) for _, shares in columns))
    rows = []
    for i, text in enumerate([*course.target.outcomes, OTHER]):
        bars = "" if text == OTHER else "".join(bar(shares[i] / top, role) for role, shares in columns)
        name = f"<i>{escape(text)}</i>" if text == OTHER else token(text)
        rows.append([name, probability(weights[i]), bars, *(probability(shares[i]) for _, shares in columns[1:])])
    headers = [("outcome", "is-token"), ("target w", "is-num"), ("", "is-bars")]
    headers += [(WAYS[key][0], "is-num") for key, _ in ways]
    return table(headers, rows, "Probability of whole strings, the end of the answer included")


def answers_html(course: Course) -> str:
    """Each way's figures and some of its answers."""
    told = [_way_html(course, key, way) for key, way in course.seen() if way.told is not None]
    return f"<div class='dpx-ways'>{''.join(told)}</div>{ANSWERS_NOTE}" if told else EMPTY_ANSWERS


def _way_html(course: Course, key: str, way: Way) -> str:
    assert way.told is not None
    fit, facts = way.told.fit, way.told.facts
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
        for text in _first(way.told.samples)
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
