"""The direct token: one soft token that takes a model to the optimum of its softmax head, in one forward pass.

A pre-norm Transformer adds bounded terms to the residual stream, since every block reads a normalised copy of it. So a
soft token e = α·u at the last position, with u on the sphere ‖u‖ = R that the final norm puts its output on, reaches
that norm as α·u plus something bounded, and leaves it as u when α is large: KL is the head's own value at u, up to
O(1/α). Models that normalise or project their input embeddings, or norm after each block, do not follow; whether a
model does is measured, never assumed.
"""

from __future__ import annotations

from concurrent.futures import Future
from threading import Thread

import torch
from torch import Tensor

from dpexplore.errors import InputError
from dpexplore.floor import FloorResult
from dpexplore.floor.of_model import softmax_floor
from dpexplore.tuning.engine.capacity import Capacity
from dpexplore.tuning.init.layout import Start
from dpexplore.tuning.record.bounds import CLOSED_NATS, Bounds
from dpexplore.tuning.rules.ball import within
from dpexplore.tuning.run import Run

SCALES = (1e5, 1e4, 1e6, 1e3, 1e2, 10.0, 1.0)
"""α is tried in this order of promise: long enough to drown the blocks, not so long that float32 loses them."""
LOW_PRECISION_NATS = 0.05
"""By how much bfloat16 and float16 move a KL."""
WAIT_SECONDS = 0.02
"""How long one part waits for the solver, which runs beside the engine; other rows move between two parts."""


class DirectToken:
    """Solves the head for the run's target, and lets the first restart begin at the best direct token."""

    def __init__(self, run: Run) -> None:
        """InputError for a target over strings, which no single softmax head answers for."""
        if run.objective.token_probs is None:
            raise InputError(
                "soft_rule 'direct' solves one softmax head and needs a target over single tokens; "
                "use 'lbfgs' for a target over strings."
            )
        self._run = run
        self._solved: Future[FloorResult] | None = None

    @property
    def text(self) -> str:
        return "Solving the softmax head for its closest point to the target"

    def advance(self, capacity: Capacity) -> bool:
        """Whether the restarts can begin: the head is solved and the direct token has been tried."""
        if self._solved is None:
            self._solved = _beside(self._run)
        try:
            found = self._solved.result(WAIT_SECONDS)
        except TimeoutError:
            return False
        except InputError as no_head:
            self._run.bounds = Bounds(note=f"{no_head} Tuning goes on by L-BFGS from vocabulary tokens.")
            return True
        self._begin(found, capacity)
        return True

    def _begin(self, found: FloorResult, capacity: Capacity) -> None:
        run = self._run
        exact = run.lm.dtype in (torch.float32, torch.float64)
        bounds = Bounds(found.lower_bound_nats, found.head_optimum_nats, CLOSED_NATS if exact else LOW_PRECISION_NATS)
        starts = [run.beginning(restart) for restart in range(run.config.restarts)]
        assert found.head_point is not None
        tried = _direct_prompts(run, starts[0], found.head_point)
        kls = _measure(run, tried, capacity)
        best = int(kls.argmin())
        starts[0] = starts[0][0], tried[best]
        spent = [len(tried)] + [0] * (run.config.restarts - 1)
        run.begin_at(starts, spent)
        run.bounds = bounds if bounds.reached(float(kls[best])) else _explained(run, bounds, float(kls[best]))


def _beside(run: Run) -> Future[FloorResult]:
    """The floor and head optimum of the run's target, by a thread of its own."""
    future: Future[FloorResult] = Future()

    def work() -> None:
        try:
            future.set_result(softmax_floor(run.lm, run.target))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, name="direct token", daemon=True).start()
    return future


def _direct_prompts(run: Run, start: Start, point: Tensor) -> Tensor:
    """The prompts to try, `(n pos hidden)`: `start`, and `start` with α·u in its last soft slot for every α.

    point u `(width,)`, width that of the final norm. Under a norm budget no α is longer than it allows.
    """
    _, embeds = start
    soft = run.layout.soft.to(embeds.device)
    if len(point) != embeds.shape[1]:  # a projected input: there is no place for u in it
        return within(embeds[None], soft[None], embeds.new_tensor([run.norm_budget]))
    place = int(soft.nonzero()[-1])
    prompts = embeds.repeat(len(SCALES) + 1, 1, 1)
    for row, scale in enumerate(SCALES):
        prompts[row, place] = scale * point.to(embeds)
    return within(prompts, soft.expand(len(prompts), -1), embeds.new_full((len(prompts),), run.norm_budget))


@torch.no_grad()
def _measure(run: Run, prompts: Tensor, capacity: Capacity) -> Tensor:
    """KL(p‖q) of every prompt, `(n,)` nats; infinite where it is not finite."""
    parts = prompts.split(capacity.rows(prompts.shape[1]))
    scores = [run.objective.score(run.lm, part, [run.objective] * len(part)) for part in parts]
    return torch.cat([each.kl for each in scores]).nan_to_num(torch.inf, torch.inf)


def _explained(run: Run, bounds: Bounds, kl_nats: float) -> Bounds:
    """The bounds with the reason why the best direct token stays above the head's optimum."""
    head = bounds.head_optimum_nats
    assert head is not None
    if run.norm_budget < torch.inf:
        reason = f"the norm budget of {run.norm_budget:.3g} is shorter than the token has to be"
    elif not run.layout.soft[-1]:
        reason = "the prompt does not end in a soft slot, so the last position never holds the token itself"
    elif run.lm.hidden_size != run.lm.model.config.get_text_config().hidden_size:
        reason = "the model projects its input embeddings, so no token stands for the head's point"
    else:
        reason = "the model does not pass a long token on unchanged (normalised embeddings, or norms after its blocks)"
    return Bounds(
        bounds.floor_nats,
        head,
        bounds.tolerance_nats,
        f"The best direct token is at {kl_nats:.3f} nats, above the head optimum of {head:.3f}: {reason}; "
        "tuning goes on from there by L-BFGS.",
    )
