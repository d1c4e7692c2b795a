"""The command line: `python -m dpexplore models|target|floor|tune`.

Results go to standard output (one JSON object a line under `--json`), progress to standard error.
Exit code 0 on success, 2 for bad input with one line saying what was wrong and what is accepted.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import click
import typer

import dpexplore as dp
from dpexplore.targets import NATS_PER_BIT, save_target, top_tokens
from dpexplore.tuning import PRESETS

BAD_INPUT = 2
INTERRUPTED = 130
TOP_SHOWN = 20

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="See, touch and measure what a language model can and cannot say as a probability distribution.",
)

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
    target: TargetOption,
    model: ModelOption = dp.DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help="soft, hard or hybrid.")] = "soft",
    preset: Annotated[str, typer.Option(help=f"{', '.join(PRESETS)}.")] = "paper",
    slots: Annotated[str | None, typer.Option(help="""The prompt's slots, such as '"Q:" soft*3 hard*2'.""")] = None,
    length: Annotated[int | None, typer.Option(help="Number of virtual tokens, where there are no slots.")] = None,
    restarts: Annotated[int | None, typer.Option(help="Prompt initialisations; the best one counts.")] = None,
    steps: Annotated[int | None, typer.Option(help="At most so many evaluations for each restart.")] = None,
    seed: Annotated[int, typer.Option(help="Seeds the initialisations.")] = 0,
    learning_rate: Annotated[float | None, typer.Option(help="AdamW's learning rate.")] = None,
    patience: Annotated[int | None, typer.Option(help="Steps without improvement that end a restart.")] = None,
    init: Annotated[str | None, typer.Option(help="vocab or gaussian.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the capsule (JSON) to this file.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
) -> None:
    """Search a prompt whose next-token distribution comes close to a target. Ctrl-C keeps the best so far."""
    asked = {
        "length": length,
        "restarts": restarts,
        "steps": steps,
        "learning_rate": learning_rate,
        "patience": patience,
        "init": init,
    }
    changes = {name: value for name, value in asked.items() if value is not None}
    config = dp.TuneConfig.preset(preset, method=method, slots=slots, seed=seed, **changes)
    recipe = dp.parse_recipe(target)
    if out is not None and not out.absolute().parent.is_dir():
        raise dp.InputError(f"The folder of {out} does not exist; --out takes a file in a folder that does.")
    lm = _load(model, device)
    run = dp.tune(lm, recipe.build(lm), config)
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
        for step in run:
            show(step)
    finally:
        signal.signal(signal.SIGINT, before)


def _emit_step(step: dp.TuneStep) -> None:
    _emit({"event": "step", "step": step.step, "kl_nats": step.kl_nats, "entropy_nats": step.entropy_nats})


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
        "capsule": result.capsule,
    }


def _show_result(result: dp.TuneResult) -> None:
    print(f"KL(p‖q) {result.kl_nats:.4f} nats after {result.steps} steps ({result.status}), slots {result.slots}")
    print(
        f"entropy of q {result.entropy_nats / NATS_PER_BIT:.3f} bits, "
        f"of the target {result.target_entropy_nats / NATS_PER_BIT:.3f} bits"
    )
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


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        return app(arguments, standalone_mode=False) or 0
    except dp.InputError as error:
        return _refuse(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return BAD_INPUT
    except click.ClickException as error:
        return _refuse(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except OSError as error:
        return _refuse(f"{error.strerror or error}: {error.filename}" if error.filename else str(error))


if __name__ == "__main__":
    sys.exit(main())
