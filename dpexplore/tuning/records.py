"""What a run tells: its steps while it runs, its result at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

Status = Literal["converged", "max_steps", "cancelled", "nonfinite"]


@dataclass(frozen=True)
class TuneStep:
    """One step of a run, over its restarts; None where a restart is not running at this step."""

    step: int
    """1 for the first evaluation."""
    kl_nats: list[float | None]
    """KL(p‖q) of each restart's present prompt."""
    entropy_nats: list[float | None]
    """Entropy of each restart's q."""
    best_kl_nats: float
    """Lowest KL of the whole run so far."""
    best_restart: int
    """The restart that reached it."""


@dataclass(frozen=True)
class NearestToken:
    """A vocabulary token near a soft token: a reading aid, not a prompt."""

    token_id: int
    token: str
    cosine: float


@dataclass(frozen=True, eq=False)
class TuneResult:
    """The best prompt of a run, re-scored alone after the search."""

    status: Status
    """converged: every restart stopped improving; max_steps; cancelled; nonfinite: no restart stayed finite."""
    kl_nats: float
    """KL(p‖q) of the best prompt, re-scored in a pass of its own."""
    kl_nats_per_restart: list[float | None]
    """Lowest KL of each restart; None if it was never finite or never began."""
    best_restart: int
    entropy_nats: float
    """Entropy of q at the best prompt."""
    target_entropy_nats: float
    slots: str
    prompt_ids: list[int] | None
    """The exact ids at which `kl_nats` was measured, BOS included if one was used; None with soft tokens."""
    prompt_text: str | None
    """Those ids as text to copy, without what the tokenizer puts in front by itself; None with soft tokens."""
    kl_reencoded_nats: float | None
    """KL(p‖q) after `prompt_text` is encoded again; None with soft tokens or where the text cannot be encoded."""
    reencoded_ids: list[int] | None
    """The ids of that second encoding."""
    prompt_embeds: Tensor
    """`(pos hidden)` float32 on the CPU: what entered the model."""
    log_probs: Tensor
    """log q, `(vocab,)` float32 on the CPU, of the best prompt."""
    nearest: list[list[NearestToken] | None]
    """For each position the nearest vocabulary tokens of a soft token, best first; None at other slots."""
    steps: int
    """Steps of the longest restart."""
    seconds: float
    capsule: dict[str, Any]
    """The run's JSON record, from which anyone can replay it."""
