"""What a run is asked to do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, Literal

from dpexplore.checks import check_flag, check_number, check_text, check_whole
from dpexplore.errors import InputError
from dpexplore.tuning.knobs import KNOBS, Divergence, TokenPolicy
from dpexplore.tuning.norm_budget import NormBudget
from dpexplore.tuning.slots import Slots

SCREENED_SHARE = 0.05
"""Choosing a beginning takes at most this share of a restart's evaluations; the tuning itself needs the others more."""

SOFT_STEPS = 100
"""Steps for which a soft prompt is tuned before hard tokens begin near it,"""
SOFT_SHARE = 0.1
"""but for at most this share of the restart's own steps and evaluations."""

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
    # The softmax head's optimum, in one soft token and one forward pass where the model lets it through.
    "direct": {
        "length": 1,
        "steps": 300,
        "patience": 40,
        "restarts": 1,
        "init": "vocab",
        "soft_rule": "direct",
        "hard_rule": "search",
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
        "init": "recover",
        "soft_rule": "lbfgs",
        "hard_rule": "search",
        "screen": 128,
    },
}


@dataclass(frozen=True)
class TuneConfig:
    """Settings of one run; the defaults are the paper's (Distribution Prompting, App. B).

    `KNOBS` says what each of them does and which values it takes.
    """

    method: Literal["soft", "hard", "hybrid"] = "soft"
    length: int = 5
    slots: str | None = None
    restarts: int = 5
    steps: int = 500
    seed: int = 0
    learning_rate: float = 0.1
    patience: int | None = 20
    init: Literal["vocab", "lookup", "recover", "soft", "gaussian", "text"] = "vocab"
    bos: bool = True
    objective: Divergence = "kl"
    soft_rule: Literal["adamw", "lbfgs", "direct"] = "adamw"
    norm_budget: float | str | None = None
    hard_rule: Literal["eq4", "gcg", "search"] = "eq4"
    epoch: Literal["token", "sweep"] = "token"
    strict: bool = False
    candidates: int = 64
    top: int = 128
    memory: int = 50
    screen: int = 1
    init_text: str | None = None
    policy: TokenPolicy = "no_special"
    allow: tuple[str | int, ...] = ()
    forbid: tuple[str | int, ...] = ()
    round_trip: bool = False
    chat: bool = False
    evaluations: int | None = None
    seconds: int | None = None

    def __post_init__(self) -> None:
        self._check_values()
        for name in ("allow", "forbid"):
            object.__setattr__(self, name, _tokens(name, getattr(self, name)))
        slots = self.parsed_slots()
        if self.method != "hybrid" and slots.free("hard" if self.method == "soft" else "soft"):
            raise InputError(
                f"Method {self.method!r} does not tune the slots {slots}; use method 'hybrid' for both kinds."
            )
        soft, hard = slots.free("soft") > 0, slots.free("hard") > 0
        if self.soft_rule == "direct" and not soft:
            raise InputError(f"soft_rule 'direct' fills a soft slot, and the slots {slots} hold none; add soft*1.")
        if self.soft_rule == "direct" and self.objective != "kl":
            raise InputError(
                f"soft_rule 'direct' solves the softmax head for KL(p‖q), not for the objective {self.objective!r}; "
                "use 'lbfgs' for it."
            )
        if self.norm_budget is not None:
            NormBudget.parse(self.norm_budget)
            if not soft:
                raise InputError(f"norm_budget bounds soft tokens, and the slots {slots} hold none; leave it out.")
        if soft and hard and self.soft_rule != "adamw" and self.hard_rule == "eq4":
            raise InputError(
                f"soft_rule {self.soft_rule!r} cannot follow the unchecked swaps of hard_rule 'eq4' in one prompt; "
                "use 'gcg' or 'search' with it."
            )
        if soft and self.round_trip:
            raise InputError(f"round_trip asks for text, but the slots {slots} hold soft tokens; hard slots have text.")
        if soft and hard and self.strict and self.rules != ("adamw", "eq4"):
            raise InputError(
                "strict is the paper's left-to-right order, of soft_rule 'adamw' with hard_rule 'eq4'; use these two, "
                "or leave strict off."
            )
        if self.init == "soft" and not hard:
            raise InputError(f"init 'soft' starts hard tokens, and the slots {slots} hold none.")
        if (self.init == "text") != (self.init_text is not None):
            raise InputError("init 'text' and init_text go together; give both or neither.")

    def _check_values(self) -> None:
        for name, knob in KNOBS.items():
            value = getattr(self, name)
            if knob.choices:
                _one_of(name, value, knob.choices)
            elif knob.low is not None and knob.high is not None and not (knob.optional and value is None):
                object.__setattr__(self, name, check_whole(name, value, knob.low, knob.high))
        for name in ("bos", "strict", "round_trip", "chat"):
            check_flag(name, getattr(self, name))
        if self.init_text is not None:
            check_text("init_text", self.init_text)
        check_number("learning_rate", self.learning_rate, "a number above 0, 0.1 in the paper", lambda rate: rate > 0)

    def parsed_slots(self) -> Slots:
        """The slots asked for, or the paper's: `length` tokens of one kind."""
        if self.slots is not None:
            return Slots.parse(self.slots)
        if self.method == "hybrid":
            raise InputError("Method 'hybrid' needs slots, such as soft*3 hard*2.")
        return Slots.of(self.method, self.length)

    @property
    def beginnings(self) -> int:
        """Random prompts scored before a restart begins: `screen`, but at most a share of what it may score at all."""
        limit = self.screen if self.evaluations is None else int(SCREENED_SHARE * self.evaluations)
        return max(1, min(self.screen, limit))

    @property
    def most_steps(self) -> int:
        """Steps that a restart may make: `steps` epochs."""
        return self.steps * self.steps_per_epoch

    @property
    def most_evaluations(self) -> int:
        """Prompts that a restart may score: those it is chosen from, then `evaluations`, or its steps' candidates."""
        checked = self.rules[1] not in (None, "eq4")
        each_step = 1 + (self.candidates if checked else 0)
        after = self.evaluations or self.soft_steps + self.most_steps * each_step
        return max(self.screen + after, each_step)

    @property
    def steps_per_epoch(self) -> int:
        """1, or where an epoch of Eq. 4 is a sweep the number of slots that take turns."""
        slots = self.parsed_slots()
        hard = slots.free("hard")
        if self.epoch == "token" or self.hard_rule != "eq4" or not hard:
            return 1
        return hard + slots.free("soft") * self.strict

    @property
    def soft_steps(self) -> int:
        """Steps of the soft prompt near which a restart's hard tokens begin; 0 where they begin elsewhere."""
        if self.init != "soft":
            return 0
        most = self.most_steps if self.evaluations is None else min(self.most_steps, self.evaluations)
        return min(SOFT_STEPS, int(SOFT_SHARE * most))

    def soft_part(self) -> TuneConfig:
        """The run of as many restarts that tunes those soft prompts: the same slots, all of them soft."""
        slots = Slots(
            tuple(replace(slot, kind="soft") if slot.kind == "hard" else slot for slot in self.parsed_slots().items)
        )
        limits = {"steps": self.soft_steps, "evaluations": self.soft_steps, "patience": None, "seconds": None}
        return replace(self, method="soft", slots=str(slots), init="vocab", round_trip=False, **limits)

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
                f"The config has the unknown field {unknown[0]!r}; the fields are {', '.join(sorted(known))}."
            )
        return cls(**record)

    def to_dict(self) -> dict[str, Any]:
        """The settings by name, as JSON can hold them."""
        return dataclasses.asdict(self)


def fig4_slots(length: int = 5) -> tuple[str, ...]:
    """The slots of Fig. 4, 0 to `length` soft tokens among `length`, the soft ones in front."""
    kinds = [(soft, length - soft) for soft in range(length + 1)]
    return tuple(" ".join([f"soft*{soft}"] * (soft > 0) + [f"hard*{hard}"] * (hard > 0)) for soft, hard in kinds)


def _one_of(name: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise InputError(f"{name} is {value!r}; use one of {', '.join(map(repr, accepted))}.")


def _tokens(name: str, value: object) -> tuple[str | int, ...]:
    entries = tuple(value) if isinstance(value, list | tuple) else None
    if entries is None or any(isinstance(entry, bool) or not isinstance(entry, str | int) for entry in entries):
        raise InputError(f"{name} is {value!r}; use a list of token texts or ids.")
    for entry in entries:
        if isinstance(entry, str):
            check_text(name, entry)
    return entries
