"""How large an architecture is, found before anything is allocated and before it is built in full."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.initialization import no_init_weights

from dpexplore.errors import InputError, in_short

MOST_LAYERS = 1_000
"""The deepest causal model that transformers loads has about 130."""
MOST_MODULES = 30_000
"""Building takes about 0.2 ms a module, without any weights."""
_LAYER_COUNT = re.compile(r"(^|_)n?_?(layers?|blocks?)$")


class _TooManyModules(Exception):
    pass


def check_layers(raw: dict[str, Any], name: str) -> None:
    """InputError if a config.json claims more layers than any model has; `raw` is its content.

    Called before transformers reads it: its config classes make lists of as many entries.
    """
    for key, value in raw.items():
        if isinstance(value, dict):
            check_layers(value, name)
        elif isinstance(value, int) and _LAYER_COUNT.search(key) and value > MOST_LAYERS:
            raise _too_large(name, f"{value:,} layers ({key})", f"{MOST_LAYERS:,}")


def count_parameters(config: PretrainedConfig, name: str) -> int:
    """Parameters of the architecture, tied ones once, without allocating any.

    InputError if the architecture has more modules than could be built in seconds, or settings that do not go together.
    """
    check_layers(config.to_dict(), name)
    try:
        with torch.device("meta"), no_init_weights(), _at_most(MOST_MODULES):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
            model.tie_weights()  # left out with the initialisation
    except _TooManyModules as error:
        raise _too_large(name, "more modules", f"{MOST_MODULES:,}") from error
    except ImportError as error:  # the part of the model that sees or hears, from a package of its own
        raise InputError(
            f"{name} needs a Python package that is not installed ({in_short(error)}); install it, or choose a model "
            "that reads text alone."
        ) from error
    except Exception as error:  # each architecture fails in its own way at sizes that do not go together
        raise InputError(
            f"No model can be built from the config.json of {name} ({in_short(error)}); upgrade transformers if the "
            "model is newer, else download or save it again."
        ) from error
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _at_most(limit: int) -> Iterator[None]:
    """Within, `_TooManyModules` as soon as this thread builds more modules."""
    owner, built = get_ident(), 0

    def count(_module: nn.Module, _name: str, _child: nn.Module | None) -> None:
        nonlocal built
        built += get_ident() == owner
        if built > limit and get_ident() == owner:
            raise _TooManyModules

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _too_large(name: str, has: str, most: str) -> InputError:
    return InputError(f"The config.json of {name} asks for {has}; at most {most} are supported. Use a smaller model.")
