"""What the page's six examples show, as a table: `python -m tests.benchmarks.examples`.

Each is run as a click on it runs it, on the default model.
"""

from __future__ import annotations

import dpexplore
from dpexplore.models import DEFAULT_MODEL
from dpexplore.ui.components.examples import EXAMPLES, settings_of
from dpexplore.ui.components.settings import make_config


def main() -> None:
    lm = dpexplore.load_model(DEFAULT_MODEL)
    print("| example | recipe | entropy (bits) | certified floor (nats) | head optimum | best KL (nats) | s |")
    print("|---|---|---|---|---|---|---|")
    for example in EXAMPLES:
        target = dpexplore.parse_recipe(example.recipe).build(lm)
        floor = dpexplore.softmax_floor(lm, target)
        result = dpexplore.tune(lm, target, make_config(settings_of(example))).result
        head = "" if floor.head_optimum_nats is None else f"{floor.head_optimum_nats:.3f}"
        print(
            f"| {example.label} | `{example.recipe}` | {target.entropy_bits:.2f} | "
            f"{max(floor.lower_bound_nats, 0):.3f} | {head} | {result.kl_nats:.3f} | {result.seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
