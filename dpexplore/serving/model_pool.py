"""The models that the page holds: loaded once, shared by everybody, let go when memory is short."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from dpexplore.errors import InputError
from dpexplore.floor.prepared import floor_solver
from dpexplore.models import LanguageModel, describe_models, load_model
from dpexplore.models.registry import default_device, memory_present
from dpexplore.serving.pauses import collect_everything
from dpexplore.space.zero import SlicedServer
from dpexplore.targets import Recipe, Target
from dpexplore.tuning import EngineServer
from dpexplore.tuning.engine.fairness import Owner
from dpexplore.wanted import check_wanted

logger = logging.getLogger(__name__)

KEPT_TARGETS = 48
"""Targets kept for each model, the latest used: a slider that moves back finds its target again."""
SPARED_SECONDS = 60.0
"""A model used so lately is not let go: somebody may be about to press Tune."""
MEMORY_FOR_ANY = 4 * 2**30
"""Free bytes that are made before a model of unknown size is loaded; loading itself measures what it needs."""
LOOK_SECONDS = 0.2
"""How soon who waits for a model notices that nobody waits for the answer any more."""
INTERNAL_ERROR = "Something went wrong on the server, which has logged it; please try again."

Loader = Callable[..., LanguageModel]


@dataclass
class LoadedModel:
    """A model with its engine and the targets built for it lately."""

    name: str
    """What it was asked for by."""
    lm: LanguageModel
    server: EngineServer | SlicedServer
    used: float = field(default_factory=time.monotonic)
    _targets: OrderedDict[str, Target] = field(default_factory=OrderedDict)
    _gate: threading.Lock = field(default_factory=threading.Lock)

    def target(self, recipe: Recipe, load: Callable[[str], LanguageModel] | None = None) -> Target:
        """The target of a recipe. InputError if this model cannot have it."""
        key = str(recipe)
        with self._gate:
            if key in self._targets:
                self._targets.move_to_end(key)
                return self._targets[key]
        target = recipe.build(self.lm, load=load)
        if "file(" not in key:  # a file's content may change under its name
            with self._gate:
                self._targets[key] = target
                while len(self._targets) > KEPT_TARGETS:
                    self._targets.popitem(last=False)
        return target

    @property
    def idle(self) -> bool:
        """Nobody tunes it, nor has asked for it a moment ago."""
        return not self.server.running and time.monotonic() - self.used > SPARED_SECONDS


@dataclass
class Loading:
    """A model on its way; read by everybody who waits for it."""

    name: str
    text: str = "Waiting to load"
    fraction: float | None = None
    error: str | None = None
    """One sentence, once loading has failed."""
    done: threading.Event = field(default_factory=threading.Event)

    def report(self, text: str, fraction: float | None) -> None:
        self.text, self.fraction = text, fraction


class ModelPool:
    """Loaded models by name. Thread-safe; models load one after the other in threads of their own."""

    def __init__(
        self,
        loader: Loader = load_model,
        permit: Callable[[str], None] = lambda _name: None,
        server: Callable[[LanguageModel], EngineServer | SlicedServer] = EngineServer,
    ) -> None:
        """`permit` raises InputError for a model that may not be loaded here, before anything is fetched."""
        self._loader = loader
        self._permit = permit
        self._server = server
        self._loaded: dict[str, LoadedModel] = {}
        self._loading: dict[str, Loading] = {}
        self._gate = threading.RLock()
        self._one_at_a_time = threading.Lock()

    def get(self, name: str) -> LoadedModel:
        """A loaded model. InputError if it is not there (yet)."""
        with self._gate:
            entry = self._loaded.get(name)
            if entry is None:
                raise InputError(
                    f"The model {name} is not loaded; choose it in the model picker and wait until it is ready."
                )
            entry.used = time.monotonic()
            return entry

    def is_loaded(self, name: str) -> bool:
        with self._gate:
            return name in self._loaded

    def start_loading(self, name: str) -> Loading:
        """Begin to load a model, or wait for the load under way; a loaded one is done at once."""
        with self._gate:
            if name in self._loaded:
                ready = Loading(name, "Ready", 1.0)
                ready.done.set()
                return ready
            if name not in self._loading:
                self._loading[name] = Loading(name)
                threading.Thread(
                    target=self._load, args=(self._loading[name],), name=f"load {name}", daemon=True
                ).start()
            return self._loading[name]

    def load(self, name: str) -> LoadedModel:
        """Load and wait. InputError with the one sentence that says why it failed."""
        loading = self.start_loading(name)
        while not loading.done.wait(LOOK_SECONDS):
            check_wanted()
        if loading.error:
            raise InputError(loading.error)
        return self.get(name)

    def source(self, name: str) -> LanguageModel:
        """A model to capture from, kept for the next capture until memory is short."""
        return self.load(name).lm

    def close(self) -> None:
        """Let go of everything; runs keep their best so far."""
        with self._gate:
            entries = list(self._loaded.values())
            self._loaded.clear()
        for entry in entries:
            entry.server.close()

    def _load(self, loading: Loading) -> None:
        try:
            self._permit(loading.name)
            with self._one_at_a_time:
                self.make_room(_bytes_for(loading.name))
                lm = self._loader(loading.name, progress=loading.report)
                loading.report("Measuring its softmax head", None)
                _prepare_floor(lm)
            with self._gate:
                self._loaded[loading.name] = LoadedModel(loading.name, lm, self._server(lm))
        except InputError as error:
            loading.error = str(error)
        except Exception:
            logger.exception("loading %s failed", loading.name)
            loading.error = f"The model {loading.name} could not be loaded. {INTERNAL_ERROR}"
        finally:
            with self._gate:
                self._loading.pop(loading.name, None)
            loading.done.set()

    @property
    def ready(self) -> list[str]:
        """Names of the loaded models."""
        with self._gate:
            return list(self._loaded)

    @property
    def running(self) -> int:
        """Runs of all models that have not ended."""
        with self._gate:
            return sum(entry.server.running for entry in self._loaded.values())

    @property
    def owners(self) -> list[Owner]:
        """Whose these runs are, one entry a run."""
        with self._gate:
            return [owner for entry in self._loaded.values() for owner in entry.server.owners]

    def make_room(self, needed: int) -> None:
        """Unload idle models, the least recently used first, until this many bytes are free."""
        while memory_present(default_device()) < needed:
            with self._gate:
                idle = [entry for entry in self._loaded.values() if entry.idle]
            if not idle:
                return
            self._release(min(idle, key=lambda entry: entry.used))

    def _release(self, entry: LoadedModel) -> None:
        with self._gate:
            self._loaded.pop(entry.name, None)
        entry.server.close()
        collect_everything()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _bytes_for(name: str) -> int:
    return next((info.bytes_needed for info in describe_models() if info.name == name), MEMORY_FOR_ANY)


def _prepare_floor(lm: LanguageModel) -> None:
    """Read the model's head while nobody else uses it: that takes hooks on its modules, which every pass would meet."""
    try:
        floor_solver(lm)
    except InputError as reason:  # kept for those who ask for a floor
        logger.info("no floor for %s: %s", lm.name, reason)
