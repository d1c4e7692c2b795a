"""The runs that pages have asked for and that have not ended: those that wait for their turn, and those that move."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from dpexplore.errors import InputError
from dpexplore.serving.live_run import LiveRun
from dpexplore.serving.model_pool import Loading
from dpexplore.serving.share import Setup
from dpexplore.tuning import TuneConfig

SIDE_BY_SIDE = 3
"""Runs of one page that move at once, the one that Tune began included; the others wait for them."""
MOST_ASKED = 24
"""Runs of one page that have not ended."""
MOST_OF_ALL = 2048
"""Runs of all pages that have not ended."""
MOST_NAME = 60
"""Characters of a run's name."""


@dataclass(eq=False)
class Asked:
    """A run from the press that asked for it to its end."""

    run_id: str
    session: str
    """Whose it is; empty once that page was closed and no other has taken it up."""
    name: str
    setup: Setup
    seconds: float | None = None
    """What it would take by itself, at most; None where that is not known yet."""
    live: LiveRun | None = None
    """Once it has begun."""
    loading: Loading | None = None
    """Of its model, while it is being waited for."""
    claimed: bool = False
    """Somebody is about to begin it."""
    error: str | None = None
    """The sentence with which it ended, or could not begin."""

    @property
    def waits(self) -> bool:
        return self.live is None and self.error is None

    @property
    def moves(self) -> bool:
        return self.live is not None and not self.live.ended

    @property
    def seconds_left(self) -> float | None:
        """Estimated most seconds until it ends, from when it begins."""
        left = self.live.seconds_left if self.live is not None else None
        return self.seconds if left is None else left


class Workspace:
    """Bookkeeping of `Asked` by run id, in the order in which they were asked for. Thread-safe."""

    def __init__(self) -> None:
        self._asked: OrderedDict[str, Asked] = OrderedDict()
        self._gate = threading.Lock()

    def add(self, *several: Asked) -> None:
        """InputError if the page has too many already, or all pages together have; then none is added."""
        with self._gate:
            own = sum(asked.session == several[0].session for asked in self._asked.values())
            if own + len(several) > MOST_ASKED:
                raise InputError(f"{own} of your runs wait or move; take some off before you ask for more.")
            if len(self._asked) + len(several) > MOST_OF_ALL:
                raise InputError("Too many runs wait here; please try again in a minute.")
            self._asked.update((asked.run_id, asked) for asked in several)

    def note(self, asked: Asked) -> None:
        """A run has begun without having waited."""
        with self._gate:
            self._asked[asked.run_id] = asked

    def find(self, run_id: str) -> Asked | None:
        with self._gate:
            return self._asked.get(run_id)

    def of(self, session: str) -> list[Asked]:
        """A page's runs that have not ended, or not well."""
        with self._gate:
            return [asked for asked in self._asked.values() if asked.session == session]

    def remove(self, run_id: str) -> None:
        with self._gate:
            self._asked.pop(run_id, None)

    def adopt(self, session: str, run_ids: Sequence[str]) -> None:
        """Take up runs of a page that was closed: this one knows their ids, and so is the same browser's."""
        with self._gate:
            for run_id in run_ids:
                asked = self._asked.get(run_id)
                if asked is not None and not asked.session:
                    asked.session = session

    def leave(self, session: str) -> None:
        """The page was closed. Waiting runs are kept until another page adopts them; of too many the oldest go."""
        with self._gate:
            for asked in self._asked.values():
                if asked.session == session:
                    asked.session = ""
            left = [run_id for run_id, asked in self._asked.items() if not asked.session and not asked.moves]
            for run_id in left[: max(len(left) - MOST_OF_ALL // 2, 0)]:
                del self._asked[run_id]

    def claim(self, session: str) -> Asked | None:
        """The page's next run that may begin, for one caller at a time (`Asked.claimed`)."""
        with self._gate:
            own = [asked for asked in self._asked.values() if asked.session == session]
            if sum(asked.moves or asked.claimed for asked in own) >= SIDE_BY_SIDE:
                return None
            asked = next((asked for asked in own if asked.waits), None)
            if asked is None or asked.claimed:
                return None
            asked.claimed = True
            return asked


def seconds_for_all(runs: Sequence[Asked]) -> float | None:
    """Estimated most seconds until all of them have ended; None where nothing is known.

    Those that move share the machine already, so the slowest of them counts; those that wait come after.
    """
    moving = [run.seconds_left for run in runs if run.moves]
    known = [run.seconds for run in runs if run.waits]
    if None in moving or None in known or not (moving or known):
        return None
    return max((left for left in moving if left is not None), default=0.0) + math.fsum(
        seconds for seconds in known if seconds is not None
    )


def clean_name(text: object) -> str:
    """A run's name as it is kept: one line of at most `MOST_NAME` characters."""
    line = " ".join(str(text).split())
    return "".join(character for character in line if character.isprintable())[:MOST_NAME].strip()


def usual_name(setup: Setup) -> str:
    """What a run is called that nobody has named: how, and towards what."""
    return clean_name(f"{rule_of(setup.config)} · {setup.recipe}")


def rule_of(config: TuneConfig) -> str:
    """`soft`, `hard`, `hybrid`, or `direct` for the soft tokens that are solved for."""
    return rule_name(config.method, config.soft_rule)


def rule_name(method: str, soft_rule: object) -> str:
    """The same from a record."""
    return "direct" if soft_rule == "direct" and method == "soft" else method
