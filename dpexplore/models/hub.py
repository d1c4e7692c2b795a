"""Files of a model on the Hugging Face Hub, fetched into the Hub's own cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of httpx or httpx2, whichever it uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from tqdm import tqdm

from dpexplore.errors import InputError
from dpexplore.models.default_model import Progress

_TEXT_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken"}
_CACHED = ["config.json", "tokenizer*"]  # of a cached model; the weights are looked for by the loader
_TIMEOUT_SECONDS = 20


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit, in the Hub's cache."""

    folder: Path
    commit: str


def wanted_files(names: list[str], *, weights: bool) -> list[str]:
    """The configuration and tokenizer files at a repository's top, and one format of its weights."""
    top = [name for name in names if "/" not in name]
    wanted = [name for name in top if Path(name).suffix in _TEXT_SUFFIXES]
    if weights:
        safe = [name for name in top if name.startswith("model") and name.endswith(".safetensors")]
        pickled = [name for name in top if name.startswith("pytorch_model") and name.endswith(".bin")]
        wanted += safe or pickled
    return wanted


def fetch(
    hub_id: str, progress: Progress, *, weights: bool, check: Callable[[Path], None] = lambda _folder: None
) -> Snapshot:
    """Download what loading needs, or find it in the cache when there is no network.

    `check` gets the folder once it holds the configuration, before any weights are downloaded.
    InputError if there is no such model, it is gated, or it is neither reachable nor cached.
    """
    api = HfApi()
    try:
        info = api.model_info(hub_id, files_metadata=True, timeout=_TIMEOUT_SECONDS)
        names = [file.rfilename for file in info.siblings or []]
        files = wanted_files(names, weights=weights)
        _check_files(hub_id, names, files, weights=weights)
        # No revision is given, though the commit is known: only then does the cache record what `main` is,
        # which is where it looks when there is no network.
        config = api.hf_hub_download(hub_id, "config.json")
        check(Path(config).parent)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        total = sum(sizes[name] for name in files)
        bar = _reporting_bar(hub_id, total, progress)
        folder = Path(api.snapshot_download(hub_id, allow_patterns=files, tqdm_class=bar))
    except GatedRepoError as error:
        raise InputError(
            f"{hub_id} is gated: accept its licence on the Hugging Face Hub and log in with `hf auth login`, "
            "or choose a model that is not gated."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise no_such_model(hub_id) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise InputError(f"The Hugging Face Hub answered {status} for {hub_id}; try again later.") from error
    except (HTTPError, ConnectionError, LocalEntryNotFoundError) as error:
        folder = _cached(api, hub_id, error)
        check(folder)
    except OSError as error:
        raise InputError(
            f"{hub_id} cannot be kept in the Hugging Face cache ({error.strerror or error}); free some room there."
        ) from error
    return Snapshot(folder, commit=folder.name)  # the cache names a snapshot's folder by its commit


def no_such_model(name: str) -> InputError:
    """The error for a name that stands for no model, with what may stand there."""
    return InputError(
        f"There is no model {name}; use a name that `dpexplore models` lists, a Hugging Face Hub id "
        "such as Qwen/Qwen2.5-0.5B, a model folder or a .gguf file, with random: before it for random weights."
    )


def _check_files(hub_id: str, names: list[str], files: list[str], *, weights: bool) -> None:
    if "config.json" not in files:
        gguf = any(name.endswith(".gguf") for name in names)
        hint = "download one of its .gguf files and give its path" if gguf else "choose another model"
        raise InputError(f"{hub_id} holds no transformers model (it has no config.json); {hint}.")
    if weights and not any(name.endswith((".safetensors", ".bin")) for name in files):
        raise InputError(f"{hub_id} holds no weights that transformers reads; choose another model.")


def _cached(api: HfApi, hub_id: str, cause: Exception) -> Path:
    try:
        return Path(api.snapshot_download(hub_id, local_files_only=True, allow_patterns=_CACHED))
    except LocalEntryNotFoundError:
        raise InputError(
            f"{hub_id} is not in the cache and the Hugging Face Hub cannot be reached; "
            "connect to the network, or choose a model that is on this machine."
        ) from cause


def _reporting_bar(hub_id: str, total: int, progress: Progress) -> type[tqdm]:
    """A tqdm that draws nothing and reports the bytes downloaded to `progress`."""

    class ReportingBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)  # an argument of huggingface_hub's own bars
            self._counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **kwargs | {"disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self._counts_bytes:
                progress(f"Downloading {hub_id}", min(self.n / total, 1.0) if total else None)
            return None

    return ReportingBar
