"""What a spec's YAML may hold, as a schema; every fault is reported in one sentence."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dpexplore.errors import InputError
from dpexplore.experiments.yaml_text import read_yaml, scalar
from dpexplore.tuning import TuneConfig


def _text_settings() -> frozenset[str]:
    hints = get_type_hints(TuneConfig)
    numbers = {int, float, bool}
    return frozenset({"preset"} | {name for name, hint in hints.items() if not numbers & {hint, *get_args(hint)}})


TEXT_SETTINGS = _text_settings()
"""Fields of `TuneConfig` that take text (lists of tokens among them): `init_text: no` is the word."""


def _whole(value: Any) -> Any:
    """A whole number as people write it: `5`, `5.0`, `1e2`."""
    read = scalar(value)
    return int(read) if isinstance(read, float) and read.is_integer() else read


Kind = Literal["tune", "floor", "shape", "pos_counts"]
Names = Annotated[list[str], Field(min_length=1)]


class GroupFile(BaseModel):
    """One group of a spec, or what a size's groups have in common; what is left out is the size's, or the default."""

    model_config = ConfigDict(extra="forbid")

    recipe: str = ""
    over: dict[str, Any] = {}
    kinds: Annotated[list[Kind], Field(min_length=1)] = ["tune"]
    tune: dict[str, Any] = {}
    restarts: Annotated[int, BeforeValidator(_whole), Field(strict=True, ge=1, le=100_000)] = 5
    models: Names | None = None

    @model_validator(mode="before")
    @classmethod
    def _recipe_alone(cls, value: Any) -> Any:
        return {"recipe": value} if isinstance(value, str) else value

    def fields(self) -> dict[str, Any]:
        """What was written, as arguments of `Group`."""
        given = {name: getattr(self, name) for name in self.model_fields_set & GroupFile.model_fields.keys()}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


class SizeFile(GroupFile):
    """One size of a spec."""

    groups: Annotated[dict[str, GroupFile], Field(min_length=1)]

    @model_validator(mode="after")
    def _every_group_has_models(self) -> SizeFile:
        for name, group in self.groups.items():
            if not (self.models or group.models):
                raise ValueError(f"the group {name!r} names no `models`, nor does its size")
        return self


class SpecFile(BaseModel):
    """A spec."""

    model_config = ConfigDict(extra="forbid")

    title: str
    figure: str | None = None
    sizes: Annotated[dict[str, SizeFile], Field(min_length=1)]


def parse_spec(name: str, text: str) -> SpecFile:
    """The spec that YAML text writes; `name` is what errors call it. InputError names the field that is wrong."""
    raw = read_yaml(name, text)
    if not isinstance(raw, dict) or "title" not in raw or "sizes" not in raw:
        raise InputError(f"{name} lacks `title` or `sizes`; both are needed.")
    try:
        return SpecFile.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{name} {_sentence(error)}.") from None


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"has the unknown field `{place}`; known are {', '.join(SizeFile.model_fields)}"
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    verb = "needs" if first["type"] == "missing" else "has"
    given = "" if first["type"] in ("missing", "value_error") else f" {str(first['input'])[:60]!r}"
    return f"{verb} `{place}`{given}: {'it should be ' if 'Input should be' in first['msg'] else ''}{said}"
