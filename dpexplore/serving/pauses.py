"""Short pauses for everybody where many threads share one interpreter."""

from __future__ import annotations

import gc
import sys

SWITCH_SECONDS = 0.0005
"""Python lets a thread go on ten times as long before another one may. The loop that answers everybody waits so long
for each busy thread, several times in an answer: with twelve of them up to 1.5 s instead of 0.15 s."""


def take_short_turns() -> None:
    """Let the threads of this process take shorter turns."""
    sys.setswitchinterval(SWITCH_SECONDS)


def spare_what_stays() -> None:
    """Let the garbage collector pass over all that there is now: modules, the page, a model.

    Every thread waits while it looks, half a second for the half million objects of the libraries alone.
    """
    gc.collect()
    gc.freeze()


def collect_everything() -> None:
    """Free what nobody uses any more, of what had been spared too; it is not spared again."""
    gc.unfreeze()
    gc.collect()
