"""The frontier: the best KL for a bound on the norm of soft tokens, from the vocabulary's norms to the direct token.

Its right end is known exactly: with no bound, one soft token reaches the softmax head's optimum. Its left end is what
hard prompts live near. Every point starts from the best prompt of the smaller budget, which its own budget holds too,
so that a frontier never rises; from the direct token cut to the budget; and from vocabulary tokens.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dpexplore.errors import InputError
from dpexplore.files import append_line
from dpexplore.floor import FloorResult
from dpexplore.floor.of_model import softmax_floor
from dpexplore.models import LanguageModel
from dpexplore.models.packaged import cache_folder
from dpexplore.targets import StringTarget, Target
from dpexplore.tuning import Engine, Run, TuneConfig, TuneResult
from dpexplore.tuning.init.layout import Layout, Start, initial_prompt
from dpexplore.tuning.record.capsule import decode_array, encode_array

FORMAT = 1
"""Part of the cache's key: raised when the numbers would change."""
MULTIPLES = (0.5, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Budgets, in multiples of the model's median token norm."""
LENGTHS = (1, 5)
STEPS = 60
HARD_LENGTH, HARD_EVALUATIONS = 5, 600


Submit = Callable[[Target, TuneConfig, Sequence[Start] | None], Run]


class _Stopped(Exception):
    """Somebody has called `stop`."""


@dataclass(frozen=True)
class FrontierPoint:
    """The best prompt of one kind within one budget."""

    kind: str
    """soft; direct, where nothing bounds the norm; or hard, whose tokens have the vocabulary's own norms."""
    length: int
    """Tuned tokens."""
    budget: float | None
    """Multiple of the model's median token norm; None for direct."""
    norm: float
    """The longest token of the prompt."""
    kl_nats: float
    kept: bool = False
    """Whether it was computed before and read from the cache."""


@dataclass
class Frontier:
    """The frontier of a model for one target: iterate for its points, which are kept on disk as they come."""

    lm: LanguageModel
    target: Target
    lengths: tuple[int, ...] = LENGTHS
    multiples: tuple[float, ...] = MULTIPLES
    steps: int = STEPS
    seed: int = 0
    submit: Submit | None = None
    """How a run is begun; None: by an engine of its own."""
    keep: bool = True
    """Whether points are kept on disk."""

    def __post_init__(self) -> None:
        """InputError for what has no frontier: a target over strings, a budget that is not a number above 0."""
        if isinstance(self.target, StringTarget):
            raise InputError("The frontier is of one softmax head; use a target over single tokens.")
        if not self.multiples or min(self.multiples) <= 0 or not self.lengths or min(self.lengths) < 1:
            raise InputError("A frontier needs budgets above 0 and lengths from 1.")
        self.multiples = tuple(sorted(set(self.multiples)))
        self.submit = self.submit or Engine(self.lm).submit
        self.total = 1 + len(self.lengths) * (len(self.multiples) + 1)
        self._run: Run | None = None
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End it from another thread: no point comes after this one, and the run that moves is cancelled."""
        self._stopped.set()
        if (run := self._run) is not None:
            run.cancel()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def floor(self) -> FloorResult:
        """Certified floor and head optimum. NoHead as `softmax_floor`."""
        return softmax_floor(self.lm, self.target)

    def __iter__(self) -> Iterator[FrontierPoint]:
        """The points as they come, until all are there or `stop` was called. InputError as `Engine.submit`."""
        with suppress(_Stopped):
            yield from self._points()

    def _points(self) -> Iterator[FrontierPoint]:
        known = self._read()
        floor = self.floor()
        yield self._point(known, "hard", HARD_LENGTH, 1.0, floor, None)[0]
        for length in self.lengths:
            best: torch.Tensor | None = None
            for multiple in self.multiples:
                point, best = self._point(known, "soft", length, multiple, floor, best)
                yield point
            yield self._point(known, "direct", length, None, floor, None)[0]

    def _point(
        self,
        known: dict[str, dict[str, Any]],
        kind: str,
        length: int,
        multiple: float | None,
        floor: FloorResult,
        before: torch.Tensor | None,
    ) -> tuple[FrontierPoint, torch.Tensor | None]:
        """A point, from the cache or computed and kept, and its prompt; before: that of the next smaller budget."""
        key = json.dumps([kind, length, multiple])
        record = known.get(key)
        if record is not None:
            return FrontierPoint(**record["point"], kept=True), decode_array(record["embeds"])
        result = self._tune(kind, length, multiple, floor, before)
        soft = torch.tensor([near is not None for near in result.nearest])
        tuned = result.prompt_embeds[soft] if soft.any() else result.prompt_embeds
        point = FrontierPoint(kind, length, multiple, float(tuned.norm(dim=-1).max()), result.kl_nats)
        values = {name: value for name, value in asdict(point).items() if name != "kept"}
        self._keep({"key": key, "point": values, "embeds": encode_array(result.prompt_embeds)})
        return point, result.prompt_embeds

    def _tune(
        self, kind: str, length: int, multiple: float | None, floor: FloorResult, before: torch.Tensor | None
    ) -> TuneResult:
        if kind == "hard":
            config = TuneConfig.preset(
                "fast", method="hard", length=length, restarts=1, evaluations=HARD_EVALUATIONS, seed=self.seed
            )
            return self._result(config)
        if multiple is None:
            return self._result(TuneConfig.preset("direct", length=length, seed=self.seed))
        settings = {"length": length, "steps": self.steps, "patience": None, "seed": self.seed}
        config = TuneConfig.preset("direct", **settings, norm_budget=f"{multiple:g}x")
        starts = self._starts(config, multiple, floor, before)
        config = TuneConfig.preset("direct", **settings, norm_budget=f"{multiple:g}x", restarts=len(starts))
        return self._result(config, starts)

    def _result(self, config: TuneConfig, starts: list[Start] | None = None) -> TuneResult:
        """A run to its end."""
        if self.stopped:
            raise _Stopped
        assert self.submit is not None
        self._run = self.submit(self.target, config, starts)
        if self.stopped:  # between the two lines above
            self._run.cancel()
        try:
            result = self._run.result
        except InputError:  # it was cancelled before its first step
            if self.stopped:
                raise _Stopped from None
            raise
        if self.stopped:
            raise _Stopped
        return result

    def _starts(
        self, config: TuneConfig, multiple: float, floor: FloorResult, before: torch.Tensor | None
    ) -> list[Start]:
        ids, drawn = initial_prompt(self.lm, Layout.of(self.lm, config), config, 0)
        starts = [(ids, drawn)]
        if before is not None:
            starts.append((ids, before.to(drawn)))
        assert floor.head_point is not None
        if len(floor.head_point) == drawn.shape[1]:
            direct = drawn.clone()
            length = multiple * self.lm.median_token_norm
            direct[-1] = length * (floor.head_point / floor.head_point.norm()).to(drawn)
            starts.append((ids, direct))
        return starts

    @property
    def _file(self) -> Path:
        about = [FORMAT, self.lm.identity, str(self.lm.dtype), self.target.recipe, self.steps, self.seed]
        return cache_folder() / "frontiers" / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]}.jsonl"

    def _read(self) -> dict[str, dict[str, Any]]:
        """Points that earlier calls have computed; a torn last line counts for nothing."""
        known = {}
        if self.keep and self._file.exists():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                    known[record["key"]] = record
                except (ValueError, KeyError):
                    continue
        return known

    def _keep(self, record: dict[str, Any]) -> None:
        """Add a point to the cache; one that cannot be written only costs time."""
        if not self.keep:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            append_line(self._file, json.dumps(record))
        except OSError:
            return
