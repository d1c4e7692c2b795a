"""`dpexplore tune`, with `--replay` and `--resume`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpexplore.cli.common import (
    AcceptOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    check_writable,
    emit,
    load,
    progress,
    say,
    stoppable,
)
from dpexplore.cli.settings import with_settings
from dpexplore.errors import InputError
from dpexplore.files import reason, write_file
from dpexplore.models.names import DEFAULT_MODEL
from dpexplore.tuning.config import PRESETS, TuneConfig

if TYPE_CHECKING:
    import dpexplore as dp


@with_settings
def tune(
    context: typer.Context,
    target: Annotated[str | None, typer.Option(help="The target's recipe; --replay and --resume bring theirs.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    preset: Annotated[str, typer.Option(help=f"Sets what no option sets: {', '.join(PRESETS)}.")] = "paper",
    out: Annotated[Path | None, typer.Option(help="Write the capsule (JSON) to this file.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Score this capsule's prompt again, and tune nothing.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this capsule's restarts.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    accept_terms: AcceptOption = False,
    **settings: Any,
) -> None:
    """Search for a prompt whose next-token distribution comes close to a target.

    Ctrl-C and SIGTERM stop the run and keep the best prompt so far, --out included.
    """
    import dpexplore as dp

    asked = {name: value for name, value in settings.items() if value is not None}
    named = {name for name in ("target", "model", "preset") if _was_given(context, name)}
    check_writable(out)
    path = replay or resume
    if path is not None:
        _replay_or_resume(
            path, named | set(asked), asked, model, device, dtype, out, as_json, only_score=replay is not None
        )
        return
    if target is None:
        raise InputError("Missing option --target; give it a recipe such as 'entropy(bits=7, seed=0)'.")
    config = TuneConfig.preset(preset, **asked)
    recipe = dp.parse_recipe(target)
    lm = load(model, device, dtype, accept_terms)
    built = recipe.build(lm)
    if not {"length", "slots"} & set(asked):
        config = _as_long_as_captured(lm, built, config)
    _tune_and_show(dp.tune(lm, built, config), out, as_json)


def _as_long_as_captured(lm: dp.LanguageModel, target: dp.Target, config: TuneConfig) -> TuneConfig:
    """A prompt that is to be recovered has as many tokens as the one that the target was captured from."""
    from dpexplore.tuning.captured import captured_length
    from dpexplore.tuning.init.recovery import MOST_POSITIONS

    length = captured_length(lm, target)
    if config.init != "recover" or config.method != "hard" or length is None or length > MOST_POSITIONS:
        return config
    progress(
        f"The target was captured from {length} token{'s' * (length > 1)}, so the prompt has as many; see --length."
    )
    return dataclasses.replace(config, length=length)


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
    dtype: str | None,
    out: Path | None,
    as_json: bool,
    *,
    only_score: bool,
) -> None:
    """--replay and --resume: the capsule says what is tuned, on its own model unless another is named."""
    fixed = given - {"model"} if only_score else given & {"target", "method", "preset", "slots", "length", "restarts"}
    if fixed:
        name = sorted(fixed)[0].replace("_", "-")
        raise InputError(
            f"--{name} cannot be changed for a capsule; --model, --device, --dtype and, to resume, limits such as "
            "--steps can."
        )
    from dpexplore.models.precision import DTYPES
    from dpexplore.tuning import load_capsule
    from dpexplore.tuning import replay as replay_capsule
    from dpexplore.tuning import resume as resume_capsule

    capsule = load_capsule(path)
    recorded = capsule["model"]
    if "model" not in given:
        model, dtype = recorded["name"], dtype or (recorded["dtype"] if recorded["dtype"] in DTYPES else None)
    lm = load(model, device, dtype)
    if not only_score:
        _tune_and_show(resume_capsule(lm, capsule, **asked), out, as_json)
        return
    found = replay_capsule(lm, capsule)
    if as_json:
        emit({"event": "replay", **dataclasses.asdict(found), "agrees": found.agrees})
        return
    say(f"KL(p‖q) {found.kl_nats:.6f} nats; the capsule says {found.recorded_kl_nats:.6f}")
    say("the two agree within 0.001" if found.agrees else "the two differ by more than 0.001")
    say(f"the weights are {'the same' if found.same_weights else 'others'}")
    say(f"the libraries are {'the same' if found.same_libraries else 'of other versions'}")
    if found.note is not None:
        say(found.note)


def _tune_and_show(run: dp.Run, out: Path | None, as_json: bool) -> None:
    """Follow a run to its end, show its result and write its capsule."""
    _follow(run, _emit_step if as_json else _show_step)
    result = run.result
    unwritten: InputError | None = None
    if out is not None:
        try:
            write_file(out, json.dumps(result.capsule, indent=1, allow_nan=False))
        except OSError as error:
            unwritten = InputError(
                f"The capsule could not be written to {out} ({reason(error)}); it is the last line of the output."
            )
    if as_json:
        emit(_result_event(result))
    else:
        _show_result(result)
    if unwritten is not None:  # what was found is not lost
        if not as_json:
            emit(result.capsule)
        raise unwritten


def _follow(run: dp.Run, show: Callable[[dp.TuneStep], None]) -> None:
    """Show every step; a first signal stops the run and keeps its best, a second one leaves."""
    with stoppable(run.cancel):
        for text in run.preparing():
            progress(text)
        for step in run:
            show(step)


def _emit_step(step: dp.TuneStep) -> None:
    from dpexplore.tuning.record.schema import StepRecord

    emit({"event": "step", **StepRecord.of(step).model_dump()})


def _show_step(step: dp.TuneStep) -> None:
    running = sum(kl is not None for kl in step.kl_nats)
    progress(
        f"step {step.step}: best KL {step.best_kl_nats:.4f} nats, {running} of {len(step.kl_nats)} restarts running"
    )


def _result_event(result: dp.TuneResult) -> dict[str, Any]:
    from dpexplore.tuning.record.schema import ResultRecord

    return {"event": "result", **ResultRecord.of(result).model_dump(), "capsule": result.capsule}


def _bits(nats: float) -> float:
    return nats / math.log(2)


def _show_result(result: dp.TuneResult) -> None:
    say(f"KL(p‖q) {result.kl_nats:.4f} nats after {result.steps} steps ({result.status}), slots {result.slots}")
    say(
        f"entropy of q {_bits(result.entropy_nats):.3f} bits, "
        f"of the target {_bits(result.target_entropy_nats):.3f} bits"
    )
    low, mean, high = result.spread_nats
    say(f"over the restarts {low:.4f} to {high:.4f} nats, mean {mean:.4f}; {result.evaluations:,} prompts scored")
    others = ", ".join(f"{kind} {value:.4f}" for kind, value in result.distances.items() if kind != "kl")
    say(f"other distances: {others}; {result.top_overlap:.0%} of the target's ten likeliest tokens are the prompt's")
    for sentence in (result.bounds_sentence, result.bounds.note, result.precision_warning):
        if sentence is not None:
            say(sentence)
    if result.prompt_ids is not None:
        say(f"prompt {result.prompt_text!r}, ids {result.prompt_ids}")
        again = result.kl_reencoded_nats
        say("the text cannot be encoded again" if again is None else f"KL of the text encoded again {again:.4f} nats")
        return
    for position, near in enumerate(result.nearest):
        if near is not None:
            words = ", ".join(f"{token.token!r} {token.cosine:.2f}" for token in near)
            say(f"soft token at position {position}, nearest by cosine: {words}")
