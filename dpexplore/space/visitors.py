"""What a visitor of a public server may do: which models, how large a run, how long a text, how much of the machine."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from typing import Any

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
from dpexplore.space.prices import ORDER_PARTS, price_recipe, price_run, price_scoring
from dpexplore.targets import Recipe, StringTarget, Target, parse_recipe
from dpexplore.targets.recorded import recorded_prompts
from dpexplore.targets.sources import RandomPrompt, source_models
from dpexplore.tuning import TuneConfig
from dpexplore.tuning.init.layout import Layout
from dpexplore.tuning.record.schema import read_capsule

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
        """The models a recipe loads, and what building it costs, from its text alone."""
        for model in source_models(recipe):
            self.check_model(model)
        limits, server = self.limits, self.manifest.server
        for part in recipe.walk():
            if isinstance(part, RandomPrompt) and part.length > limits.prompt_tokens:
                raise InputError(f"The random prompt has {part.length:,} tokens; use at most {limits.prompt_tokens}.")
        price = price_recipe(recipe)
        if price.captured_tokens > limits.captured_tokens:
            raise InputError(
                f"The recipe runs prompts of up to {price.captured_tokens:,} tokens through a model (a byte of text "
                f"may be one); use at most {limits.captured_tokens:,} here."
            )
        if price.solved_parts > server.solved_parts:
            raise InputError(
                f"The recipe solves for {price.solved_parts:,} parts, an order being {ORDER_PARTS}; use at most "
                f"{server.solved_parts}."
            )
        if price.string_bytes > server.string_bytes:
            raise InputError(
                f"The outcomes, each behind the request, have {price.string_bytes:,} bytes; use at most "
                f"{server.string_bytes:,}: fewer outcomes, or a shorter request."
            )
        if price.file_bytes > server.upload_megabytes * 2**20:
            raise InputError(f"The recipe reads more than {server.upload_megabytes} MiB of files; use fewer of them.")

    def check_run(self, config: TuneConfig) -> None:
        """What a run costs, from its settings alone: no tokenizer has seen its texts yet."""
        self._check_texts(config)
        price, limits = price_run(config), self.limits
        for name, number, most in (
            ("restarts", price.restarts, limits.rows),
            ("steps", price.steps, limits.steps),
            ("scored prompts for each restart", price.evaluations, limits.evaluations),
            ("tokens in the prompt", price.tuned_tokens, limits.prompt_tokens),
        ):
            if number > most:
                raise InputError(f"This run asks for {number:,} {name}; use at most {most:,} here.")

    def bounded(self, lm: LanguageModel, config: TuneConfig, target: Target | None = None) -> TuneConfig:
        """The config with its time bounded, if the run is not too large for this model."""
        self.check_run(config)
        limits = self.limits
        length, most = len(Layout.of(lm, config)), 2 * limits.prompt_tokens
        if length > most:
            raise InputError(f"The prompt has {length:,} tokens with its fixed text; use at most {most:,}.")
        if isinstance(target, StringTarget):
            self.check_strings(target)
        return replace(config, seconds=min(config.seconds or limits.seconds, limits.seconds))

    def check_strings(self, target: StringTarget) -> None:
        """What a run towards a target over strings costs a step."""
        behind, most = len(target.request_ids) + len(target.tree.inputs), self.limits.string_tokens
        if behind > most:
            raise InputError(
                f"The request and its outcomes have {behind:,} tokens, which every step scores; use at most {most:,} "
                "here."
            )

    def check_capsule(self, capsule: dict[str, Any]) -> None:
        """What showing a capsule costs; `load_capsule` has bounded its numbers."""
        tokens, most = read_capsule(capsule).prompt_tokens, 2 * self.limits.prompt_tokens
        self.check_text("The recipe", capsule["target"]["recipe"])
        sources = recorded_prompts(parse_recipe(capsule["target"]["recipe"]), capsule["target"].get("provenance") or {})
        tokens = max([tokens, *(len(source.ids) for source in sources.values())])
        if tokens > most:
            raise InputError(f"The capsule's prompt has {tokens:,} tokens; at most {most:,} are scored here.")
        self._check_texts(TuneConfig.from_dict(capsule["config"]))

    def _check_texts(self, config: TuneConfig) -> None:
        self.check_text("init_text", config.init_text or "")
        self.check_text("The slots", str(config.parsed_slots()))
        self.check_text("The list of tokens", "".join(map(str, (*config.allow, *config.forbid))))

    def check_scoring(self, lm: LanguageModel) -> None:
        """What a pass over every prompt of one token costs."""
        cost, most = price_scoring(lm.parameter_count, lm.vocab_size, 1 + len(lm.bos_ids)), self.limits.scored_teraflops
        if cost > most:
            raise InputError(
                f"Scoring the {lm.vocab_size:,} tokens of {lm.name} takes {cost:,.0f} teraflops; at most {most:,} are "
                "spent on it here. Use a smaller model."
            )

    def check_room(self, running: int, of_session: int = 0, of_address: int = 0) -> None:
        """InputError unless one more run fits: beside `running` in all, `of_session` of its page and `of_address`."""
        server = self.manifest.server
        share = max(1, min(server.runs_per_visitor * server.visitors_per_address, server.runs // 2))
        if of_session >= server.runs_per_visitor or of_address >= share:
            raise InputError(
                f"{max(of_session, of_address)} of your runs are under way, a visitor's share here; stop one, or wait "
                "until one has ended."
            )
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
