"""What a run is asked to do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from dpexplore.errors import InputError
from dpexplore.tuning.slots import Slots

METHODS = ("soft", "hard", "hybrid")
INITS = ("vocab", "gaussian")

PRESETS: dict[str, dict[str, Any]] = {
    # Distribution Prompting, App. B, to the letter.
    "paper": {
        "length": 5,
        "learning_rate": 0.1,
        "steps": 500,
        "patience": 20,
        "restarts": 5,
        "init": "vocab",
    },
}


@dataclass(frozen=True)
class TuneConfig:
    """Settings of one run; the defaults are the paper's (Distribution Prompting, App. B)."""

    method: Literal["soft", "hard", "hybrid"] = "soft"
    """soft: free vectors by AdamW (Eq. 5); hard: vocabulary ids by Eq. 4; hybrid: both, as `slots` says."""
    length: int = 5
    """Number of virtual tokens, where `slots` does not say it."""
    slots: str | None = None
    """The prompt's slots, e.g. `"Q:" soft*3 hard*2`; None means `length` tokens of the method's kind."""
    restarts: int = 5
    """Independent prompt initialisations; the result is the best of them."""
    steps: int = 500
    """At most so many evaluations of loss and gradient for each restart."""
    seed: int = 0
    """Seeds the initialisations; restart i of seed s is the same prompt whatever else runs."""
    learning_rate: float = 0.1
    """AdamW's, constant."""
    patience: int | None = 20
    """A restart ends after so many steps in a row without improvement; None: never."""
    init: Literal["vocab", "gaussian"] = "vocab"
    """Soft tokens start at random vocabulary embeddings, or Gaussian at the embeddings' mean and spread."""
    bos: bool = True
    """Put in front what the tokenizer itself puts in front of a text (nothing for GPT-2 and SmolLM2)."""

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("init", self.init, INITS)
        for name, low, high in (("length", 1, 100_000), ("restarts", 1, 1_000_000), ("steps", 1, 10_000_000)):
            _whole(name, getattr(self, name), low, high)
        _whole("seed", self.seed, 0, 2**63 - 1)
        if self.patience is not None:
            _whole("patience", self.patience, 1, 10_000_000)
        if not isinstance(self.learning_rate, int | float) or not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate is {self.learning_rate!r}; it is a number above 0, 0.1 in the paper.")
        slots = self.parsed_slots()
        if self.method != "hybrid" and slots.free("hard" if self.method == "soft" else "soft"):
            raise InputError(
                f"Method {self.method!r} does not tune the slots {slots}; use method 'hybrid' for both kinds."
            )

    def parsed_slots(self) -> Slots:
        """The slots asked for, or the paper's: `length` tokens of one kind."""
        if self.slots is not None:
            return Slots.parse(self.slots)
        if self.method == "hybrid":
            raise InputError("Method 'hybrid' needs slots, such as soft*3 hard*2.")
        return Slots.of(self.method, self.length)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> TuneConfig:
        """A named preset with fields changed: `TuneConfig.preset("paper", method="hard", seed=3)`."""
        _one_of("preset", name, tuple(PRESETS))
        return cls(**{**PRESETS[name], **changes})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _one_of(name: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise InputError(f"{name} is {value!r}; accepted are {', '.join(map(repr, accepted))}.")


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{name} is {value!r}; it is a whole number from {low} to {high}.")
