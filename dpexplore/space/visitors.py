"""What a visitor of a public server may do: which models, how large a run, how long a text, how much of the machine."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace

import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx or httpx2, whichever it uses
)

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.models.default_model import cache_folder
from dpexplore.models.registry import default_device, memory_present
from dpexplore.space.manifest import Limits, Machine, Manifest, load_manifest
from dpexplore.targets import Recipe
from dpexplore.targets.sources import Capture, RandomPrompt, source_models
from dpexplore.tuning import TuneConfig
from dpexplore.tuning.init.layout import Layout

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_TIMEOUT_SECONDS = 20


def running_on_a_space() -> bool:
    """Whether this process is a Hugging Face Space's."""
    return "SPACE_ID" in os.environ


def this_machine() -> Machine:
    """Which table of limits applies."""
    if os.environ.get("SPACES_ZERO_GPU"):
        return "zero"
    return "gpu" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class VisitorRules:
    """The manifest as applied to what visitors ask for. Every method raises InputError for what is refused."""

    manifest: Manifest
    machine: Machine

    @classmethod
    def of_this_machine(cls) -> VisitorRules:
        """By the checkout's manifest. Where visitors may name models of the Hub, the owner's token stays out of it."""
        manifest = load_manifest()
        if manifest.models.any_hub_model:
            constants.HF_HUB_DISABLE_IMPLICIT_TOKEN = True
        return cls(manifest, this_machine())

    @property
    def limits(self) -> Limits:
        return self.manifest.limits[self.machine]

    @property
    def spare_bytes(self) -> int:
        """Memory that is kept free: below it idle models are let go and no run begins."""
        return round(self.manifest.server.free_memory_gigabytes * 2**30)

    def lists(self, name: str) -> bool:
        """Whether a model is on the manifest's list."""
        return name in self.manifest.models.allowed

    def check_model(self, name: str) -> None:
        """Only the manifest's models, or, where it says so, ids of the Hub; nothing is downloaded before that."""
        models = self.manifest.models
        if self.lists(name):
            return
        if not models.any_hub_model:
            raise InputError(f"This server offers its own list of models: {', '.join(models.allowed)}.")
        if not HUB_ID.fullmatch(name) or ".." in name:
            raise InputError("This server loads models by their Hub id, such as Qwen/Qwen2.5-0.5B, or from its list.")
        self._check_hub_model(name)

    def _check_hub_model(self, hub_id: str) -> None:
        try:
            info = HfApi(token=False).model_info(hub_id, timeout=_TIMEOUT_SECONDS)
        except HfHubHTTPError:
            raise InputError(f"The Hub has no public model {hub_id}; use one that is open to everybody.") from None
        except (HTTPError, HFValidationError, OSError):
            raise InputError("The Hub cannot be reached now; use a model from the list.") from None
        if info.private or info.gated:
            raise InputError(f"{hub_id} is not open to everybody; use a public model without a gate.")
        if "custom_code" in (info.tags or []):
            raise InputError(f"{hub_id} brings code of its own, which is never run here; choose another model.")
        if info.safetensors is None:
            raise InputError(f"{hub_id} has no weights in safetensors, the only format that this server downloads.")
        most = self.manifest.models.max_parameters
        if info.safetensors.total > most:
            raise InputError(
                f"{hub_id} has {info.safetensors.total / 1e6:,.0f} million parameters; use one of at "
                f"most {most / 1e6:,.0f} million here."
            )

    def check_text(self, name: str, text: str) -> None:
        """A text of any input."""
        most = self.manifest.server.characters
        if len(text) > most:
            raise InputError(f"{name} has {len(text):,} characters; use at most {most:,}.")

    def check_recipe(self, recipe: Recipe) -> None:
        """The models a recipe loads, and the prompts it runs through them."""
        for model in source_models(recipe):
            self.check_model(model)
        for part in recipe.walk():
            if isinstance(part, Capture):
                self.check_text("The prompt", part.text)
            elif isinstance(part, RandomPrompt) and part.length > self.limits.prompt_tokens:
                raise InputError(
                    f"The random prompt has {part.length:,} tokens; use at most {self.limits.prompt_tokens}."
                )

    def bounded(self, lm: LanguageModel, config: TuneConfig) -> TuneConfig:
        """The config with its time bounded, if the run is not too large."""
        limits, slots = self.limits, config.parsed_slots()
        self.check_text("The slots", str(slots))
        checked = config.rules[1] not in (None, "eq4")
        each_step = 1 + (config.candidates if checked else 0)
        evaluations = config.screen + (config.evaluations or config.soft_steps + config.most_steps * each_step)
        asked = {
            "restarts": (config.restarts, limits.rows),
            "steps": (config.most_steps, limits.steps),
            "scored prompts for each restart": (max(evaluations, each_step), limits.evaluations),
            "tokens in the prompt": (slots.free("soft") + slots.free("hard"), limits.prompt_tokens),
        }
        for name, (number, most) in asked.items():
            if number > most:
                raise InputError(f"This run asks for {number:,} {name}; use at most {most:,} here.")
        length, most = len(Layout.of(lm, config)), 2 * limits.prompt_tokens
        if length > most:
            raise InputError(f"The prompt has {length:,} tokens with its fixed text; use at most {most:,}.")
        return replace(config, seconds=min(config.seconds or limits.seconds, limits.seconds))

    def check_room(self, running: int) -> None:
        """Whether the machine has room for one more run beside `running` others."""
        server = self.manifest.server
        if running >= server.runs:
            raise InputError(f"{running} runs are under way here, as many as fit; please try again in a minute.")
        if memory_present(default_device()) < self.spare_bytes:
            raise InputError("The server is short of memory just now; please try again in a minute.")
        if free_disk() < server.free_disk_gigabytes * 2**30:
            raise InputError("The server is short of disk space just now; please try again later.")


def free_disk() -> int:
    """Free bytes where models and journals are kept."""
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
