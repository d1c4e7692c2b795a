"""The driver: which problems are left, who computes them, and their results committed, by it alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from dpexplore.errors import InputError
from dpexplore.experiments.executors import Executor
from dpexplore.experiments.problems import ModelFacts, Problem
from dpexplore.experiments.spec import Spec
from dpexplore.experiments.store import Listing, Store
from dpexplore.experiments.worker import Failed, Progress, Results
from dpexplore.files import write_file
from dpexplore.targets import check_entropies, parse_recipe

VOCABULARY_TO_PLAN_WITH = 2**17


@dataclass
class SweepReport:
    """Progress of a sweep; reported while it runs and at its end."""

    sweep: str
    model: str = ""
    model_number: int = 0
    """Which of the spec's models it is at, from 1."""
    models: int = 0
    total: int = 0
    """Problems of this model."""
    before: int = 0
    """Of these, done before this sweep began (by it or by any other)."""
    computed: int = 0
    """Of these, computed and committed now."""
    doing: float = 0.0
    """Problems' worth of work in those that run."""
    rows: int = 0
    seconds: float = 0.0
    """Since this model's problems began."""
    computed_in_all: int = 0
    """Computed and committed now, over all models."""
    failed: list[str] = field(default_factory=list)
    """Sentences on what could not be computed."""
    set_aside: list[str] = field(default_factory=list)
    """Damaged shards that were moved away, to be computed again."""
    stopped: bool = False

    @property
    def done(self) -> int:
        return self.before + self.computed

    @property
    def per_minute(self) -> float | None:
        """Problems a minute; None until there is something to go by."""
        worth = self.computed + self.doing
        return 60 * worth / self.seconds if worth > 0 and self.seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """For this model's problems."""
        rate = self.per_minute
        return None if not rate else max(0.0, 60 * (self.total - self.done - self.doing) / rate)


Tell = Callable[[SweepReport], None]


def run_sweep(
    spec: Spec,
    store: Store,
    executor: Executor,
    *,
    tell: Tell | None = None,
    stop: Callable[[], bool] | None = None,
) -> SweepReport:
    """Compute what a spec asks for and the store lacks.

    InputError if another driver holds the store or it cannot be written to. What single problems or models lack is
    told in `SweepReport.failed`, and the rest goes on.
    """
    tell, stop = tell or (lambda _report: None), stop or (lambda: False)
    report = SweepReport(spec.name, models=len(spec.models))
    with store.locked():
        report.set_aside = [str(path) for path in store.put_corrupt_aside()]
        for number, model in enumerate(spec.models, 1):
            report.model, report.model_number = model, number
            tell(report)
            try:
                facts = executor.facts(model)
                todo = _todo(spec, store, facts, report)
            except InputError as error:
                report.failed.append(f"{model}: {error}")
                continue
            _compute(store, executor, todo, report, tell, stop)
            if stop():
                report.stopped = True
                break
    _write_failures(store, report)
    return report


def _todo(spec: Spec, store: Store, facts: ModelFacts, report: SweepReport) -> list[Problem]:
    """The model's problems that have no result yet, each once; the listing of all of them is written."""
    asked = list(spec.problems(facts))
    ids = [problem.id for problem, _, _ in asked]
    groups, labels = [group for _, group, _ in asked], [label for _, _, label in asked]
    about = (spec.name, spec.figure, spec.title, spec.size, facts.name, facts.identity)
    store.write_listing(Listing(*about, ids=ids, groups=groups, labels=labels))
    unique = {name: problem for name, (problem, _, _) in zip(ids, asked, strict=True)}
    done = store.done()
    todo = [problem for name, problem in unique.items() if name not in done]
    report.total, report.before = len(unique), len(unique) - len(todo)
    report.computed, report.doing, report.seconds = 0, 0.0, 0.0
    return todo


def _compute(
    store: Store, executor: Executor, todo: list[Problem], report: SweepReport, tell: Tell, stop: Callable[[], bool]
) -> None:
    began = time.monotonic()
    tell(report)
    for event in executor.run(todo, stop) if todo else ():
        report.seconds = time.monotonic() - began
        if isinstance(event, Results):
            store.commit(event.rows)
            report.computed += len(event.rows)
            report.computed_in_all += len(event.rows)
            report.doing = 0.0
        elif isinstance(event, Progress):
            report.doing, report.rows = event.doing, event.rows
        elif isinstance(event, Failed):
            sentence = f"{event.problem.recipe} on {event.problem.model.name}: {event.why}"
            if sentence not in report.failed:  # restarts share their target's fate
                report.failed.append(sentence)
        tell(report)


def _write_failures(store: Store, report: SweepReport) -> None:
    """What this sweep's last run could not compute, beside the results; no file if there is nothing."""
    path = store.folder / f"failed-{report.sweep}.json"
    if not report.failed:
        path.unlink(missing_ok=True)
    else:
        write_file(path, json.dumps(report.failed, indent=1, ensure_ascii=False))


@dataclass(frozen=True)
class ModelPlan:
    """What a sweep would ask of one model."""

    model: str
    problems: int
    done: int
    """Of these, in the store already, as far as is known without loading the model."""
    row_steps: int
    """Most forward and backward passes of one prompt."""
    memory_bytes: int | None
    """To hold the weights and a handful of prompts; None if nothing is known of the model here."""
    seconds: float | None
    """Roughly, on an idle machine, by its arithmetic, floors apart; None if nothing is known of the model."""


def plan_sweep(spec: Spec, store_folder: Path | str, device: str | None = None) -> list[ModelPlan]:
    """How many problems, how much memory, roughly how long; nothing is loaded and nothing written.

    InputError for everything that can be known to be wrong before a model is loaded: recipes, settings, files,
    entropies out of range, model folders that are not there.
    """
    from dpexplore.experiments.costs import model_size, seconds_of, slot_tokens

    store = Store(store_folder)
    results = store.read(columns=["model", "identity", "dtype"])
    finished = set(results["id"].to_pylist())
    loaded = set(zip(*(results[name].to_pylist() for name in ("model", "identity", "dtype")), strict=True))
    plans = []
    for model in spec.models:
        size = model_size(model, device)
        # A model that is still to be fetched has a vocabulary of unknown size; its recipes are read all the same.
        facts = ModelFacts(model, "", "", size.vocab_size if size else VOCABULARY_TO_PLAN_WITH)
        problems = {problem.id: problem for problem, _, _ in spec.problems(facts)}.values()
        known = [
            {problem.id for problem, _, _ in spec.problems(replace(facts, identity=identity, dtype=dtype))}
            for name, identity, dtype in loaded
            if name == model
        ]
        for recipe in {problem.recipe for problem in problems if problem.recipe and size}:
            check_entropies(parse_recipe(recipe), facts.vocab_size)
        configs = [problem.config for problem in problems if problem.kind == "tune"]
        positions = sum(config.most_steps * slot_tokens(config) for config in configs)
        plans.append(
            ModelPlan(
                model,
                len(problems) if size else 0,
                max((len(finished & ids) for ids in known), default=0),
                sum(config.most_steps for config in configs) if size else 0,
                size.memory_bytes if size else None,
                seconds_of(size, positions, sum(config.most_steps for config in configs), device) if size else None,
            )
        )
    return plans
