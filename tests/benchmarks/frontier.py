"""The frontier of three targets on the trained models that are in the cache: a table in Markdown, KL in nats.

    python -m tests.benchmarks.frontier                       # docs/direct.md's table
    python -m tests.benchmarks.frontier --models gemma-3-270m

Each number is the best of up to three starts of 30 L-BFGS steps, so an upper end of what the budget allows. Points are
kept in the cache as they come: the same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import logging

import dpexplore as dp
from dpexplore.experiments.frontier import HARD_LENGTH, Frontier
from dpexplore.models.default_model import GEMMA, SMOLLM2

TARGETS = ("entropy(bits=7, seed=0)", "entropy(bits=10, seed=0)", 'capture("I love").shuffle(seed=1)')
BUDGETS = (0.5, 1.0, 10.0, 100.0, 1000.0)
LENGTHS = (1, 5)
STEPS = 30


def rows(lm: dp.LanguageModel, recipe: str) -> list[str]:
    """One line for each prompt length."""
    work = Frontier(lm, dp.parse_recipe(recipe).build(lm), LENGTHS, BUDGETS, STEPS)
    floor = work.floor()
    found = {(point.kind, point.length, point.budget): point.kl_nats for point in work}
    assert floor.head_optimum_nats is not None
    ends = [floor.lower_bound_nats, floor.head_optimum_nats, found["hard", HARD_LENGTH, 1.0]]
    lines = []
    for length in LENGTHS:
        soft = [found["soft", length, budget] for budget in BUDGETS]
        numbers = [*ends, *soft, found["direct", length, None]]
        cells = " | ".join(f"{number:.3f}" for number in numbers)
        lines.append(f"| {lm.name} | `{recipe}` | {length} | {cells} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[SMOLLM2.name, GEMMA.name])
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    budgets = " | ".join(f"{budget:g}x" for budget in BUDGETS)
    print(f"| model | target | tokens | floor | head | hard, {HARD_LENGTH} tokens | {budgets} | direct |")
    print("|---|---|" + "---|" * (5 + len(BUDGETS)), flush=True)
    for name in asked.models:
        lm = dp.load_model(name)
        for recipe in TARGETS:
            print("\n".join(rows(lm, recipe)), flush=True)


if __name__ == "__main__":
    main()
