"""What a capsule from elsewhere must hold before anything of it is used: types, sizes, what belongs together."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dpexplore.errors import InputError

MOST = 10**15
"""A larger count is none; floats stay exact below it."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Id = Annotated[int, Field(ge=-1, le=2**31)]
"""Of a token; `layout.NO_TOKEN` where a soft token stands."""
Curve = list[list[Number | None]]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class Embeds(_Part):
    """`capsule.encode_array` of `(pos hidden)` float32."""

    shape: tuple[Count, Count]
    base64: str

    @model_validator(mode="before")
    @classmethod
    def _shape_as_json_has_it(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("shape"), list):
            return {**value, "shape": tuple(value["shape"])}
        return value

    @model_validator(mode="after")
    def _as_long_as_it_says(self) -> Self:
        positions, hidden = self.shape
        if not positions * hidden or len(self.base64) != 4 * -(-(4 * positions * hidden) // 3):
            raise ValueError("its length is not that of its shape")
        return self


class Model(_Part):
    """What it was tuned on."""

    name: str
    dtype: str


class Wanted(_Part):
    """Its target."""

    recipe: str
    entropy_nats: Number


class Restart(_Part):
    """The best prompt of a restart."""

    ids: Annotated[list[Id], Field(min_length=1)]
    embeds: Embeds | None


class Result(_Part):
    """The best prompt of all and what was measured of it."""

    status: str
    kl_nats: Number
    kl_nats_per_restart: list[Number | None]
    best_restart: Count
    prompt_ids: Annotated[list[Id], Field(min_length=1)] | None
    prompt_embeds: Embeds | None
    steps: Count
    evaluations: Count
    seconds: Annotated[float, Field(ge=0, le=MOST)]
    # Measured again where they are missing; see `replay.restore`.
    scored_in: str = ""
    kl_search_nats: Number | None = None
    entropy_nats: Number | None = None
    slots: str = ""
    prompt_text: str | None = None
    kl_reencoded_nats: Number | None = None
    top_overlap: Number | None = None
    floor_nats: Number | None = None
    head_optimum_nats: Number | None = None
    direct_note: str | None = None
    bounds: str | None = None

    @model_validator(mode="after")
    def _with_a_prompt(self) -> Self:
        if self.prompt_ids is None and self.prompt_embeds is None:
            raise ValueError("it holds no prompt")
        return self


class History(_Part):
    """Every step, over the restarts."""

    kl_nats: Curve
    entropy_nats: Curve

    @model_validator(mode="after")
    def _step_by_step(self) -> Self:
        if list(map(len, self.kl_nats)) != list(map(len, self.entropy_nats)):
            raise ValueError("KL and entropy are not of the same steps and restarts")
        return self


class Capsule(_Part):
    """The parts of a capsule that are read; whatever else it holds is carried along."""

    model: Model
    libraries: dict[str, Any]
    target: Wanted
    config: dict[str, Any]
    result: Result
    restarts: list[Restart | None]
    history: History

    @model_validator(mode="after")
    def _best_among_its_restarts(self) -> Self:
        best = self.result.best_restart
        if best >= len(self.restarts) or self.restarts[best] is None:
            raise ValueError("its best restart is missing")
        return self

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its longest prompt."""
        found = [len(restart.ids) for restart in self.restarts if restart is not None]
        found += [embeds.shape[0] for restart in self.restarts if restart and (embeds := restart.embeds)]
        if self.result.prompt_embeds is not None:
            found.append(self.result.prompt_embeds.shape[0])
        return max([*found, len(self.result.prompt_ids or ())])


def read_capsule(capsule: Any) -> Capsule:
    """A capsule's record, checked; linear in its size. InputError that names the first part that is damaged."""
    try:
        return Capsule.model_validate(capsule)
    except ValidationError as error:
        first: dict[str, Any] = dict(error.errors(include_url=False, include_input=False, include_context=False)[0])
        place = ".".join(str(part) for part in first["loc"])[:80] or "as a whole"
        reason = str(first["msg"]).removeprefix("Value error, ")
        raise InputError(f"The capsule is damaged ({place}: {reason}); use an unchanged one.") from None
