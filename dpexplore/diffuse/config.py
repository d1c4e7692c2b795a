"""What an adapter run is asked to do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dpexplore.checks import check_flag, check_number, check_seed, check_whole
from dpexplore.errors import InputError

Size = Literal["small", "full"]
"""How long the families' lists of outcomes are."""
SIZES: tuple[Size, ...] = get_args(Size)

PRESETS: dict[str, dict[str, Any]] = {
    # Forcing Diffuse Distributions, §4 and its repository; meant for models of 7 to 13 billion parameters.
    "paper": {"learning_rate": 5e-5, "batch": 32},
    # For models of a hundredth of that size. Outcomes of one request share one pass, which changes no gradient.
    "fast": {"learning_rate": 1e-3, "batch": 256, "decay": True},
}


@dataclass(frozen=True)
class AdapterConfig:
    """Settings of one LoRA run; the defaults are the paper's."""

    __pydantic_config__ = {"use_attribute_docstrings": True}  # noqa: RUF012 - the schema of its record says what each does

    rank: int = 4
    """Rank of every adapter matrix; PEFT scales it by 8 / rank."""
    learning_rate: float = 5e-5
    """AdamW's, with ε = 1e-5 and PyTorch's other defaults."""
    decay: bool = False
    """Whether the learning rate falls to 0 along a cosine over the passes; constant in the paper."""
    clip: float = 1.0
    """The gradient's norm is cut to this before every step."""
    passes: int = 50
    """Most passes over all requests; one step for each request in a pass."""
    batch: int = 32
    """Outcomes scored in one pass of the model; all of a request's outcomes count for its step."""
    early_stop: bool = False
    """End after a pass whose loss was no more than (1 + gamma) · H(w)."""
    gamma: float = 0.2
    """How far above the floor an early stop may stand."""
    seed: int = 0
    """Seeds the adapter's initialisation and the order of requests and outcomes."""

    def __post_init__(self) -> None:
        for name, high in {"rank": 1024, "passes": 1_000_000, "batch": 1_000_000}.items():
            object.__setattr__(self, name, check_whole(name, getattr(self, name), 1, high))
        object.__setattr__(self, "seed", check_seed(self.seed))
        for name in ("learning_rate", "clip"):
            check_number(name, getattr(self, name), "a number above 0", lambda number: number > 0)
        check_number("gamma", self.gamma, "a number from 0 on", lambda number: number >= 0)
        for name in ("decay", "early_stop"):
            check_flag(name, getattr(self, name))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> AdapterConfig:
        """A named preset with fields changed."""
        if name not in PRESETS:
            raise InputError(f"preset is {name!r}; use one of {', '.join(map(repr, PRESETS))}.")
        return cls(**{**PRESETS[name], **changes})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
