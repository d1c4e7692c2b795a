"""The Strings tab: a target over whole strings, and three ways to it on one axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import gradio as gr

from dpexplore.diffuse.config import PRESETS
from dpexplore.diffuse.families import FAMILIES, family
from dpexplore.diffuse.prompts import DEFAULT_SLOTS
from dpexplore.errors import InputError
from dpexplore.serving.app_context import AppContext, sentence
from dpexplore.targets import Strings, parse_recipe
from dpexplore.tuning.knobs import METHODS
from dpexplore.ui.components.markup import message
from dpexplore.ui.components.string_runs import NOTHING, RUN, STOP, Running, reach, target_of
from dpexplore.ui.components.string_uploads import MOST_CHARACTERS, MOST_FILES, read_uploads, uploads_html
from dpexplore.ui.components.string_view import (
    EMPTY_ANSWERS,
    EMPTY_BARS,
    WAYS,
    facts_html,
    origin_line,
    read_lines,
    read_prefixes,
    write_lines,
    write_prefixes,
)
from dpexplore.ui.components.target_panel import QUIET
from dpexplore.ui.components.widgets import card_title, chart, legend, view
from dpexplore.ui.visitor import session_of

FIRST = "numbers / 1-10"
SAMPLES = 100


@dataclass(frozen=True)
class Panel:
    """Everything that stands in the tab."""

    example: gr.Dropdown
    request: gr.Textbox
    response: gr.Textbox
    lines: gr.Textbox
    eos: gr.Checkbox
    loaded: gr.State
    """The targets of the files that this page was given, by name."""
    files: gr.UploadButton
    folder: gr.UploadButton
    cure: gr.Row
    end: gr.Button
    mark: gr.Button
    recipe: gr.Textbox
    facts: gr.HTML
    ways: gr.CheckboxGroup
    method: gr.Dropdown
    slots: gr.Textbox
    steps: gr.Number
    preset: gr.Dropdown
    passes: gr.Number
    samples: gr.Number
    run: gr.Button
    stop: gr.Button
    status: gr.HTML
    origin: gr.State
    """Model and recipe that the results shown are of."""
    earlier: gr.HTML
    chart: gr.HTML
    bars: gr.HTML
    answers: gr.HTML
    adapter: gr.DownloadButton

    @property
    def controls(self) -> list[Any]:
        return [self.request, self.response, self.lines, self.eos]

    @property
    def settings(self) -> list[Any]:
        return [self.ways, self.method, self.slots, self.steps, self.preset, self.passes, self.samples]

    @property
    def shown(self) -> list[Any]:
        pictures = [self.chart, self.bars, self.answers]
        return [self.status, *pictures, self.origin, self.adapter, self.run, self.stop]


def examples() -> dict[str, Strings]:
    """The families' requests by name: those of small size, then those that only the full size has."""
    small = {f"{name} / {task.name}": task.strings for name in FAMILIES for task in family(name, "small")}
    full = {f"{name} / {task.name}, full": task.strings for name in FAMILIES for task in family(name, "full")}
    return small | {name: asked for name, asked in full.items() if asked not in small.values()}


def from_controls(app: AppContext, model: str, request: str, response: str, lines: str, eos: bool) -> list[Any]:
    """A control moved. Values for (recipe, facts, cure).

    A mistake empties the recipe, so that Run does not run the target that stood here before.
    """
    try:
        recipe = str(Strings(tuple(_without_twins(read_lines(lines))), request, read_prefixes(response), eos))
    except Exception as error:
        return ["", message(sentence(error), "error"), gr.update(visible=False)]
    return [recipe, *_preview(app, model, recipe)]


def _without_twins(read: list[tuple[str, float]]) -> list[tuple[str, float]]:
    if len({text for text, _ in read}) < len(read):
        twin = Counter(text for text, _ in read).most_common(1)[0][0]
        raise InputError(f"The outcome {twin!r} is given twice; each outcome takes one line.")
    return read


def from_recipe(app: AppContext, model: str, recipe: str) -> list[Any]:
    """The recipe was edited. Values for (request, response, lines, eos, facts, cure)."""
    try:
        asked = parse_recipe(recipe)
        if not isinstance(asked, Strings):
            raise InputError('This recipe is over single tokens; write one such as strings({"{1}": 1}).')
    except Exception as error:
        return [*[gr.skip()] * 4, message(sentence(error), "error"), gr.update(visible=False)]
    return [*_fields(asked), *_preview(app, model, recipe)]


def from_strings(app: AppContext, model: str, asked: Strings) -> list[Any]:
    """An example was chosen. Values for (request, response, lines, eos, recipe, facts, cure)."""
    return [*_fields(asked), str(asked), *_preview(app, model, str(asked))]


def from_files(
    app: AppContext, model: str, known: list[str], loaded: dict[str, Strings], paths: list[str]
) -> list[Any]:
    """Files were given. Values for (loaded, example, request, response, lines, eos, recipe, facts, cure)."""
    found, problems = read_uploads(paths, app.rules.manifest.server.characters if app.rules else MOST_CHARACTERS)
    told = uploads_html(found, problems)
    if not found:
        return [*[gr.skip()] * 7, told, gr.update(visible=False)]
    loaded = found | {name: asked for name, asked in loaded.items() if name not in found}
    loaded = dict(islice(loaded.items(), MOST_FILES))
    first = next(iter(found))
    *fields, facts, cure = from_strings(app, model, found[first])
    return [loaded, gr.update(choices=[*loaded, *known], value=first), *fields, facts + told, cure]


def mark_earlier(model: str, recipe: str, origin: Sequence[str]) -> str:
    """A line where the results shown are of another target, or another model, than those chosen now."""
    of_model, of_recipe = origin
    if not of_recipe:
        return ""
    asked = parse_recipe(of_recipe)
    assert isinstance(asked, Strings)
    try:
        same = model == of_model and parse_recipe(recipe) == asked
    except InputError:
        same = False
    return "" if same else origin_line(asked, of_model)


def in_braces(lines: str) -> str:
    """The outcomes with a closing mark, which no other one can go on behind."""
    return write_lines(tuple((f"{{{text}}}", weight) for text, weight in read_lines(lines)))


def _fields(asked: Strings) -> list[Any]:
    return [asked.request, write_prefixes(asked.response), write_lines(asked.outcomes), asked.eos]


def _preview(app: AppContext, model: str, recipe: str) -> list[Any]:
    """Values for (facts, cure)."""
    if not model:
        return [message("The target is read as soon as the model is ready.", "info"), gr.update(visible=False)]
    try:
        return [facts_html(target_of(app, model, recipe)), gr.update(visible=False)]
    except Exception as error:
        told = sentence(error)
        return [message(told, "error"), gr.update(visible="clash" in told)]


def build_strings(app: AppContext, demo: gr.Blocks, model: gr.Textbox) -> None:
    """The tab's content; `model` holds the name of the model that the page works with."""
    known = examples()
    with gr.Row(elem_id="strings-page"):
        with gr.Column(elem_id="strings-left", scale=0, min_width=320, elem_classes="dpx-card"):
            made = _build_target(known)
        with gr.Column(elem_id="strings-right", scale=1, min_width=320):
            made |= _build_ways()
    panel = Panel(**made)
    _wire_target(app, panel, model, known)
    _wire_ways(app, demo, panel, model)


def _build_target(known: dict[str, Strings]) -> dict[str, Any]:
    first = known[FIRST]
    card_title("Target over strings")
    made: dict[str, Any] = {
        "example": gr.Dropdown(list(known), value=FIRST, label="Begin with", elem_id="strings-example"),
        "request": gr.Textbox(first.request, label="Request", lines=3, max_lines=6, elem_id="strings-request"),
        "response": gr.Textbox(
            write_prefixes(first.response),
            label="The answer begins with",
            info="Given, not asked for; empty for nothing, several one a line. In quotes spaces at an end are kept.",
            lines=2,
            max_lines=4,
            elem_id="strings-response",
        ),
    }
    hint = 'One a line. "text" 2 gives a text in quotes the weight 2; with weight 0 it is valid but not asked for.'
    made["lines"] = gr.Textbox(
        write_lines(first.outcomes), label="Outcomes", info=hint, lines=8, max_lines=10, elem_id="strings-lines"
    )
    made["eos"] = gr.Checkbox(True, label="Each outcome is followed by the end of the answer", elem_id="strings-eos")
    made["facts"] = view(live=True, elem_id="strings-facts")
    with gr.Row(visible=False, elem_id="strings-cure") as cure:
        made["end"] = gr.Button("End the answer there", size="sm", min_width=120, elem_id="strings-end")
        made["mark"] = gr.Button("Put each between braces", size="sm", min_width=120, elem_id="strings-mark")
    made["cure"] = cure
    made["recipe"] = gr.Textbox(str(first), label="Recipe", lines=2, max_lines=4, elem_id="strings-recipe")
    made["loaded"] = gr.State({})
    small: dict[str, Any] = {"size": "sm", "min_width": 120}
    with gr.Row(elem_id="strings-load"):
        made["files"] = gr.UploadButton(
            "Load files", file_count="multiple", file_types=[".json", ".txt"], elem_id="strings-files", **small
        )
        made["folder"] = gr.UploadButton("Load a folder", file_count="directory", elem_id="strings-folder", **small)
    view("<p class='dpx-note'>JSON of the paper's repository; a .txt file has one outcome a line.</p>")
    return made


def _build_ways() -> dict[str, Any]:
    made: dict[str, Any] = {}
    number: dict[str, Any] = {"min_width": 76, "scale": 1}  # the run checks it and answers in one sentence
    with gr.Column(elem_classes="dpx-card"):
        with gr.Row(elem_classes="dpx-inline", elem_id="strings-row"):
            choices = [("tuned prompt", "prompt"), ("LoRA", "lora")]
            beside: dict[str, Any] = {"label": "Beside the request alone", "min_width": 200, "scale": 1}
            made["ways"] = gr.CheckboxGroup(choices, value=["prompt", "lora"], elem_id="strings-ways", **beside)
            made["method"] = gr.Dropdown(
                list(METHODS), value="soft", label="Prompt: method", min_width=100, elem_id="strings-method"
            )
            made["slots"] = gr.Textbox(
                DEFAULT_SLOTS["soft"], label="Prompt: slots", min_width=130, scale=2, elem_id="strings-slots"
            )
            made["steps"] = gr.Number(60, label="Prompt: steps", elem_id="strings-steps", **number)
            made["preset"] = gr.Dropdown(
                list(PRESETS), value="fast", label="LoRA: preset", min_width=90, elem_id="strings-preset"
            )
            made["passes"] = gr.Number(50, label="LoRA: passes", elem_id="strings-passes", **number)
            made["samples"] = gr.Number(SAMPLES, label="Answers", elem_id="strings-samples", **number)
            made["run"] = gr.Button(RUN, variant="primary", min_width=90, scale=1, elem_id="strings-run")
            made["stop"] = gr.Button(
                STOP, variant="stop", interactive=False, min_width=72, scale=0, elem_id="strings-stop"
            )
        made["status"] = view(
            message(
                "A tuned prompt leaves the weights as they are, LoRA adds to them. Press Run to see both on one axis.",
                "info",
            ),
            live=True,
            elem_id="strings-status",
        )
        made["origin"] = gr.State(NOTHING)
        made["earlier"] = view(live=True, elem_id="strings-earlier")
    roles = [(role, name) for name, role in WAYS.values()]
    with gr.Row(elem_id="strings-upper"):
        with gr.Column(elem_classes="dpx-card", min_width=300, scale=1):
            card_title("Cross-entropy", legend(roles))
            empty = "Press Run: every way becomes a line here, above the floor that none of them can pass."
            made["chart"] = chart("figure", [("dpx-figure", "")], empty, elem_id="strings-chart")
        with gr.Column(elem_classes="dpx-card", min_width=300, scale=1):
            card_title("Outcomes", legend([("target", "target w"), *roles]))
            made["bars"] = view(EMPTY_BARS, elem_id="strings-bars")
    with gr.Column(elem_classes="dpx-card"):
        card_title("Before and after")
        made["answers"] = view(EMPTY_ANSWERS, elem_id="strings-answers")
        made["adapter"] = gr.DownloadButton(
            "Download the adapter (PEFT, with its capsule)", visible=False, size="sm", elem_id="strings-adapter"
        )
    return made


def _wire_target(app: AppContext, panel: Panel, model: gr.Textbox, known: dict[str, Strings]) -> None:
    told = [panel.facts, panel.cure]
    everything = [*panel.controls, panel.recipe, *told]

    def follow(model: str, *values: Any) -> list[Any]:
        return from_controls(app, model, *values)

    def read(model: str, recipe: str) -> list[Any]:
        return from_recipe(app, model, recipe)

    def choose(model: str, name: str, loaded: dict[str, Strings]) -> list[Any]:
        return from_strings(app, model, (known | loaded)[name])

    def load(model: str, loaded: dict[str, Strings], paths: list[str] | None) -> list[Any]:
        return from_files(app, model, list(known), loaded, paths or [])

    def load_folder(model: str, loaded: dict[str, Strings], paths: list[str] | None) -> list[Any]:
        return load(model, loaded, [path for path in paths or [] if path.lower().endswith(".json")])

    moved = [panel.request.input, panel.response.input, panel.lines.input, panel.eos.input]
    gr.on(moved, follow, [model, *panel.controls], [panel.recipe, *told], **QUIET)
    cures = [
        panel.end.click(lambda: True, None, panel.eos, **QUIET),
        panel.mark.click(in_braces, panel.lines, panel.lines, **QUIET),
    ]
    for cured in cures:
        cured.then(follow, [model, *panel.controls], [panel.recipe, *told], **QUIET)
    panel.recipe.input(read, [model, panel.recipe], [*panel.controls, *told], **QUIET)
    # Not `input`: Gradio's drop-downs tell of that whenever they are left, which would undo what was edited since.
    panel.example.select(choose, [model, panel.example, panel.loaded], everything, **QUIET)
    offered = [panel.loaded, panel.example, *everything]
    panel.files.upload(load, [model, panel.loaded, panel.files], offered, **QUIET)
    panel.folder.upload(load_folder, [model, panel.loaded, panel.folder], offered, **QUIET)
    model.change(lambda model, recipe: _preview(app, model, recipe), [model, panel.recipe], told, **QUIET)
    panel.method.input(lambda method: DEFAULT_SLOTS[method], panel.method, panel.slots, **QUIET)


def _wire_ways(app: AppContext, demo: gr.Blocks, panel: Panel, model: gr.Textbox) -> None:
    running = Running()

    def run(request: gr.Request, model: str, recipe: str, *settings: Any) -> Iterator[list[Any]]:
        yield from reach(app, running, session_of(app, request), model, recipe, *settings)

    def halt(request: gr.Request) -> None:
        running.stop(session_of(app, request))

    panel.run.click(
        run,
        [model, panel.recipe, *panel.settings],
        panel.shown,
        show_progress="hidden",
        concurrency_limit=4,
        api_visibility="private",
    )
    moved = [panel.recipe.change, model.change, panel.origin.change]
    gr.on(moved, mark_earlier, [model, panel.recipe, panel.origin], panel.earlier, **QUIET)
    panel.stop.click(halt, None, None, queue=False, api_visibility="private")
    demo.unload(halt)
