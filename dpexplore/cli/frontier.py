"""`dpexplore frontier`."""

from __future__ import annotations

from dataclasses import asdict
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
    emit,
    interruptible,
    load,
    progress,
    say,
)
from dpexplore.models.names import DEFAULT_MODEL


def frontier(
    target: TargetOption,
    model: ModelOption = DEFAULT_MODEL,
    budget: Annotated[
        list[float] | None, typer.Option(help="A budget, in multiples of the median token norm; repeat it for more.")
    ] = None,
    length: Annotated[list[int] | None, typer.Option(help="A number of soft tokens; repeat it for more.")] = None,
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Most steps of each start of each point.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Seeds the drawn starts.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="Write the picture to this .html, .png or .svg file.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    accept_terms: AcceptOption = False,
) -> None:
    """The best KL for a bound on the norm of soft tokens, from the vocabulary's norms to the direct token.

    Points are kept as they come: the same command, called again, goes on where it was stopped.
    """
    import dpexplore as dp
    from dpexplore.experiments.export import figure_kind, write_figure
    from dpexplore.experiments.frontier import LENGTHS, MULTIPLES, Frontier
    from dpexplore.plots import frontier_figure

    if figure is not None:
        figure_kind(figure)
    recipe = dp.parse_recipe(target)
    lm = load(model, device, dtype, accept_terms)
    work = Frontier(lm, recipe.build(lm), tuple(length or LENGTHS), tuple(budget or MULTIPLES), steps, seed)
    with interruptible():
        floor = work.floor()
        ends = {"floor_nats": floor.lower_bound_nats, "head_optimum_nats": floor.head_optimum_nats}
        if as_json:
            emit({"event": "floor", **ends, "median_token_norm": lm.median_token_norm})
        points = []
        for point in work:
            points.append(point)
            if as_json:
                emit({"event": "point", **asdict(point)})
            else:
                within = "no bound" if point.budget is None else f"{point.budget:g}x"
                progress(f"{point.kind}, {point.length} tokens, {within}: {point.kl_nats:.4f} nats")
    if as_json:
        emit({"event": "result", **ends, "points": [asdict(point) for point in points]})
    else:
        say(f"certified floor {floor.lower_bound_nats:.4f} nats, head optimum {floor.head_optimum_nats:.4f} nats")
        for point in points:
            within = "without a bound" if point.budget is None else f"within {point.budget:g}x"
            say(f"{point.kind:6} {point.length} tokens {within:16} {point.kl_nats:.4f} nats (longest {point.norm:.3g})")
    if figure is not None:
        write_figure(frontier_figure(points, **ends), figure)
