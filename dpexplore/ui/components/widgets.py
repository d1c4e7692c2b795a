"""The page's own components, all on `gr.HTML`: streaming charts and escaped markup."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from dpexplore.ui.theme import script_tags


def scripted(script: str, value: str, template: str, *, tells: bool = False, **settings: Any) -> gr.HTML:
    """HTML that a function of assets/*.js draws and listens to, called with (element, props, watch).

    With `tells` it gets a fourth argument, by which it tells the server something: the data of an `input` event, or of
    the event that it names.
    """
    tell = ", (data, event = 'input') => trigger(event, data)" if tells else ""
    call = f"window.{script}(element, props, watch{tell});"
    return gr.HTML(
        value, html_template=template, js_on_load=call, head=script_tags(), apply_default_css=False, **settings
    )


def view(value: str = "", *, live: bool = False, **settings: Any) -> gr.HTML:
    """HTML made on the server from escaped text.

    Unlike `gr.HTML` as it comes, no template runs over the value, so a token such as `${x}` or `{{x}}` stays what it
    is. `live`: screen readers announce changes, but not while the value carries `data-moving`, which changes several
    times a second.
    """
    region = " role='status' aria-live='polite'" if live else ""
    template = f"<div class='dpx-view'{region}></div>"
    return scripted("dpxView", value, template, **settings)


def sliders(**settings: Any) -> gr.HTML:
    """A list of weights as bars that can be dragged or nudged; its `input` event tells `index` and `weight`."""
    template = "<div class='dpx-sliders'></div>"
    return scripted("dpxSliders", "[]", template, tells=True, **settings)


def slot_chips(value: str, **settings: Any) -> gr.HTML:
    """A prompt's slots as chips to edit; its `input` event tells `items`, as `components.settings` reads them."""
    template = "<div class='dpx-slots'></div>"
    return scripted("dpxSlots", value, template, tells=True, **settings)


def microscope(empty: str, **settings: Any) -> gr.HTML:
    """Tokens that a divergence comes from, to follow through the run; see `components.microscope` for the value."""
    template = f"<div class='dpx-microscope is-empty'><p class='dpx-empty-card'>{escape(empty)}</p></div>"
    return scripted("dpxMicroscope", "", template, **settings)


def triangle_picture(**settings: Any) -> gr.HTML:
    """Three words in their triangle (`dpexplore.serving.words`); its `input` event tells `ids` and `shares`."""
    template = "<div class='dpx-triangle'></div>"
    return scripted("dpxTriangle", "", template, tells=True, **settings)


def chart(kind: str, panes: list[tuple[str, str]], empty: str, *, under: str = "", **settings: Any) -> gr.HTML:
    """A chart whose value is newline-delimited JSON; see `dpexplore.serving.streams` for the lines.

    `kind` is what assets/charts.js calls it; `panes` are (class of the plot, its caption as HTML);
    `empty` is the sentence shown while there is nothing to draw, `under` HTML below the plots.
    (Functions, not subclasses of `gr.HTML`: Gradio writes a .pyi file beside every module that defines a component
    class.)
    """
    plots = "".join(
        f"<figure class='dpx-pane'><figcaption>{caption}</figcaption><div class='{name}'></div></figure>"
        if caption
        else f"<div class='dpx-pane'><div class='{name}'></div></div>"
        for name, caption in panes
    )
    template = (
        f"<div class='dpx-chart is-empty' data-chart='{kind}' data-points='0'>{plots}"
        f"<p class='dpx-empty'>{escape(empty)}</p>{under}</div>"
    )
    return scripted("dpxCharts.mount", "", template, **settings)


SCRUBBER = (
    "<div class='dpx-scrub' hidden><button type='button' aria-label='Play the run again'>▶</button>"
    "<input type='range' min='0' max='0' value='0' aria-label='Recorded step'><output></output></div>"
)
"""Takes a rank chart back to any recorded step; assets/charts.js moves it."""


def segmented(label: str, options: list[tuple[str, str]], attribute: str, pressed: str) -> str:
    """A row of buttons of which one is pressed; assets/page.js acts on `data-<attribute>`."""
    buttons = "".join(
        f"<button type='button' data-{attribute}='{escape(value)}' aria-pressed='{str(value == pressed).lower()}'>"
        f"{escape(text)}</button>"
        for text, value in options
    )
    return f"<div class='dpx-segmented' role='group' aria-label='{escape(label)}'>{buttons}</div>"


def axis_switch(label: str, attribute: str, first: str = "linear") -> str:
    """Linear or logarithmic; `attribute` is a chart's `<elem_id>:<data attribute>` that assets/charts.js reads."""
    options = [(scale, f"{attribute}:{scale}") for scale in ("linear", "log")]
    return segmented(label, options, "switch", f"{attribute}:{first}")


def card_title(title: str, extras: str = "") -> gr.HTML:
    """A card's heading with its legend and switches."""
    return view(f"<div class='dpx-card-title'><h2>{escape(title)}</h2>{extras}</div>")


def legend(roles: list[tuple[str, str]]) -> str:
    """What the colours of a chart mean; `roles` are (role, words)."""
    entries = "".join(
        f"<span><i style='border-color:var(--dpx-{role})'></i>{escape(words)}</span>" for role, words in roles
    )
    return f"<span class='dpx-legend'>{entries}</span>"
