"""Which models let the direct token through: the tests' tiny architectures and, if they are here, the trained ones.

python -m tests.benchmarks.direct            # a table in Markdown, KL in nats
python -m tests.benchmarks.direct --trained  # with the trained models that are in the cache already
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import dpexplore as dp
from dpexplore.models.default_model import GEMMA, SMOLLM2
from tests.tiny_models import ARCHITECTURES, save_tiny_model

RECIPE = {"tiny": "entropy(bits=4, seed=3)", "trained": "entropy(bits=7, seed=0)"}


def row(name: str, lm: dp.LanguageModel, recipe: str) -> str:
    """One model: floor, head optimum, the direct token's KL at its first step, and what came of it."""
    run = dp.tune(lm, dp.parse_recipe(recipe).build(lm), dp.TuneConfig.preset("direct", steps=1))
    result = run.result
    bounds = result.bounds
    ends = " | ".join(
        "–" if value is None else f"{value:.4f}" for value in (bounds.floor_nats, bounds.head_optimum_nats)
    )
    said = "holds" if bounds.note is None else bounds.note
    return f"| {name} | {ends} | {result.kl_nats:.4f} | {said} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trained", action="store_true")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    print("| model | certified floor | head optimum | direct token | |\n|---|---|---|---|---|", flush=True)
    with TemporaryDirectory() as folder:
        for name in ARCHITECTURES:
            path = save_tiny_model(name, Path(folder) / name)
            print(row(f"{name}, tiny", dp.load_model(str(path), device="cpu"), RECIPE["tiny"]), flush=True)
    for model in (SMOLLM2, GEMMA) if asked.trained else ():
        if model.folder.exists():
            print(row(model.name, dp.load_model(model.name), RECIPE["trained"]), flush=True)


if __name__ == "__main__":
    main()
