"""What everything that serves one page shares: its models, runs, floors, journal and rules. Knows no page."""

from __future__ import annotations

import logging
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpexplore.errors import InputError
from dpexplore.floor import FloorResult
from dpexplore.models import DEFAULT_MODEL, LanguageModel, ModelInfo, describe_models
from dpexplore.models.default_model import cache_folder
from dpexplore.serving.disc import Walk, Walks
from dpexplore.serving.floors import Floors
from dpexplore.serving.frames import Frames
from dpexplore.serving.guesses import Guesses
from dpexplore.serving.journal import Journal, new_run_id
from dpexplore.serving.live_run import LiveRun
from dpexplore.serving.model_pool import INTERNAL_ERROR, LoadedModel, ModelPool
from dpexplore.serving.run_view import RunView
from dpexplore.serving.sessions import PROGRAM, Sessions
from dpexplore.serving.share import Setup
from dpexplore.serving.uploads import check_files, upload_folder
from dpexplore.serving.workspace import Asked, Workspace, usual_name
from dpexplore.space import VisitorRules
from dpexplore.targets import StringTarget, Target, parse_recipe
from dpexplore.tuning import TuneConfig, load_capsule
from dpexplore.tuning.engine.fairness import Owner
from dpexplore.tuning.record.capsule import describe_run
from dpexplore.tuning.single_token import is_known

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 20.0
"""Seconds that a stopping server waits for the results of its runs."""


@dataclass(frozen=True)
class AppContext:
    """What all handlers of a server share, and what they ask of it."""

    pool: ModelPool = field(default_factory=ModelPool)
    sessions: Sessions = field(default_factory=Sessions)
    floors: Floors = field(default_factory=Floors)
    walks: Walks = field(default_factory=Walks)
    guesses: Guesses = field(default_factory=Guesses)
    """Pupils' guesses in the lessons."""
    workspace: Workspace = field(default_factory=Workspace)
    """Runs of pages that wait or move."""
    journal: Journal = field(default_factory=lambda: Journal(cache_folder() / "runs"))
    grace_seconds: float = 15.0
    """How long a run goes on when its page is closed or reloaded."""
    model: str = DEFAULT_MODEL
    """The model that a page begins with."""
    rules: VisitorRules | None = None
    """What visitors may do; None where everyone who reaches the page is trusted."""

    def target(self, model: str, recipe_text: str) -> Target:
        """A recipe's target for a loaded model. InputError for what cannot be built, or may not be read."""
        if self.rules:
            self.rules.check_text("The recipe", recipe_text)
        recipe = parse_recipe(recipe_text)
        check_files(recipe, upload_folder())
        if self.rules:
            self.rules.check_recipe(recipe)
        return self.pool.get(model).target(recipe, self.pool.source)

    def offered(self) -> list[ModelInfo]:
        """The curated models that may be chosen here."""
        return [info for info in describe_models() if self.rules is None or self.rules.lists(info.name)]

    def capsule(self, path: str | Path | None) -> dict[str, Any]:
        """An uploaded capsule. InputError for what is none, or is more than is shown here."""
        if path is None:
            raise InputError("There is no capsule; choose a file saved by `Download capsule`.")
        if self.rules is None:
            return load_capsule(Path(path))
        capsule = load_capsule(Path(path), self.rules.limits.capsule_values)
        self.rules.check_capsule(capsule)
        return capsule

    def floor(self, session: str, lm: LanguageModel, target: Target) -> Future[FloorResult]:
        """A target's floor, now or later, for a session that asks again until it is there; see `Floors.start`."""
        return self.floors.start(lm, target, session, self.sessions.address(session))

    def wait_for_floor(self, session: str, lm: LanguageModel, target: Target) -> FloorResult:
        """A target's floor for a session that waits for it. InputError as from `Floors.rising`."""
        with closing(self.rising_floor(session, lm, target)) as rising:
            return next(now for now in rising if isinstance(now, FloorResult))

    def rising_floor(self, session: str, lm: LanguageModel, target: Target) -> Generator[float | FloorResult]:
        """A target's certified bound as it rises, then its floor, for a session that looks on; see `Floors.rising`."""
        return self.floors.rising(lm, target, session, self.sessions.address(session))

    def walk(self, session: str, model: str, recipe: str) -> Frames | None:
        """What the session's run of this model towards this target has said, moving or finished; None without one."""
        live = self.sessions.current(session)
        if live is not None and (live.model, live.run.target.recipe) == (model, recipe):
            return live.frames
        return self.walks.get(session, model, recipe)

    def check_scoring(self, lm: LanguageModel) -> None:
        """InputError if scoring every token of a model costs too much here, and nobody has paid for it before."""
        if self.rules and not is_known(lm):
            self.rules.check_scoring(lm)

    def check_room(self, session: str) -> None:
        """InputError if the machine is full, or the session or its address has its share of the runs."""
        if self.rules is None:
            return
        self.pool.make_room(self.rules.spare_bytes)
        asks, owners = self.owner(session), self.pool.owners
        of_address = [owner for owner in owners if owner.group == asks.group]
        of_page = 0 if session.startswith(PROGRAM) else sum(owner.session == asks.session for owner in owners)
        self.rules.check_room(self.pool.running, of_page, len(of_address))

    def owner(self, session: str, part: str = "") -> Owner:
        """Whose a session's run is, or that of a part of its page; an address's programs are one owner together."""
        name = PROGRAM if session.startswith(PROGRAM) else f"{session} {part}".strip()
        address = self.sessions.address(session)
        return (
            Owner(name, address, self.rules.manifest.server.visitors_per_address)
            if self.rules
            else Owner(name, address)
        )

    def admit(self, session: str, lm: LanguageModel, config: TuneConfig, target: Target | None = None) -> TuneConfig:
        """The config that a session's run may have here. InputError if it asks for too much, or there is no room."""
        if self.rules is None:
            return config
        self.check_room(session)
        return self.rules.bounded(lm, config, target)

    def begin(
        self,
        session: str,
        model: str,
        recipe_text: str,
        config: TuneConfig,
        *,
        grace_seconds: float | None = None,
        floor_lines: bool = True,
        run_id: str | None = None,
        name: str = "",
        beside: bool = False,
    ) -> LiveRun:
        """Begin a run for a session. InputError if it cannot be.

        It takes the place of the run that the session sees, unless it is to move `beside` that.

        It stops when nobody has looked at it for `grace_seconds` (None: the server's), unless it is kept running.
        Without `floor_lines` its target's floor is not computed for its chart, which takes a core a second or two.
        """
        entry, target = self.check(model, recipe_text, config)
        run = entry.server.submit(target, self.admit(session, entry.lm, config, target), owner=self.owner(session))
        run_id, address = run_id or new_run_id(), self.sessions.address(session)
        setup = Setup(model, target.recipe, run.config)
        name = name or usual_name(setup)
        live = LiveRun(
            run_id,
            model,
            run,
            self.journal.open(run_id, model, {**describe_run(run), "name": name}),
            marks=lambda: self.floors.marks(entry.lm, target, session, address) if floor_lines else None,
            grace=self.grace_seconds if grace_seconds is None else grace_seconds,
            name=name,
        )
        self.sessions.begin(session, live, beside=beside)
        if not beside and not session.startswith(PROGRAM):
            self.workspace.note(Asked(run_id, session, name, setup, live=live))
        live.start(self._ended)
        return live

    def check(self, model: str, recipe_text: str, config: TuneConfig) -> tuple[LoadedModel, Target]:
        """A run's model and target. InputError for what cannot be built, or is too large for a visitor."""
        if self.rules:
            self.rules.check_run(config)
        entry, target = self.pool.get(model), self.target(model, recipe_text)
        check_single_tokens(target)
        if self.rules:
            self.rules.bounded(entry.lm, config, target)
        return entry, target

    def _ended(self, live: LiveRun) -> None:
        self.sessions.end(live)
        asked = self.workspace.find(live.id)
        if asked is not None and not asked.session:  # its page is gone: the journal tells of it
            self.workspace.remove(live.id)

    def note_end(self, session: str, live: LiveRun, view: RunView) -> None:
        """A session has seen a run's end: its result is a rung of its ladder, a run to compare, a walk to draw."""
        if view.result is None:
            return
        self.sessions.note_result(session, live.model, live.run.target.recipe, view.result)
        self.sessions.note_finished(session, live.id)
        if view.frames is not None:
            self.walks.keep(session, Walk(live.model, live.run.target.recipe, view.frames))

    def watch(self, session: str, live: LiveRun) -> Generator[RunView]:
        """What a session sees of a run, until it has ended or the session turns to another one.

        An overtaken run of its own, which is stopping, is seen to its end without a word: its result counts. Closing
        the iterator unsubscribes.
        """
        with closing(live.views()) as views:
            for view in views:
                self.note_end(session, live, view)
                if self.sessions.shows(session, live.id):
                    yield view
                elif not live.run.cancel_requested:
                    return

    def close(self) -> None:
        """End all runs, which keep and journal their best so far; let go of models and threads."""
        self.floors.close()
        self.pool.close()
        self.sessions.settle(SETTLE_SECONDS)


def check_single_tokens(target: Target) -> None:
    """InputError for a target over whole strings, which has a tab of its own."""
    if isinstance(target, StringTarget):
        raise InputError("This target is over whole strings; the Strings tab shows and reaches such targets.")


def sentence(error: Exception) -> str:
    """The message for the person at the page: an InputError's own sentence, a general one for anything else."""
    if isinstance(error, InputError):
        return str(error)
    logger.error("a handler of the page failed", exc_info=error)
    return INTERNAL_ERROR
