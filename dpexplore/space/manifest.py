"""The `Spacefile`: one manifest for everything that a deployment must know."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from huggingface_hub import SpaceHardware
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dpexplore.errors import InputError
from dpexplore.models.registry import REGISTRY
from dpexplore.shipped import SPACEFILE

Count = Annotated[int, Field(ge=1)]
Machine = Literal["cpu", "gpu", "zero"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Space(_Table):
    """What the Hub reads, in the front matter of the Space's README."""

    title: Annotated[str, Field(min_length=1, max_length=96)]
    emoji: Annotated[str, Field(min_length=1, max_length=8)]
    color_from: Literal["red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"]
    color_to: Literal["red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"]
    short_description: Annotated[str, Field(min_length=1, max_length=60)]
    license: str
    sdk: Literal["gradio"]
    sdk_version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    python_version: Annotated[str, Field(pattern=r"^3\.\d+(\.\d+)?$")]
    app_file: str
    startup_timeout: Annotated[str, Field(pattern=r"^\d+[mh]$")]
    hardware: str

    @field_validator("hardware")
    @classmethod
    def _known_hardware(cls, value: str) -> str:
        flavours = [str(flavour.value) for flavour in SpaceHardware]
        if value not in flavours:
            raise ValueError(f"is {value!r}; use one of {', '.join(flavours)}")
        return value


class Models(_Table):
    """Which models a visitor may load."""

    default: str
    allowed: Annotated[list[str], Field(min_length=1)]
    preload: list[str] = []
    any_hub_model: bool = False
    max_parameters: Count = 1_000_000_000

    @model_validator(mode="after")
    def _known_models(self) -> Models:
        for name in self.allowed:
            if name not in REGISTRY:
                raise ValueError(f"names {name!r}, which `dpexplore models` does not list")
        for name in [self.default, *self.preload]:
            if name not in self.allowed:
                raise ValueError(f"names {name!r}, which is not among its allowed models")
        return self

    @property
    def hub_ids(self) -> list[str]:
        """Repositories of the allowed models."""
        return [REGISTRY[name].hub_id for name in self.allowed]


class Limits(_Table):
    """What one run of one visitor may ask for."""

    rows: Count
    steps: Count
    evaluations: Count
    prompt_tokens: Count
    seconds: Count
    captured_tokens: Count
    """Of all prompts that a recipe runs through a model; a byte of text counts as one."""
    string_tokens: Count
    """Of a request and its outcomes, which every step of their run scores."""
    scored_teraflops: Count
    """Of scoring every prompt of one token, once for a model."""
    capsule_values: Count
    """Numbers in a capsule that is opened here."""
    slice_seconds: Annotated[int, Field(ge=10, le=600)] = 60
    """ZeroGPU: length of one slice of the GPU's time."""


class Server(_Table):
    """What the server takes from all visitors together, and when it refuses."""

    characters: Count
    solved_parts: Count
    """Of a recipe: entropies, matched targets and parts of speech count once, orders four times."""
    string_bytes: Count
    """Of a target over strings, every outcome behind its request: what the tokenizer reads."""
    message_kilobytes: Count
    """Of a request that uploads no file."""
    upload_megabytes: Count
    runs: Count
    runs_per_visitor: Count
    """At once, of one page; programs have no page, and share what their address has."""
    visitors_per_address: Count
    """People who may sit behind one address, such as a class: it has this many visitors' shares."""
    free_memory_gigabytes: Annotated[float, Field(ge=0, strict=False)]
    free_disk_gigabytes: Annotated[float, Field(ge=0, strict=False)]


class Manifest(_Table):
    """A whole `Spacefile`."""

    space: Space
    models: Models
    limits: dict[Machine, Limits]
    server: Server
    environment: dict[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")], str] = {}

    @model_validator(mode="after")
    def _limits_for_every_machine(self) -> Manifest:
        missing = {"cpu", "gpu", "zero"} - set(self.limits)
        if missing:
            raise ValueError(f"lacks the table [limits.{min(missing)}]")
        return self


def load_manifest(path: Path = SPACEFILE) -> Manifest:
    """Read a `Spacefile` (TOML). InputError, in one sentence, for one that is missing, no TOML, or wrong in a field."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror}); it belongs at the project's top.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} is no TOML that can be read: {error}.") from None
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path.name}: {_sentence(error)}.") from None


def _sentence(error: ValidationError) -> str:
    """The first thing wrong, with its place."""
    first: dict[str, Any] = dict(error.errors(include_url=False)[0])
    place = ".".join(map(str, first["loc"])) or "the manifest"
    reason = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{place} is not a field of it"
    if first["type"] == "missing":
        return f"{place} is missing"
    if first["type"] == "value_error":
        return f"{place} {reason}"
    return f"{place} is {first['input']!r}; {reason[0].lower()}{reason[1:]}"
