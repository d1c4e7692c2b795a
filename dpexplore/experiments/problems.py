"""The unit of a sweep: one problem, named by the content of all that changes its numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dpexplore.errors import InputError
from dpexplore.targets import parse_recipe
from dpexplore.targets.sources import RandomPrompt, source_files
from dpexplore.tuning import TuneConfig

Kind = Literal["tune", "floor", "shape", "pos_counts"]
"""tune: one restart of one target; floor: a target's certified floor; shape: its probabilities by rank; pos_counts:
tokens of each part of speech in the vocabulary."""
KINDS: tuple[Kind, ...] = ("tune", "floor", "shape", "pos_counts")

METHOD_VERSION = 1
"""Part of every id: raised when a change of the code would change the numbers of all problems."""
BOS_VERSION = 2
"""The same for targets that come from `random_prompt`, which has begun with the BOS since."""


def content_id(content: Any) -> str:
    """Sixteen bytes of the SHA-256 of the content's canonical JSON, in hexadecimal."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class ModelFacts:
    """What a sweep must know of a model before it can name its problems."""

    name: str
    identity: str
    """What the weights are (`LanguageModel.identity`)."""
    dtype: str
    """float32, bfloat16 or float16: results in low precision are other results."""
    vocab_size: int


@dataclass(frozen=True)
class Problem:
    """One thing to compute. Device, batch size and library versions are not part of it."""

    kind: Kind
    model: ModelFacts
    recipe: str
    """The target; empty for pos_counts."""
    settings: str = "{}"
    """Canonical JSON: for tune, the fields of `TuneConfig` that are not its defaults."""
    restart: int = 0
    """Which initialisation, for tune; the seed in `settings` follows from it and the recipe."""

    @classmethod
    def tune(cls, model: ModelFacts, recipe: str, config: TuneConfig, restart: int) -> Problem:
        """Restart number `restart` of a target. Every target and restart has initialisations of its own (§5)."""
        seed = int(content_id([recipe, config.seed, restart])[:15], 16)
        settings = canonical_settings(dataclasses.replace(config, seed=seed, restarts=1))
        return cls("tune", model, recipe, settings, restart)

    @property
    def config(self) -> TuneConfig:
        """How a tune problem is tuned: one restart."""
        return TuneConfig.from_dict({"restarts": 1, **json.loads(self.settings)})

    @cached_property
    def id(self) -> str:
        """The same for equal problems, whichever sweep asks for them; InputError if a file it reads is missing."""
        recipe = parse_recipe(self.recipe) if self.recipe else None
        files = source_files(recipe) if recipe else []
        drawn = recipe is not None and any(isinstance(part, RandomPrompt) and part.bos for part in recipe.walk())
        content = {
            "version": BOS_VERSION if drawn else METHOD_VERSION,
            "kind": self.kind,
            "model": self.model.identity,
            "dtype": self.model.dtype,
            "recipe": self.recipe,
            "files": [_digest(file) for file in files],
            "settings": json.loads(self.settings),
        }
        if self.kind == "tune" and self.model.dtype != "float32":
            content["scored_in"] = "float32"  # results of before were scored in the model's own dtype
        return content_id(content)


def canonical_settings(config: TuneConfig) -> str:
    """The fields that differ from the defaults, so that fields added later change no id; slots in one spelling."""
    slots = config.parsed_slots()
    method = "hybrid" if slots.free("soft") and slots.free("hard") else "hard" if slots.free("hard") else "soft"
    # What has nothing to act on changes no number.
    idle = {} if slots.free("hard") else {"epoch": "token"}
    idle |= {} if method == "hybrid" else {"strict": False}
    alike = TuneConfig(method=method, slots=str(slots), restarts=1)
    defaults = alike.to_dict()
    chosen = dataclasses.replace(config, method=method, slots=str(slots), length=alike.length, **idle).to_dict()
    changed = {name: value for name, value in chosen.items() if value != defaults[name]}
    return json.dumps({"method": method, "slots": str(slots)} | changed, sort_keys=True, allow_nan=False)


def _digest(file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"The file {file} of a recipe cannot be read ({error.strerror}).") from error
