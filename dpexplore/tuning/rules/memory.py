"""What a search over tokens remembers of its own prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

Prompt = tuple[int, ...]


@dataclass(eq=False)
class SearchMemory:
    """What a row's search has learnt of its own prompts."""

    rng: torch.Generator | None = None
    seen: set[Prompt] = field(default_factory=set)
    """Prompts that need no second look."""
    ids: list[Tensor] = field(default_factory=list)
    """Prompts scored, `(prompts pos)` a step, on the CPU."""
    losses: list[Tensor] = field(default_factory=list)
    """Their losses, `(prompts,)` a step, on the CPU."""
    failures: int = 0
    """Steps in a row that brought no better prompt than the one they began with."""
    slope: Tensor | None = None
    """`(hard hidden)`: running mean of unit gradients at the hard positions."""

    def forget(self) -> None:
        """The rest of the prompt has changed, so losses of before say nothing exact any more."""
        self.seen.clear()
        self.ids.clear()
        self.losses.clear()
