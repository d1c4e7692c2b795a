"""Giving up a pass in the middle: on a processor a long one, or one of hundreds of rows, takes longer than Stop may."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from dpexplore.models.language_model import LanguageModel
from dpexplore.wanted import NotWanted, check_wanted

_pass = threading.local()
"""`check`, in a thread that makes an interruptible pass: raises NotWanted once nobody wants its answer any more."""
_prepared: WeakSet[nn.Module] = WeakSet()


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
def interruptible(check: Callable[[], None] = check_wanted) -> Generator[None]:
    """Between two layers of this thread's passes in here `check` may raise NotWanted, which ends them."""
    _pass.check = check
    try:
        yield
    finally:
        del _pass.check


def unless(unwanted: Callable[[], bool]) -> Callable[[], None]:
    """A check that raises NotWanted once `unwanted` says so."""

    def check() -> None:
        if unwanted():
            raise NotWanted

    return check


def _look(_gradient: Tensor | None = None) -> None:
    check = getattr(_pass, "check", None)
    if check is not None:
        check()


def _before_layer(_layer: nn.Module, args: tuple[Any, ...]) -> None:
    _look()
    if args and isinstance(args[0], Tensor) and args[0].requires_grad:
        args[0].register_hook(_look)
