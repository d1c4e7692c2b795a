"""`dpexplore floor`."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from dpexplore.cli.common import (
    AcceptOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    TargetOption,
    emit,
    load,
    progress,
    say,
)
from dpexplore.models.names import DEFAULT_MODEL

FIELDS = (
    "lower_bound_nats",
    "kl_nats",
    "gap_nats",
    "head_optimum_nats",
    "unconstrained_kl_nats",
    "status",
    "iterations",
    "seconds",
)


def floor(
    target: TargetOption,
    model: ModelOption = DEFAULT_MODEL,
    single_token: Annotated[
        bool,
        typer.Option(
            "--single-token",
            help="Also score every prompt of one token: minutes, once for a model; the first line says.",
        ),
    ] = False,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    accept_terms: AcceptOption = False,
) -> None:
    """Certify how close any prompt could bring the model to a target."""
    import dpexplore as dp

    recipe = dp.parse_recipe(target)
    lm = load(model, device, dtype, accept_terms)
    wanted = recipe.build(lm)
    found = dp.softmax_floor(lm, wanted)
    best = None
    if single_token:
        for now in dp.score_tokens(lm):
            progress(
                f"{now.share:.0%} of {lm.vocab_size:,} prompts of one token scored, "
                f"about {math.ceil(now.seconds_left):,} s left"
            )
        best = dp.best_single_token(lm, wanted)
    if as_json:
        record = {name: getattr(found, name) for name in FIELDS}
        emit(record if best is None else {**record, "single_token": vars(best)})
        return
    say(
        f"No prompt, of any length, can bring {lm.name} closer than {found.lower_bound_nats:.3f} nats to "
        f"{target} (certified)."
    )
    say(f"  classical softmax bottleneck  {found.unconstrained_kl_nats:.4f} nats")
    say(f"  certified floor               {found.lower_bound_nats:.4f} nats (gap {found.gap_nats:.1e})")
    say(f"  head optimum (an estimate)    {found.head_optimum_nats:.4f} nats")
    if best is not None:
        say(f"  best prompt of one token      {best.kl_nats:.4f} nats (exact): {best.token!r}")
