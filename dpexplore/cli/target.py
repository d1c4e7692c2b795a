"""`dpexplore target`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpexplore.cli.common import (
    AcceptOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    TargetOption,
    check_writable,
    emit,
    load,
    say,
)
from dpexplore.models.names import DEFAULT_MODEL

TOP_SHOWN = 20


def target(
    target: TargetOption,
    model: ModelOption = DEFAULT_MODEL,
    out: Annotated[Path | None, typer.Option(help="Write the probabilities to this .npz file.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    accept_terms: AcceptOption = False,
) -> None:
    """Build a target and describe it: its entropy and its likeliest tokens."""
    import dpexplore as dp
    from dpexplore.targets.files import check_ending

    if out is not None:
        check_ending(out)
        check_writable(out)
    recipe = dp.parse_recipe(target)
    lm = load(model, device, dtype, accept_terms)
    built = recipe.build(lm)
    if out is not None:
        dp.save_target(built, out)
    top = [
        {"id": token.token_id, "token": token.token, "p": token.probability}
        for token in dp.top_tokens(built, lm, TOP_SHOWN)
    ]
    if as_json:
        emit(
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
    say(f"{built.recipe}: {entropy} over {built.vocab_size:,} tokens")
    for row in top:
        say(f"  {row['p']:.6f}  {row['token']!r} (id {row['id']})")
