"""Starts that make a point: one click sets the target and the method, and tunes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dpexplore.serving.app_context import AppContext
from dpexplore.ui.components.settings import CUSTOM, PRESET_FIELDS, preset_values
from dpexplore.ui.components.target_panel import QUIET, TargetPanel, read_recipe
from dpexplore.ui.components.tune_panel import TunePanel
from dpexplore.ui.components.widgets import view
from dpexplore.ui.visitor import session_of

PRESET = "fast"
FEW = {"restarts": 2, "steps": 60}
"""Enough to make the point within half a minute on two CPU cores."""


@dataclass(frozen=True)
class Example:
    key: str
    label: str
    recipe: str
    notice: str
    """What to look at, and what it says."""
    method: str = "soft"


EXAMPLES = (
    Example(
        "die",
        "A fair die",
        'tokens({"1": 1, "2": 1, "3": 1, "4": 1, "5": 1, "6": 1})',
        "Six tokens, one sixth each. Does the floor on the left stand at 0? Then nothing in the model’s last layers "
        "forbids a fair die: watch how far KL falls.",
    ),
    Example(
        "love",
        "“I love”",
        'capture("I love")',
        "What the model itself says after “I love”: the floor is 0, since a prompt for it exists. See whether free "
        "vectors find their way back, though the target is as spread out as those that fail.",
    ),
    Example(
        "shuffled",
        "“I love”, shuffled",
        'capture("I love").shuffle(seed=1)',
        "The same probabilities on other tokens, so the same entropy. Compare the floor with the example before: which "
        "tokens go together matters, not only how spread out they are.",
    ),
    Example(
        "moderate",
        "Moderate entropy",
        "entropy(bits=9, seed=0)",
        "Hundreds of arbitrary tokens at once. Compare the run with the violet floor: how much of the distance is out "
        "of reach for every prompt?",
    ),
    Example(
        "outlier",
        "One outlier",
        "entropy(bits=9, outliers=1, seed=0)",
        "The entropy of the example before, but one token stands out. Compare floor and KL with it: is a peak easier "
        "to say than a broad plateau?",
    ),
    Example(
        "uniform",
        "Near-uniform",
        "entropy(bits=15.55, seed=0)",
        "All tokens nearly alike. A hidden vector near 0 would say that, but the final norm makes every vector equally "
        "long. How far apart do floor (violet) and head optimum (green) stand?",
    ),
)


@dataclass(frozen=True)
class ExamplePanel:
    buttons: dict[str, gr.Button]
    notice: gr.HTML


def build_examples() -> ExamplePanel:
    with gr.Row(elem_id="examples"):
        buttons = {
            example.key: gr.Button(
                example.label, size="sm", interactive=False, elem_id=f"example-{example.key}", scale=0, min_width=60
            )
            for example in EXAMPLES
        }
        notice = view(
            "<p class='dpx-notice'>Six starts that each make a point: one click sets the target and tunes.</p>",
            live=True,
            elem_id="notice",
        )
    return ExamplePanel(buttons, notice)


def settings_of(example: Example) -> dict[str, Any]:
    """The controls' values that an example sets, by name."""
    return {**preset_values(PRESET), **FEW, "method": example.method, "seed": 0}


def wire_examples(
    app: AppContext,
    panel: ExamplePanel,
    target: TargetPanel,
    tuning: TunePanel,
    model: gr.Textbox,
    run_after: Callable[[Any], Any],
) -> None:
    """`run_after` attaches a run to an event: the one that Tune starts."""
    shown: dict[str, Any] = target.outputs
    set_by_name: dict[str, Any] = tuning.controls

    def starter(example: Example) -> Callable[..., dict[Any, Any]]:
        def start(request: gr.Request, model: str) -> dict[Any, Any]:
            app.sessions.take_turn(session_of(app, request))  # what the designer still works at is overtaken
            changes = {"recipe": example.recipe, **read_recipe(app, model, example.recipe)}
            return {
                **{shown[name]: value for name, value in changes.items()},
                **{set_by_name[name]: value for name, value in settings_of(example).items()},
                tuning.preset: CUSTOM,
                panel.notice: f"<p class='dpx-notice'><b>Notice:</b> {example.notice}</p>",
            }

        return start

    outputs = [*shown.values(), *(set_by_name[name] for name in (*PRESET_FIELDS, "method", "seed"))]
    for example in EXAMPLES:
        button = panel.buttons[example.key]
        set_up = button.click(starter(example), model, [*outputs, tuning.preset, panel.notice], **QUIET)
        run_after(set_up.success)
