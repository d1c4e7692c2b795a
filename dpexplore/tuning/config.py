"""What a run is asked to do."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from dpexplore.errors import InputError
from dpexplore.tuning.objective import DIVERGENCES, Divergence
from dpexplore.tuning.policy import POLICIES, TokenPolicy
from dpexplore.tuning.slots import Slots

METHODS = ("soft", "hard", "hybrid")
INITS = ("vocab", "gaussian", "text")
SOFT_RULES = ("adamw", "lbfgs")
HARD_RULES = ("eq4", "gcg", "search")

PRESETS: dict[str, dict[str, Any]] = {
    # Distribution Prompting, App. B, to the letter.
    "paper": {
        "length": 5,
        "learning_rate": 0.1,
        "steps": 500,
        "patience": 20,
        "restarts": 5,
        "init": "vocab",
        "soft_rule": "adamw",
        "hard_rule": "eq4",
        "screen": 1,
    },
    # Best KL in little time.
    "fast": {
        "length": 5,
        "steps": 300,
        "evaluations": 1500,
        "patience": 40,
        "restarts": 3,
        "init": "vocab",
        "soft_rule": "lbfgs",
        "hard_rule": "search",
        "screen": 20,
    },
    # Best KL.
    "thorough": {
        "length": 5,
        "steps": 1000,
        "evaluations": 10_000,
        "patience": 100,
        "restarts": 10,
        "init": "vocab",
        "soft_rule": "lbfgs",
        "hard_rule": "search",
        "screen": 50,
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
    """At most so many steps for each restart: evaluations of loss and gradient, each with its candidates if any."""
    seed: int = 0
    """Seeds the initialisations and the search; restart i of seed s is the same whatever else runs."""
    learning_rate: float = 0.1
    """AdamW's, constant."""
    patience: int | None = 20
    """A restart ends after so many steps in a row without improvement; None: never."""
    init: Literal["vocab", "gaussian", "text"] = "vocab"
    """Soft tokens start at random vocabulary embeddings, Gaussian at the embeddings' mean and spread, or at a text."""
    bos: bool = True
    """Put in front what the tokenizer itself puts in front of a text (nothing for GPT-2 and SmolLM2)."""
    objective: Divergence = "kl"
    """What is minimised: KL(p‖q) as in the paper, KL(q‖p), Jensen-Shannon (nats), or total variation (0 to 1)."""
    soft_rule: Literal["adamw", "lbfgs"] = "adamw"
    """adamw: the paper's; lbfgs: limited-memory BFGS with a line search."""
    hard_rule: Literal["eq4", "gcg", "search"] = "eq4"
    """eq4: the paper's, unchecked; gcg: Greedy Coordinate Gradient; search: see `hard_rules.Search`."""
    candidates: int = 64
    """gcg, search: prompts scored in each step."""
    top: int = 128
    """gcg, search: candidates are drawn from so many best-ranked tokens of a position."""
    memory: int = 50
    """lbfgs: pairs of step and gradient change that a row remembers."""
    screen: int = 1
    """Random prompts scored to choose the beginning of each restart; 1: the first one is taken, as in the paper."""
    init_text: str | None = None
    """init 'text': what the free slots start from, repeated or cut to their number."""
    policy: TokenPolicy = "no_special"
    """What hard slots may hold: any, no_special (tokens that stand for text), printable, ascii, words."""
    allow: tuple[str | int, ...] = ()
    """Texts or ids of the only tokens that hard slots may hold, in the policy's place."""
    forbid: tuple[str | int, ...] = ()
    """Texts or ids of tokens that hard slots may not hold."""
    round_trip: bool = False
    """Search only prompts whose text encodes to the same ids again."""
    chat: bool = False
    """Put the slots into the user's turn of the model's chat template."""
    evaluations: int | None = None
    """A restart ends after so many prompts scored, gradients and candidates counted alike; None: `steps` decides."""

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        for name in ("allow", "forbid"):
            object.__setattr__(self, name, _tokens(name, getattr(self, name)))
        slots = self.parsed_slots()
        if self.method != "hybrid" and slots.free("hard" if self.method == "soft" else "soft"):
            raise InputError(
                f"Method {self.method!r} does not tune the slots {slots}; use method 'hybrid' for both kinds."
            )
        soft, hard = slots.free("soft") > 0, slots.free("hard") > 0
        if soft and hard and self.soft_rule == "lbfgs" and self.hard_rule == "eq4":
            raise InputError(
                "soft_rule 'lbfgs' cannot follow the unchecked swaps of hard_rule 'eq4' in one prompt; accepted beside "
                "it are 'gcg' and 'search'."
            )
        if soft and self.round_trip:
            raise InputError(f"round_trip asks for text, but the slots {slots} hold soft tokens; hard slots have text.")
        if (self.init == "text") != (self.init_text is not None):
            raise InputError("init 'text' and init_text go together: the one names the other's use.")

    def _check_choices(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("init", self.init, INITS)
        _one_of("objective", self.objective, DIVERGENCES)
        _one_of("soft_rule", self.soft_rule, SOFT_RULES)
        _one_of("hard_rule", self.hard_rule, HARD_RULES)
        _one_of("policy", self.policy, POLICIES)
        for name in ("bos", "round_trip", "chat"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}; accepted are True and False.")

    def _check_numbers(self) -> None:
        limits = {
            "length": 100_000,
            "restarts": 1_000_000,
            "steps": 10_000_000,
            "candidates": 1_000_000,
            "top": 10_000_000,
            "memory": 1000,
            "screen": 1_000_000,
        }
        for name, high in limits.items():
            _whole(name, getattr(self, name), 1, high)
        _whole("seed", self.seed, 0, 2**63 - 1)
        for name in ("patience", "evaluations"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1, 10**12)
        rate = self.learning_rate
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
            raise InputError(f"learning_rate is {rate!r}; it is a number above 0, 0.1 in the paper.")

    def parsed_slots(self) -> Slots:
        """The slots asked for, or the paper's: `length` tokens of one kind."""
        if self.slots is not None:
            return Slots.parse(self.slots)
        if self.method == "hybrid":
            raise InputError("Method 'hybrid' needs slots, such as soft*3 hard*2.")
        return Slots.of(self.method, self.length)

    @property
    def rules(self) -> tuple[str | None, str | None]:
        """The rule of the soft and of the hard slots; None where there are none of the kind."""
        slots = self.parsed_slots()
        return (
            self.soft_rule if slots.free("soft") else None,
            self.hard_rule if slots.free("hard") else None,
        )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> TuneConfig:
        """A named preset with fields changed: `TuneConfig.preset("paper", method="hard", seed=3)`."""
        _one_of("preset", name, tuple(PRESETS))
        return cls(**{**PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> TuneConfig:
        """The config of `to_dict`, also as JSON gives it back; fields that it lacks keep their defaults."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(record) - known):
            raise InputError(
                f"The config has the unknown field {unknown[0]!r}; accepted are {', '.join(sorted(known))}."
            )
        return cls(**record)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def fig4_slots(length: int = 5) -> tuple[str, ...]:
    """The slots of Fig. 4, 0 to `length` soft tokens among `length`, the soft ones in front."""
    kinds = [(soft, length - soft) for soft in range(length + 1)]
    return tuple(" ".join([f"soft*{soft}"] * (soft > 0) + [f"hard*{hard}"] * (hard > 0)) for soft, hard in kinds)


def _one_of(name: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise InputError(f"{name} is {value!r}; accepted are {', '.join(map(repr, accepted))}.")


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{name} is {value!r}; it is a whole number from {low} to {high}.")


def _tokens(name: str, value: object) -> tuple[str | int, ...]:
    entries = tuple(value) if isinstance(value, list | tuple) else None
    if entries is None or any(isinstance(entry, bool) or not isinstance(entry, str | int) for entry in entries):
        raise InputError(f"{name} is {value!r}; it is a list of token texts or ids.")
    return entries
