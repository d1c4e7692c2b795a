"""Keeps the libraries below us from writing on the terminal while a model loads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from transformers.utils import logging


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars, log lines or warnings of transformers and huggingface_hub inside the block.

    Standard output belongs to the command line's JSON, and what a user must know they learn from an
    `InputError` or from the progress callback. Everything is as before afterwards.
    """
    verbosity = logging.get_verbosity()
    had_bars = logging.is_progress_bar_enabled()
    hub_had_bars = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
        if hub_had_bars:
            enable_progress_bars()
