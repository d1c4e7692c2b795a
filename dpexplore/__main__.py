"""The command line: `python -m dpexplore models|target|floor|tune`.

Results go to standard output (one JSON object a line under `--json`), progress to standard error.
Exit code 0 on success, 2 for bad input with one line saying what was wrong and what is accepted.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import Abort, TyperException

import dpexplore as dp
from dpexplore.diffuse import commands as diffuse_commands
from dpexplore.experiments import commands as experiment_commands
from dpexplore.space.commands import app as space_commands
from dpexplore.targets import NATS_PER_BIT, save_target, top_tokens
from dpexplore.tuning import PRESETS, load_capsule
from dpexplore.tuning import replay as replay_capsule
from dpexplore.tuning import resume as resume_capsule
from dpexplore.tuning.init.policy import POLICIES
from dpexplore.tuning.knobs import HARD_RULES, INITS, SOFT_RULES
from dpexplore.tuning.objectives.next_token import DIVERGENCES

BAD_INPUT = 2
INTERRUPTED = 130
TOP_SHOWN = 20

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="See, touch and measure what a language model can and cannot say as a probability distribution.",
)

app.add_typer(space_commands, name="space")

ModelOption = Annotated[
    str, typer.Option(help="Registry name, Hub id, local folder, .gguf file, or random:<name or config folder>.")
]
TargetOption = Annotated[str, typer.Option(help="""The target's recipe, such as 'entropy(bits=7, seed=0)'.""")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")]


@app.command()
def models(as_json: JsonOption = False, device: DeviceOption = None) -> None:
    """List the curated models: parameters, vocabulary, memory needed and present, gated or not."""
    known = dp.describe_models(device)
    if as_json:
        for info in known:
            _emit({**dataclasses.asdict(info), "fits": info.fits})
        return
    print(f"{'name':24}{'parameters':>14}{'vocabulary':>12}{'memory':>10}  note")
    for info in known:
        marks = [info.note, *(["gated"] if info.gated else []), *([] if info.fits else ["does not fit here"])]
        print(
            f"{info.name:24}{info.parameters / 1e6:>12,.0f} M{info.vocab_size:>12,}"
            f"{info.bytes_needed / 2**30:>6.1f} GiB  {'; '.join(marks)}"
        )
    print(f"{known[0].bytes_present / 2**30:.1f} GiB are free.")


@app.command()
def target(
    target: TargetOption,
    model: ModelOption = dp.DEFAULT_MODEL,
    out: Annotated[Path | None, typer.Option(help="Write the probabilities to this .npz file.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
) -> None:
    """Build a target and say what it is."""
    recipe = dp.parse_recipe(target)
    lm = _load(model, device)
    built = recipe.build(lm)
    if out is not None:
        save_target(built, out)
    top = [
        {"id": token.token_id, "token": token.token, "p": token.probability}
        for token in top_tokens(built, lm, TOP_SHOWN)
    ]
    if as_json:
        _emit(
            {
                "vocab_size": built.vocab_size,
                "entropy_bits": built.entropy_bits,
                "entropy_nats": built.entropy_nats,
                "recipe": built.recipe,
                "provenance": built.provenance,
                "top": top,
            }
        )
        return
    entropy = f"{built.entropy_bits:.3f} bits ({built.entropy_nats:.3f} nats)"
    print(f"{built.recipe}: {entropy} over {built.vocab_size:,} tokens")
    for row in top:
        print(f"  {row['p']:.6f}  {row['token']!r} (id {row['id']})")


@app.command()
def floor(
    target: TargetOption,
    model: ModelOption = dp.DEFAULT_MODEL,
    as_json: JsonOption = False,
    device: DeviceOption = None,
) -> None:
    """Certify how close any prompt whatsoever could bring the model to a target."""
    recipe = dp.parse_recipe(target)
    lm = _load(model, device)
    found = dp.softmax_floor(lm, recipe.build(lm))
    if as_json:
        fields = (
            "lower_bound_nats",
            "kl_nats",
            "gap_nats",
            "head_optimum_nats",
            "unconstrained_kl_nats",
            "status",
            "iterations",
            "seconds",
        )
        _emit({name: getattr(found, name) for name in fields})
        return
    print(
        f"No prompt, of any length, can bring {lm.name} closer than {found.lower_bound_nats:.3f} nats to "
        f"{target} (certified)."
    )
    print(f"  classical softmax bottleneck  {found.unconstrained_kl_nats:.4f} nats")
    print(f"  certified floor               {found.lower_bound_nats:.4f} nats (gap {found.gap_nats:.1e})")
    print(f"  head optimum (an estimate)    {found.head_optimum_nats:.4f} nats")


@app.command()
def tune(
    context: typer.Context,
    target: Annotated[str | None, typer.Option(help="The target's recipe; --replay and --resume bring theirs.")] = None,
    model: ModelOption = dp.DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help="soft, hard or hybrid.")] = "soft",
    preset: Annotated[str, typer.Option(help=f"{', '.join(PRESETS)}.")] = "paper",
    slots: Annotated[str | None, typer.Option(help="""The prompt's slots, such as '"Q:" soft*3 hard*2'.""")] = None,
    length: Annotated[int | None, typer.Option(help="Number of virtual tokens, where there are no slots.")] = None,
    restarts: Annotated[int | None, typer.Option(help="Prompt initialisations; the best one counts.")] = None,
    steps: Annotated[int | None, typer.Option(help="At most so many steps for each restart.")] = None,
    evaluations: Annotated[int | None, typer.Option(help="At most so many prompts scored for each restart.")] = None,
    seconds: Annotated[int | None, typer.Option(help="The run ends after so many seconds, with its best.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seeds the initialisations; default 0.")] = None,
    objective: Annotated[str | None, typer.Option(help=f"{', '.join(DIVERGENCES)}.")] = None,
    soft_rule: Annotated[str | None, typer.Option(help=f"{', '.join(SOFT_RULES)}.")] = None,
    hard_rule: Annotated[str | None, typer.Option(help=f"{', '.join(HARD_RULES)}.")] = None,
    candidates: Annotated[int | None, typer.Option(help="Prompts scored in a step (gcg, search).")] = None,
    top: Annotated[int | None, typer.Option(help="Best-ranked tokens they are drawn from (gcg, search).")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="AdamW's learning rate.")] = None,
    patience: Annotated[int | None, typer.Option(help="Steps without improvement that end a restart.")] = None,
    init: Annotated[str | None, typer.Option(help=f"{', '.join(INITS)}.")] = None,
    init_text: Annotated[str | None, typer.Option(help="The text that --init text begins at.")] = None,
    screen: Annotated[int | None, typer.Option(help="Random prompts scored to choose each beginning.")] = None,
    policy: Annotated[str | None, typer.Option(help=f"Tokens of hard slots: {', '.join(POLICIES)}.")] = None,
    allow: Annotated[list[str] | None, typer.Option(help="A token that hard slots may hold; repeat it.")] = None,
    forbid: Annotated[list[str] | None, typer.Option(help="A token that they may not hold; repeat it.")] = None,
    round_trip: Annotated[bool | None, typer.Option(help="Only prompts whose text encodes to the same ids.")] = None,
    chat: Annotated[bool | None, typer.Option(help="Slots in the user's turn of the chat template.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the capsule (JSON) to this file.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Score this capsule's prompt again, and tune nothing.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Carry this capsule's restarts on.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
) -> None:
    """Search a prompt whose next-token distribution comes close to a target. Ctrl-C keeps the best so far."""
    asked = {name: value for name, value in locals().items() if name in _CONFIG_OPTIONS and value is not None}
    given = {name for name in (*asked, "target", "model", "method", "preset") if _was_given(context, name)}
    if out is not None and not out.absolute().parent.is_dir():
        raise dp.InputError(f"The folder of {out} does not exist; --out takes a file in a folder that does.")
    taken_up = replay or resume
    if taken_up is not None:
        _replay_or_resume(taken_up, given, asked, model, device, out, as_json, only_score=replay is not None)
        return
    if target is None:
        raise dp.InputError("Missing option --target; a recipe such as 'entropy(bits=7, seed=0)' is accepted.")
    config = dp.TuneConfig.preset(preset, method=method, **asked)
    recipe = dp.parse_recipe(target)
    lm = _load(model, device)
    _tune_and_show(dp.tune(lm, recipe.build(lm), config), out, as_json)


_CONFIG_OPTIONS = {field.name for field in dataclasses.fields(dp.TuneConfig)} - {"method"}


def _was_given(context: typer.Context, option: str) -> bool:
    """Whether an option stands on the command line, rather than its default."""
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


def _replay_or_resume(
    path: Path,
    given: set[str],
    asked: dict[str, Any],
    model: str,
    device: str | None,
    out: Path | None,
    as_json: bool,
    *,
    only_score: bool,
) -> None:
    """--replay and --resume: the capsule says what is tuned, on its own model unless another is named."""
    fixed = given - {"model"} if only_score else given & {"target", "method", "preset", "slots", "length", "restarts"}
    if fixed:
        name = sorted(fixed)[0].replace("_", "-")
        raise dp.InputError(
            f"--{name} cannot be changed for a capsule; --model, --device and, to resume, limits such as --steps can."
        )
    capsule = load_capsule(path)
    lm = _load(model if "model" in given else capsule["model"]["name"], device)
    if not only_score:
        _tune_and_show(resume_capsule(lm, capsule, **asked), out, as_json)
        return
    found = replay_capsule(lm, capsule)
    if as_json:
        _emit({"event": "replay", **dataclasses.asdict(found), "agrees": found.agrees})
        return
    print(f"KL(p‖q) {found.kl_nats:.6f} nats; the capsule says {found.recorded_kl_nats:.6f}")
    print("the two agree within 0.001" if found.agrees else "the two differ by more than 0.001")
    print(f"the weights are {'the same' if found.same_weights else 'others'}")
    print(f"the libraries are {'the same' if found.same_libraries else 'of other versions'}")


def _tune_and_show(run: dp.Run, out: Path | None, as_json: bool) -> None:
    """Follow a run to its end, show its result and write its capsule."""
    _follow(run, _emit_step if as_json else _show_step)
    result = run.result
    if out is not None:
        out.write_text(json.dumps(result.capsule, indent=1, allow_nan=False), encoding="utf-8")
    if as_json:
        _emit(_result_event(result))
    else:
        _show_result(result)


def _follow(run: dp.Run, show: Callable[[dp.TuneStep], None]) -> None:
    """Show every step; a first Ctrl-C stops the run and keeps its best, a second one leaves."""

    def stop(_signal: int, _frame: object) -> None:
        if run.cancel_requested:
            raise KeyboardInterrupt
        run.cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        for told in run.preparing():
            _progress(told)
        for step in run:
            show(step)
    finally:
        signal.signal(signal.SIGINT, before)


def _emit_step(step: dp.TuneStep) -> None:
    _emit({"event": "step", **{name: getattr(step, name) for name in _STEP_FIELDS}})


_STEP_FIELDS = ("step", "kl_nats", "entropy_nats", "evaluations")


def _show_step(step: dp.TuneStep) -> None:
    running = sum(kl is not None for kl in step.kl_nats)
    _progress(
        f"step {step.step}: best KL {step.best_kl_nats:.4f} nats, {running} of {len(step.kl_nats)} restarts running"
    )


def _result_event(result: dp.TuneResult) -> dict[str, Any]:
    return {
        "event": "result",
        "status": result.status,
        "kl_nats": result.kl_nats,
        "kl_nats_per_restart": result.kl_nats_per_restart,
        "entropy_bits": result.entropy_nats / NATS_PER_BIT,
        "target_entropy_bits": result.target_entropy_nats / NATS_PER_BIT,
        "slots": result.slots,
        "prompt_ids": result.prompt_ids,
        "prompt_text": result.prompt_text,
        "kl_reencoded_nats": result.kl_reencoded_nats,
        "objective": result.objective,
        "distances": {kind: value if math.isfinite(value) else None for kind, value in result.distances.items()},
        "top_overlap": result.top_overlap,
        "kl_float32_nats": result.kl_float32_nats,
        "evaluations": result.evaluations,
        "capsule": result.capsule,
    }


def _show_result(result: dp.TuneResult) -> None:
    print(f"KL(p‖q) {result.kl_nats:.4f} nats after {result.steps} steps ({result.status}), slots {result.slots}")
    print(
        f"entropy of q {result.entropy_nats / NATS_PER_BIT:.3f} bits, "
        f"of the target {result.target_entropy_nats / NATS_PER_BIT:.3f} bits"
    )
    low, mean, high = result.spread_nats
    print(f"over the restarts {low:.4f} to {high:.4f} nats, mean {mean:.4f}; {result.evaluations:,} prompts scored")
    others = ", ".join(f"{kind} {value:.4f}" for kind, value in result.distances.items() if kind != "kl")
    print(f"other distances: {others}; {result.top_overlap:.0%} of the target's ten likeliest tokens are the prompt's")
    if result.precision_warning:
        print(result.precision_warning)
    if result.prompt_ids is not None:
        print(f"prompt {result.prompt_text!r}, ids {result.prompt_ids}")
        again = result.kl_reencoded_nats
        print("the text cannot be encoded again" if again is None else f"KL of the text encoded again {again:.4f} nats")
        return
    for position, near in enumerate(result.nearest):
        if near is not None:
            words = ", ".join(f"{token.token!r} {token.cosine:.2f}" for token in near)
            print(f"soft token at position {position}, nearest by cosine: {words}")


def _load(model: str, device: str | None) -> dp.LanguageModel:
    return dp.load_model(model, device=device, progress=lambda text, _fraction: _progress(text))


def _progress(text: str) -> None:
    """One line that replaces the last on a terminal, lines of their own elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def _emit(record: dict[str, Any]) -> None:
    print(json.dumps(record, ensure_ascii=False, allow_nan=False), flush=True)


def _refuse(sentence: str) -> int:
    print(f"dpexplore: {' '.join(sentence.split())}", file=sys.stderr)
    return BAD_INPUT


experiment_commands.register(app)
diffuse_commands.register(app)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        return app(arguments, standalone_mode=False) or 0
    except dp.InputError as error:
        return _refuse(str(error))
    except TyperException as error:  # what typer's own parser refuses
        return _refuse(f"{error.format_message().rstrip('.')}. `python -m dpexplore --help` says what is accepted.")
    except (KeyboardInterrupt, Abort):
        return INTERRUPTED
    except OSError as error:
        return _refuse(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))


if __name__ == "__main__":
    sys.exit(main())
