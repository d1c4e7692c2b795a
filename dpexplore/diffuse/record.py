"""The schema of an adapter's capsule; units stand in the names, as in the capsule of a run."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from dpexplore.diffuse.config import AdapterConfig
from dpexplore.diffuse.training import AdapterStatus
from dpexplore.tuning.record.schema import MOST, CapsuleRecord, Count, ModelRecord, Record, read_settings

FORMAT = "dpexplore adapter capsule"
Share = Annotated[float | None, Field(ge=0, le=1 + 1e-6)]


class SamplesRecord(Record):
    """What sampled answers have in them."""

    count: Count
    entropy_nats: float | None
    coverage: Annotated[
        dict[str, float | None], Field(description="N -> distinct valid outcomes expected among N samples")
    ]
    invalid_share: Share
    unseen: Count
    biographies: dict[str, Any] | None = None


class AnswersRecord(Record):
    """How one request is answered; null where a number is not finite."""

    name: str
    cross_entropy_nats: float | None
    floor_nats: float | None
    kl_nats: float | None
    entropy_nats: float | None
    valid_mass: Share
    samples: SamplesRecord | None = None
    shown: Annotated[list[str], Field(default_factory=list)]


class AdapterTargetRecord(Record):
    """A target over strings, by the recipe that rebuilds it."""

    name: str
    recipe: str
    provenance: Annotated[dict[str, Any], Field(default_factory=dict)]


class AdapterResult(Record):
    """What came of the training."""

    status: AdapterStatus
    passes: Count
    seconds: Annotated[float, Field(ge=0, le=MOST)]
    answers: list[AnswersRecord]


class AdapterHistory(Record):
    """Pass by pass, one number a request."""

    cross_entropy_nats: list[list[float | None]]


class AdapterCapsule(CapsuleRecord):
    """An adapter's record, from which anyone can replay it."""

    model_config = ConfigDict(title=FORMAT)
    written_by = "diffuse --method lora --out"

    format: Literal["dpexplore adapter capsule"]
    model: ModelRecord
    config: Annotated[
        AdapterConfig, BeforeValidator(partial(read_settings, build=lambda given: AdapterConfig(**given)))
    ]
    targets: Annotated[list[AdapterTargetRecord], Field(min_length=1)]
    result: AdapterResult
    history: AdapterHistory

    @model_validator(mode="after")
    def _one_number_a_request(self) -> Self:
        requests = len(self.targets)
        if len(self.result.answers) != requests:
            raise ValueError(f"has {len(self.result.answers)} answers to {requests} requests")
        if any(len(row) != requests for row in self.history.cross_entropy_nats):
            raise ValueError(f"has a history of other than {requests} requests")
        return self
