"""The norm budget: a bound on the length of every soft token."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpexplore.errors import InputError


@dataclass(frozen=True)
class NormBudget:
    """A length, or a multiple of the median token norm of whatever model it is for."""

    amount: float
    relative: bool

    @classmethod
    def parse(cls, value: float | str) -> NormBudget:
        """Read `30`, `"30"` or `"1.5x"`. InputError for anything but a number above 0."""
        text = str(value).strip().lower()
        try:
            amount = float(text.removesuffix("x"))
        except ValueError:
            amount = math.nan
        if isinstance(value, bool) or not 0 < amount < math.inf:
            raise InputError(
                f"norm_budget is {value!r}; use a number above 0, or a multiple of the median token norm such as 1x."
            )
        return cls(amount, text.endswith("x"))

    def length(self, median_token_norm: float) -> float:
        """The bound on ‖e‖₂ of every soft token e, for a model whose tokens have this median norm."""
        return self.amount * median_token_norm if self.relative else self.amount
