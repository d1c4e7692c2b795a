"""What every command shares: its common options, loading, progress, JSON, and stopping."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpexplore.errors import InputError
from dpexplore.files import why_unwritable

if TYPE_CHECKING:
    import dpexplore as dp

INTERRUPTED = 130
"""Exit code of a command that was stopped before it had a result."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

ModelOption = Annotated[
    str, typer.Option(help="Registry name, Hub id, local folder, .gguf file, or random:<name or config folder>.")
]
TargetOption = Annotated[str, typer.Option(help="The target's recipe, such as 'entropy(bits=7, seed=0)'.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if there is one.")]
DtypeOption = Annotated[
    str | None,
    typer.Option(help="float32 or bfloat16; default: float32 unless its weights take half of a card's memory or more."),
]

AcceptOption = Annotated[
    bool, typer.Option("--accept-terms", help="Accept the terms a packaged model comes under; asked for once.")
]


def accept(model: str) -> None:
    """Remember that this user accepts the terms a packaged model comes under."""
    from dpexplore.models.default_model import PACKAGED
    from dpexplore.models.precision import split_dtype

    packaged = PACKAGED.get(split_dtype(model)[0].strip().lower().removeprefix("random:"))
    if packaged is not None and packaged.terms is not None:
        packaged.terms.accept()


def load(model: str, device: str | None, dtype: str | None = None, accept_terms: bool = False) -> dp.LanguageModel:
    """Load a model and report progress, and its precision, on standard error. InputError as `load_model`."""
    import dpexplore as dp

    if accept_terms:
        accept(model)
    lm = dp.load_model(model, device=device, dtype=dtype, progress=lambda text, _fraction: progress(text))
    progress(f"{lm.name} in {lm.dtype_reason}")
    return lm


def check_writable(path: Path | None, *, folder: bool = False) -> None:
    """InputError if what a command makes could not be written there: before the work, not after it."""
    why = None if path is None else why_unwritable(path, folder=folder)
    if why is not None:
        raise InputError(why)


def progress(text: str) -> None:
    """One line on standard error: it replaces the previous one on a terminal, and follows it elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def end_progress() -> None:
    """Clear the progress line, so that what follows begins on a line of its own."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """A line of the result, on standard output."""
    end_progress()
    print(text, flush=True)


def warn(text: str) -> None:
    """A line on standard error that stays."""
    end_progress()
    print(text, file=sys.stderr, flush=True)


def emit(record: dict[str, Any]) -> None:
    """One JSON object on a line of standard output, in ASCII where that is not UTF-8."""
    escaped = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    print(json.dumps(record, ensure_ascii=escaped, allow_nan=False), flush=True)


@contextmanager
def stoppable(cancel: Callable[[], None]) -> Iterator[None]:
    """Inside the block Ctrl-C and SIGTERM call `cancel` once, so that the command ends with what it has.

    A second signal ends it at once (KeyboardInterrupt).
    """
    asked = False

    def stop(_signal: int, _frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        cancel()

    with _handling(stop):
        yield


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""

    def stop(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    with _handling(stop):
        yield


@contextmanager
def _handling(stop: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield
        return
    before = {each: signal.signal(each, stop) for each in STOP_SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
