"""Targets per second, built together against one at a time: `python -m tests.benchmarks.targets`.

The job is Fig. 1's: entropies from 0 to log2(vocab) in steps of 0.05 bit, five seeds each. One at a
time is measured on a sample spread over it. Both in one run, since only their ratio means anything.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from types import SimpleNamespace
from typing import cast

from dpexplore.models import LanguageModel
from dpexplore.targets import build_many, entropy


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--vocab", type=int, default=50_000)
    options.add_argument("--entropies", type=int, default=340)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--sample", type=int, default=100, help="targets built one at a time")
    chosen = options.parse_args()
    lm = cast(LanguageModel, SimpleNamespace(vocab_size=chosen.vocab))  # all that vanilla targets ask of a model
    top = math.log2(chosen.vocab)
    recipes = [
        entropy(top * step / (chosen.entropies - 1), seed)
        for seed in range(chosen.seeds)
        for step in range(chosen.entropies)
    ]

    sample = recipes[:: max(1, len(recipes) // chosen.sample)]
    start, slowest = time.perf_counter(), 0.0
    for recipe in sample:
        before = time.perf_counter()
        recipe.build(lm)
        slowest = max(slowest, time.perf_counter() - before)
    alone = len(sample) / (time.perf_counter() - start)

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, furthest = time.perf_counter(), 0.0
    for recipe, target in zip(recipes, build_many(recipes, lm), strict=True):
        furthest = max(furthest, abs(target.entropy_bits - recipe.bits))
    together = len(recipes) / (time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024

    print(f"{len(recipes):,} vanilla targets over {chosen.vocab:,} tokens ({len(sample)} of them one at a time)")
    print(f"  one at a time {alone:8.1f} targets/s, slowest {slowest * 1000:.0f} ms")
    print(f"  together      {together:8.1f} targets/s, {together / alone:.1f} times as many")
    print(f"  peak memory grew by {grown:.0f} MiB; largest distance from the entropy asked for {furthest:.1e} bits")


if __name__ == "__main__":
    main()
