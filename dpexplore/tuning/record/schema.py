"""The one schema of what a run tells: steps, results and capsules, for files, command line, HTTP and MCP alike.

Units stand in the names: `_nats`, `_bits`. Capsules of before, which lack some fields, validate; fields that this
version does not know are kept.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dpexplore.errors import InputError
from dpexplore.json_text import JsonLimits, JsonRefused, read_json
from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.knobs import KNOBS
from dpexplore.tuning.record.steps import Status, TuneResult, TuneStep

FORMAT = "dpexplore capsule"
FORMAT_VERSION = 1
MOST = 10**15
"""A larger count is none; floats stay exact below it."""
MOST_VALUES = 20_000_000
"""A run of 100,000 steps of 100 restarts."""
NATS_PER_BIT = math.log(2)

Count = Annotated[int, Field(ge=0, le=MOST)]
Ids = list[Annotated[int, Field(ge=-1, le=2**31)]]
Nats = Annotated[float, Field(description="in nats")]
MaybeNats = Annotated[float | None, Field(description="in nats")]
Settings = TypeVar("Settings")


class Record(BaseModel):
    """What every part of a record is: strict in kinds, with finite numbers, and open to fields of later versions."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class CapsuleRecord(Record):
    """What is common to the capsules of all kinds of runs."""

    format: str
    format_version: Literal[1]
    created: str = ""
    libraries: dict[str, str]

    written_by: ClassVar[str]
    """The command that writes such a capsule."""

    @classmethod
    def format_name(cls) -> str:
        """What `format` says in such a capsule."""
        return get_args(cls.model_fields["format"].annotation)[0]


class ArrayRecord(Record):
    """A float32 tensor: its shape, and its little-endian bytes in base64."""

    dtype: Literal["float32"] = "float32"
    shape: Annotated[list[Count], Field(min_length=2, max_length=2, description="positions, hidden")]
    base64: str

    @model_validator(mode="after")
    def _whole_and_finite(self) -> Self:
        size = 4 * math.prod(self.shape)
        if not size or len(self.base64) != 4 * -(-size // 3):  # before anything is decoded
            raise ValueError(f"holds {len(self.base64):,} characters, which the shape {self.shape} does not have")
        try:
            data = base64.b64decode(self.base64, validate=True)
        except binascii.Error as error:
            raise ValueError("holds bytes that are no base64") from error
        if len(data) != size:
            raise ValueError(f"holds {len(data):,} bytes, which the shape {self.shape} does not have")
        if not np.isfinite(np.frombuffer(data, dtype="<f4")).all():
            raise ValueError("holds NaN or infinite numbers")
        return self


class StepRecord(Record):
    """One step of a run; null where a restart is not running."""

    step: Count
    kl_nats: list[float | None]
    entropy_nats: list[float | None]
    evaluations: list[Count]

    @classmethod
    def of(cls, step: TuneStep) -> StepRecord:
        return cls(step=step.step, kl_nats=step.kl_nats, entropy_nats=step.entropy_nats, evaluations=step.evaluations)


class ResultRecord(Record):
    """What came of a run, at its best prompt. A run that was cut off, and older versions, leave some of it out."""

    status: Status
    kl_nats: Annotated[float | None, Field(description="in nats; null where it is not finite")]
    kl_nats_per_restart: list[float | None]
    best_restart: Count
    prompt_ids: Annotated[
        Annotated[Ids, Field(min_length=1)] | None,
        Field(description="the exact ids at which kl_nats was measured; null if soft"),
    ]
    prompt_text: str | None = None
    kl_reencoded_nats: MaybeNats = None
    entropy_nats: MaybeNats = None
    entropy_bits: Annotated[float | None, Field(description="in bits")] = None
    target_entropy_nats: MaybeNats = None
    target_entropy_bits: Annotated[float | None, Field(description="in bits")] = None
    slots: str | None = None
    objective: str | None = None
    distances: Annotated[
        dict[str, float | None], Field(description="kl, reverse_kl, js in nats, tv from 0 to 1; null is infinite")
    ] = {}
    top_overlap: Annotated[float | None, Field(ge=0, le=1)] = None
    scored_in: str | None = None
    kl_search_nats: MaybeNats = None
    floor_nats: MaybeNats = None
    head_optimum_nats: MaybeNats = None
    direct_note: str | None = None
    captured: Annotated[
        bool, Field(description="the target is what the model says of some prompt, as far as known")
    ] = False
    recovered: Annotated[bool, Field(description="the hard prompt says exactly what a captured target says")] = False
    bounds: str | None = None
    steps: Count | None = None
    evaluations: Count | None = None
    seconds: Annotated[float | None, Field(ge=0, le=MOST)] = None

    @classmethod
    def of(cls, result: TuneResult) -> ResultRecord:
        """The record of a result."""
        return cls(
            status=result.status,
            kl_nats=finite(result.kl_nats),
            kl_nats_per_restart=[finite(value) for value in result.kl_nats_per_restart],
            best_restart=result.best_restart,
            prompt_ids=result.prompt_ids,
            prompt_text=result.prompt_text,
            kl_reencoded_nats=finite(result.kl_reencoded_nats),
            entropy_nats=finite(result.entropy_nats),
            entropy_bits=finite(result.entropy_nats / NATS_PER_BIT),
            target_entropy_nats=result.target_entropy_nats,
            target_entropy_bits=result.target_entropy_nats / NATS_PER_BIT,
            slots=result.slots,
            objective=result.objective,
            distances={kind: finite(value) for kind, value in result.distances.items()},
            top_overlap=result.top_overlap,
            scored_in=result.scored_in,
            kl_search_nats=finite(result.kl_search_nats),
            floor_nats=result.bounds.floor_nats,
            head_optimum_nats=result.bounds.head_optimum_nats,
            direct_note=result.bounds.note,
            captured=result.bounds.captured,
            recovered=result.recovered,
            bounds=result.bounds_sentence,
            steps=result.steps,
            evaluations=result.evaluations,
            seconds=round(result.seconds, 3),
        )


class StoredResult(ResultRecord):
    """A result as a capsule holds it: with the vectors of its soft tokens."""

    prompt_embeds: ArrayRecord | None = None

    @model_validator(mode="after")
    def _has_a_prompt(self) -> Self:
        if not self.prompt_ids and self.prompt_embeds is None:
            raise ValueError("has neither prompt_ids nor prompt_embeds")
        return self


class ModelRecord(Record):
    """The model a run was made on."""

    name: str
    identity: str
    device: str | None = None
    dtype: str
    dtype_reason: str | None = None


class TargetRecord(Record):
    """The target, by the recipe that rebuilds it."""

    recipe: str
    provenance: dict[str, Any] = {}
    entropy_nats: Nats


class RestartRecord(Record):
    """Where a restart's best prompt stands."""

    reason: str
    steps: Count
    evaluations: Count
    loss: float
    kl_nats: MaybeNats = None
    ids: Annotated[Ids, Field(min_length=1, description="-1 at soft positions")]
    embeds: ArrayRecord | None = None

    @model_validator(mode="after")
    def _soft_tokens_have_vectors(self) -> Self:
        if self.embeds is None and min(self.ids) < 0:
            raise ValueError("has soft positions and no embeds")
        return self


class History(Record):
    """Step by step, one number a restart."""

    kl_nats: list[list[float | None]]
    entropy_nats: list[list[float | None]]
    evaluations: list[Count] = []

    @model_validator(mode="after")
    def _step_by_step(self) -> Self:
        if list(map(len, self.kl_nats)) != list(map(len, self.entropy_nats)):
            raise ValueError("has KL and entropy of different steps and restarts")
        return self


def read_settings(value: Any, build: Callable[[dict[str, Any]], Settings]) -> Settings:
    """The settings in a record, as `build` makes them. ValueError, in words that follow the field's name."""
    if not isinstance(value, dict):
        raise ValueError("is not a table of settings")
    try:
        return build(value)
    except InputError as error:  # a ValueError too, with a full stop of its own
        raise ValueError(str(error).rstrip(".")) from None
    except TypeError as error:
        raise ValueError("holds an unknown setting, or one of the wrong type") from error


class Capsule(CapsuleRecord):
    """A run's record, from which anyone can replay it."""

    model_config = ConfigDict(title=FORMAT)
    written_by = "tune --out"

    format: Literal["dpexplore capsule"]
    name: Annotated[str, Field(description="what the run is called on a page; empty if it has no name")] = ""
    model: ModelRecord
    resumed_from: dict[str, Any] | None = None
    target: TargetRecord
    config: Annotated[TuneConfig, BeforeValidator(partial(read_settings, build=TuneConfig.from_dict))]
    result: StoredResult
    restarts: list[RestartRecord | None]
    history: History

    @model_validator(mode="after")
    def _the_best_restart_is_there(self) -> Self:
        best = self.result.best_restart
        if best >= len(self.restarts) or self.restarts[best] is None:
            raise ValueError(f"names restart {best} as the best, of which it holds no prompt")
        return self

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its longest prompt."""
        held = [restart for restart in self.restarts if restart is not None]
        embeds = [*(restart.embeds for restart in held), self.result.prompt_embeds]
        found = [len(restart.ids) for restart in held] + [each.shape[0] for each in embeds if each is not None]
        return max([*found, len(self.result.prompt_ids or ())])


def capsule_schema() -> dict[str, Any]:
    """The JSON Schema of a capsule; each setting with what it does and its range."""
    schema = published_schema(Capsule)
    settings = schema["$defs"]["TuneConfig"]["properties"]
    for name, knob in KNOBS.items():
        settings[name]["description"] = knob.text
        if knob.low is not None:
            settings[name] |= {"minimum": knob.low, "maximum": knob.high}
    return schema


def published_schema(record: type[CapsuleRecord]) -> dict[str, Any]:
    """The JSON Schema of a kind of capsule, with the dialect that it is written in."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **record.model_json_schema()}


def read_capsule(capsule: Any) -> Capsule:
    """A capsule's record, checked; linear in its size. InputError that names the first part that is damaged."""
    try:
        return Capsule.model_validate(capsule)
    except ValidationError as error:
        first, *_ = error.errors(include_url=False)
        raise InputError(f"The capsule is damaged: {_fault(first)}; use an unchanged one.") from None


def faults_of(name: str, capsule: Any, record: type[CapsuleRecord] = Capsule) -> list[str]:
    """What is wrong with a capsule, a sentence each; none if nothing is.

    name: what it is called. record: the kind that it is to be.
    """
    try:
        check_format(name, capsule, record)
        record.model_validate(capsule)
    except InputError as error:
        return [str(error)]
    except ValidationError as error:
        return [f"{name} is damaged: {_fault(fault)}." for fault in error.errors(include_url=False)]
    return []


def capsule_json(path: Path, most_values: int = MOST_VALUES) -> Any:
    """The JSON of a capsule's file, whatever it holds. InputError if it cannot be read or is too large."""
    try:
        return read_json(path.read_bytes(), JsonLimits(most_values))
    except OSError as error:
        raise InputError(f"The capsule {path} cannot be read: {error.strerror}.") from error
    except JsonRefused as refused:
        raise InputError(f"{path.name} cannot be read as a capsule ({refused.reason}).") from None


def load_capsule(path: Path, most_values: int = MOST_VALUES) -> dict[str, Any]:
    """Read a capsule's file. InputError if it is missing, no capsule, or holds more than `most_values` numbers."""
    capsule = capsule_json(path, most_values)
    check_format(path.name, capsule, Capsule)
    read_capsule(capsule)
    return capsule


def check_format(name: str, capsule: Any, record: type[CapsuleRecord]) -> None:
    """InputError unless a JSON value says that it is a capsule of a kind and of this version."""
    if not isinstance(capsule, dict) or capsule.get("format") != record.format_name():
        raise InputError(f"{name} is not a capsule: a capsule is a JSON file that `{record.written_by}` writes.")
    if type(version := capsule.get("format_version")) is not int or version != FORMAT_VERSION:
        raise InputError(f"The capsule {name} has the format {str(version)[:20]}; this version reads {FORMAT_VERSION}.")


def finite(value: float | None) -> float | None:
    """JSON knows neither infinity nor NaN: None stands for them."""
    return value if value is not None and math.isfinite(value) else None


def _fault(fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"] if not str(part).startswith("function-"))
    said = str(fault["msg"]).removeprefix("Value error, ").rstrip(".")
    if fault["type"] == "missing":
        return f"`{place}` is missing"
    if fault["type"] == "value_error":
        return f"`{place}` {said}" if place else f"it {said}"
    shown = json.dumps(fault["input"], ensure_ascii=True, default=str)[:60]
    return f"`{place}` is {shown}; {said.replace('Input should', 'it should')}"
