"""The text that the charts read: newline-delimited JSON that only grows, one stream for each run.

First line: an object with `run`, the stream's name. The live chart then reads rows
`[step, [KL in nats], [entropy in nats], best restart]` and objects with marks (`floor`, `head`, `end`);
the rank chart reads frames `{"s": step, "k": KL in nats, "q": […], "t": […]}` and keeps them for its
scrubber. Probabilities travel as hundredths of their base-10 logarithm: two digits after the point are
more than a picture shows, and short to send.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import numpy as np

from dpexplore.plots import LOWEST_PROBABILITY, log_grid, rank_curve

SHOWN_RESTARTS = 24
"""More lines than this are one grey mass: the chart shows the first ones and always the best."""
ROWS_BEFORE_THINNING = 1000
"""Rows after which every second step is left out; after twice as many, three of four, and so on."""


def _line(item: object) -> str:
    return json.dumps(item, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"


def _number(value: float | None, digits: int = 5) -> float | None:
    short = math.nan if value is None else float(f"{value:.{digits}g}")
    return short if math.isfinite(short) else None


def mark_line(**marks: float | str | None) -> str:
    """A line of the live chart's stream that adds marks to it; see `LiveStream.mark`."""
    return _line({name: mark if isinstance(mark, str) else _number(mark) for name, mark in marks.items()})


class LiveStream:
    """KL and entropy of a run, step by step."""

    def __init__(self, run: str, restarts: int, steps: int, target_entropy_nats: float) -> None:
        self.rows = 0
        self._shown = min(restarts, SHOWN_RESTARTS)
        entropy = _number(target_entropy_nats, digits=9)  # converted to bits, it must round as it does elsewhere
        self.text = _line({"run": run, "restarts": restarts, "steps": steps, "entropy": entropy})

    def add_step(
        self, step: int, kl_nats: Sequence[float | None], entropy_nats: Sequence[float | None], best: int
    ) -> None:
        """One evaluation of all restarts; thinned in long runs so that the page stays quick."""
        stride = 2 ** (self.rows // ROWS_BEFORE_THINNING)
        if step > 1 and step % stride:
            return
        self.rows += 1
        shown = [*range(self._shown)]
        if best >= self._shown:
            shown[-1], place = best, self._shown - 1
        else:
            place = best
        kl = [_number(kl_nats[i]) for i in shown]
        entropy = [_number(entropy_nats[i]) for i in shown]
        self.text += _line([step, kl, entropy, place])

    def mark(self, **marks: float | str | None) -> None:
        """Lines across the chart (`floor`, `head`, in nats) or the end of the run (`end`)."""
        self.text += mark_line(**marks)


_HUNDREDTH = math.log(10) / 100
"""Nats in a hundredth of a base-10 logarithm."""
_LOWEST = round(-math.log(LOWEST_PROBABILITY) / _HUNDREDTH)


def _below_one(log_probs: np.ndarray) -> np.ndarray:
    """Hundredths of the base-10 logarithm, their sign left out; all that is too small to show is `_LOWEST` + 1."""
    hundredths = np.rint(log_probs * (-1 / _HUNDREDTH))
    return np.clip(hundredths, 0, _LOWEST + 1).astype(np.int64)


def _at_ranks(below_one: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The values of the likeliest, second likeliest … of `below_one`, by counting, 20 times faster than by a sort."""
    return np.searchsorted(np.bincount(below_one).cumsum(), ranks)


def _shown(below_one: np.ndarray) -> list[int | None]:
    return [None if value > _LOWEST else -value for value in below_one.tolist()]


class RankStream:
    """A target by rank, and the achieved distribution laid over it as it improves."""

    def __init__(self, run: str, target: np.ndarray, token_text: Callable[[int], str], points: int = 110) -> None:
        """`target` `(vocab,)` probabilities; `token_text` names the tokens under the pointer."""
        curve = rank_curve(target, points)
        self._ids, self._ranks = curve.ids, log_grid(len(target), points)
        self.frames = 0
        with np.errstate(divide="ignore"):
            log_target = np.log(curve.probs)
        self.text = _line(
            {
                "run": run,
                "ranks": curve.ranks.tolist(),
                "p": _shown(_below_one(log_target)),
                "tokens": [token_text(int(i))[:24] for i in curve.ids],
            }
        )

    def add_frame(self, step: int, log_achieved: np.ndarray, kl_nats: float) -> None:
        """log q `(vocab,)`: by its own rank, and at the tokens of the target's ranks."""
        below_one = _below_one(log_achieved)
        self.frames += 1
        self.text += _line(
            {
                "s": step,
                "k": _number(kl_nats),
                "q": _shown(_at_ranks(below_one, self._ranks)),
                "t": _shown(below_one[self._ids]),
            }
        )
