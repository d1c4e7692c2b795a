"""The soft rule `direct`: the softmax head is solved first, and where the model does not follow, L-BFGS goes on.

Where the rows begin is `dpexplore.tuning.engine.direct`; what is left to this rule is to go on from tokens that may be
ten thousand times as long as the vocabulary's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.rules.lbfgs import LBFGS, LBFGSState

FIRST_STEP_SHARE = 1 / 6
"""Of the longest token: as L-BFGS's first step is to a token of SmolLM2."""


class Direct(LBFGS):
    """L-BFGS whose first step grows with the tokens that it moves."""

    def begin(self, embeds: Tensor, configs: Sequence[TuneConfig]) -> LBFGSState:
        state = super().begin(embeds, configs)
        state.first_step = FIRST_STEP_SHARE * embeds.norm(dim=-1).amax(-1)
        return state
