"""Giving up a pass in the middle: on a processor a pass of hundreds of rows takes longer than Stop may."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from dpexplore.models import LanguageModel

_pass = threading.local()
"""`unwanted`, in a thread that makes an interruptible pass: whether nobody wants its answer any more."""
_prepared: WeakSet[nn.Module] = WeakSet()


class Interrupted(Exception):
    """Nobody wants the pass any more."""


def prepare(lm: LanguageModel) -> None:
    """Let the model's layers look whether their pass is still wanted, on the way up and on the way down.

    Only on a processor: a card's pass is queued long before it is computed.
    """
    if lm.device.type == "cpu" and lm.model not in _prepared:
        _prepared.add(lm.model)
        lists = [module for module in lm.model.modules() if isinstance(module, nn.ModuleList)]
        for layer in max(lists, key=len, default=()):  # the longest list of modules is a Transformer's layers
            layer.register_forward_pre_hook(_before_layer)


@contextmanager
def interruptible(unwanted: Callable[[], bool]) -> Generator[None]:
    """Passes of this thread in here raise `Interrupted` between two layers once they are unwanted."""
    _pass.unwanted = unwanted
    try:
        yield
    finally:
        del _pass.unwanted


def _look(_gradient: Tensor | None = None) -> None:
    unwanted = getattr(_pass, "unwanted", None)
    if unwanted is not None and unwanted():
        raise Interrupted


def _before_layer(_layer: nn.Module, args: tuple[Any, ...]) -> None:
    _look()
    if args and isinstance(args[0], Tensor) and args[0].requires_grad:
        args[0].register_hook(_look)
