"""`dpexplore floor`."""

from __future__ import annotations

from dpexplore.cli.common import (
    AcceptOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    TargetOption,
    emit,
    load,
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
    as_json: JsonOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    accept_terms: AcceptOption = False,
) -> None:
    """Certify how close any prompt whatsoever could bring the model to a target."""
    import dpexplore as dp

    recipe = dp.parse_recipe(target)
    lm = load(model, device, dtype, accept_terms)
    found = dp.softmax_floor(lm, recipe.build(lm))
    if as_json:
        emit({name: getattr(found, name) for name in FIELDS})
        return
    say(
        f"No prompt, of any length, can bring {lm.name} closer than {found.lower_bound_nats:.3f} nats to "
        f"{target} (certified)."
    )
    say(f"  classical softmax bottleneck  {found.unconstrained_kl_nats:.4f} nats")
    say(f"  certified floor               {found.lower_bound_nats:.4f} nats (gap {found.gap_nats:.1e})")
    say(f"  head optimum (an estimate)    {found.head_optimum_nats:.4f} nats")
