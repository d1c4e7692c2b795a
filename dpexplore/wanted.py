"""Long work asks now and then whether anybody still wants it, and ends if not.

Who began it says what to ask: a page whether its visitor has turned to something else (`while_wanted`), a server, for
all that it answers, whether the client is still there (`ask_everywhere`). The command line and the library ask nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from dpexplore.errors import InputError

Asked = Callable[[], bool]
Item = TypeVar("Item")

ASKED_EVERY = 1024
"""Items of a long list between two questions."""

_here: ContextVar[tuple[Asked, ...]] = ContextVar("wanted", default=())
_everywhere: Asked = lambda: True  # noqa: E731


class NotWanted(InputError):
    """Ends work that nobody waits for."""

    def __init__(self) -> None:
        super().__init__("This was given up: nobody waits for it any more.")


@contextmanager
def while_wanted(asked: Asked) -> Iterator[None]:
    """What runs in the block, in this thread, ends with `NotWanted` at its next `check_wanted` once `asked` says no."""
    token = _here.set((*_here.get(), asked))
    try:
        yield
    finally:
        _here.reset(token)


def ask_everywhere(asked: Asked) -> None:
    """Ask this, too, wherever work checks whether it is wanted, in every thread of the process."""
    global _everywhere
    _everywhere = asked


def check_wanted() -> None:
    """NotWanted if nobody waits for what is being worked on. It costs a microsecond."""
    if not (_everywhere() and all(asked() for asked in _here.get())):
        raise NotWanted


def while_asking(items: Iterable[Item], every: int = ASKED_EVERY) -> Iterator[Item]:
    """The items, with a `check_wanted` before the first and after each `every` of them."""
    for number, item in enumerate(items):
        if number % every == 0:
            check_wanted()
        yield item
