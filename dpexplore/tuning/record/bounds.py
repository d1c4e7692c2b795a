"""What bounds the best KL of any prompt: the certified floor from below, the prompt that was found from above."""

from __future__ import annotations

import math
from dataclasses import dataclass

CLOSED_NATS = 1e-3
"""Floor and prompt this close answer the question how close any prompt can come."""
RECOVERED_NATS = 1e-4
"""A hard prompt this close to a captured target says what the target says; rounding leaves some 1e-6."""
RECOVERED = "Recovered: no other prompt of this length is known to say this."


@dataclass(frozen=True)
class Bounds:
    """What a run knows of its target beside the prompts that it tries."""

    floor_nats: float | None = None
    """No prompt of any length comes below this (certified); None for a head without a floor."""
    head_optimum_nats: float | None = None
    """The smallest KL found where the final norm puts u; a direct token reaches it where the model lets it through."""
    tolerance_nats: float = CLOSED_NATS
    """How far above the head's optimum a KL measured in the model's precision counts as at it."""
    note: str | None = None
    """Why the direct token did not reach the head's optimum, or a captured prompt was not looked for, in a sentence."""
    captured: bool = False
    """The target is what the model says at a state that its final norm can bring about, as after some prompt."""

    @property
    def enough_nats(self) -> float:
        """A prompt with a KL this low is at the head's optimum; −∞ where that is not known."""
        return -math.inf if self.head_optimum_nats is None else self.head_optimum_nats + self.tolerance_nats

    def reached(self, kl_nats: float) -> bool:
        """Whether a prompt is at the head's optimum."""
        return kl_nats <= self.enough_nats


def captured_sentence(kl_nats: float) -> str:
    """What a hard prompt at this KL is to a target that was captured from some prompt."""
    if kl_nats <= RECOVERED_NATS:
        return RECOVERED
    return f"Some prompt says exactly what the target says, at 0 nats; this one is at {kl_nats:.3f} nats."


def bounds_sentence(floor_nats: float | None, kl_nats: float) -> str | None:
    """What floor and prompt say together of every other prompt; None without a floor."""
    if floor_nats is None:
        return None
    floor = math.floor(1000 * floor_nats) / 1000  # rounded down, so that it stays a bound
    if kl_nats - floor_nats <= CLOSED_NATS:
        return f"No soft prompt comes closer than {floor:.3f} nats, and this one is at {kl_nats:.3f}."
    return (
        f"The closest that any prompt can come lies between {floor:.3f} nats (certified floor) and "
        f"{kl_nats:.3f} nats (this prompt)."
    )
