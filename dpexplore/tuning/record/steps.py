"""What a run tells: its steps while it runs, its result at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from dpexplore.tuning.record.bounds import RECOVERED_NATS, Bounds, bounds_sentence, captured_sentence

PRECISION_TOLERANCE = 0.02
"""Low precision is spoken of where it moves the KL by more than this share."""

Status = Literal["converged", "max_steps", "cancelled", "nonfinite"]


@dataclass(frozen=True)
class TuneStep:
    """One step of a run, over its restarts; None where a restart is not running at this step."""

    step: int
    """1 for the first evaluation."""
    kl_nats: list[float | None]
    """KL(p‖q) of each restart's present prompt: the one tried at this step, or the best of its candidates."""
    entropy_nats: list[float | None]
    """Entropy of each restart's q."""
    best_kl_nats: float
    """KL of the best prompt of the whole run so far; the lowest, unless another objective is minimised."""
    best_restart: int
    """The restart that reached it."""
    evaluations: list[int]
    """Prompts scored for each restart so far, with gradient or without."""


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
    """KL(p‖q) of the best prompt, re-scored in a pass of its own, in the precision of `scored_in`."""
    scored_in: str
    """float32; the model's own dtype only where the memory does not hold one layer of it in float32."""
    kl_search_nats: float | None
    """KL of the same prompt as the search saw it, in the model's own precision; None where that is `scored_in`."""
    kl_nats_per_restart: list[float | None]
    """KL of each restart's best prompt; None if it was never finite or never began."""
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
    objective: str
    """What was minimised; the best prompt is the best by this."""
    distances: dict[str, float]
    """kl, reverse_kl, js (nats) and tv (0 to 1) between p and q at the best prompt; reverse_kl may be infinite."""
    top_overlap: float
    """Share of p's ten likeliest tokens that are among q's."""
    bounds: Bounds
    """Floor and head optimum of the target, where the run solved its head (soft rule `direct`, init `recover`)."""
    steps: int
    """Steps of the longest restart."""
    evaluations: int
    """Prompts scored in the whole run, with gradient or without."""
    seconds: float
    capsule: dict[str, Any]
    """The run's JSON record, from which anyone can replay it."""

    @property
    def spread_nats(self) -> tuple[float, float, float]:
        """Lowest, mean and highest KL over the restarts that stayed finite."""
        values = [kl for kl in self.kl_nats_per_restart if kl is not None]
        return min(values), sum(values) / len(values), max(values)

    @property
    def bounds_sentence(self) -> str | None:
        """What the certified floor and this prompt say together: the question closed, or the interval that is left."""
        if self.bounds.captured and self.prompt_ids is not None:
            return captured_sentence(self.kl_nats)
        return bounds_sentence(self.bounds.floor_nats, self.kl_nats)

    @property
    def recovered(self) -> bool:
        """Whether the target was captured from some prompt, and these hard tokens say what it says."""
        return self.bounds.captured and self.prompt_ids is not None and self.kl_nats <= RECOVERED_NATS

    @property
    def precision_warning(self) -> str | None:
        """A sentence where the model's precision moves the KL by more than 2 %, or nobody could check that."""
        seen, dtype = self.kl_search_nats, self.capsule["model"]["dtype"]
        if self.scored_in != "float32":
            return f"This KL was computed in {self.scored_in}: the memory is too small to check it in float32."
        if seen is None or abs(self.kl_nats - seen) <= PRECISION_TOLERANCE * abs(self.kl_nats):
            return None
        return (
            f"The search ran in {dtype}, which moves the KL of this prompt: {seen:.4f} nats there, "
            f"{self.kl_nats:.4f} nats in float32."
        )
