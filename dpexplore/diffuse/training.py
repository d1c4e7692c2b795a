"""LoRA towards distributions over strings (Forcing Diffuse Distributions, §3 and §4)."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dpexplore.diffuse.adapter import Adapter, new_adapter
from dpexplore.diffuse.config import AdapterConfig
from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import StringTarget
from dpexplore.targets.outcome_tree import OutcomeTree
from dpexplore.tuning.engine.capacity import is_out_of_memory
from dpexplore.tuning.objectives.sequences import outcome_log_probs, with_all_else

logger = logging.getLogger(__name__)

AdapterStatus = Literal["running", "early_stop", "max_passes", "cancelled", "nonfinite"]
EPS = 1e-5  # the repository's; PyTorch's own default is 1e-8


@dataclass(frozen=True)
class AdapterStep:
    """One pass over all requests."""

    step: int
    """1 for the first pass."""
    cross_entropy_nats: list[float]
    """Of each request, as its own step met it: Σ wᵢ · NLL of outcome i."""
    floor_nats: list[float]
    """H(w) of each request, below which no cross-entropy comes."""

    @property
    def loss_nats(self) -> float:
        """The sum over the requests."""
        return sum(self.cross_entropy_nats)


class AdapterRun:
    """A LoRA run: iterate for its passes, then take `adapter`. It moves only while it is iterated over.

    The gradient of a request is that of all its outcomes; they go through the model in batches. Any number of runs may
    go on beside each other and beside the row engine: the model's own weights and modules are never written to.
    """

    def __init__(self, lm: LanguageModel, targets: Sequence[StringTarget], config: AdapterConfig | None = None) -> None:
        """InputError if there is no target."""
        if not targets:
            raise InputError("There is nothing to train on; give at least one target over strings.")
        self.lm = lm
        self.targets = list(targets)
        self.config = config or AdapterConfig()
        self.adapter: Adapter = new_adapter(lm, self.config.rank, self.config.seed)
        self.steps: list[AdapterStep] = []
        self.probabilities = [torch.full_like(target.weights, math.nan) for target in self.targets]
        """Of each request, its outcomes' `(outcomes,)` as its latest step met them, the mean over the prefixes; NaN
        before the first one, and where the weight is 0: a step scores no such outcome."""
        self.status: AdapterStatus = "running"
        self.seconds = 0.0
        self._cancelled = threading.Event()
        self._rng = torch.Generator().manual_seed(self.config.seed)
        self._optimiser = torch.optim.AdamW(self.adapter.parameters(), lr=self.config.learning_rate, eps=EPS)

    def cancel(self) -> None:
        """Stop within a request and keep the adapter as it is; from any thread."""
        self._cancelled.set()

    def __iter__(self) -> Iterator[AdapterStep]:
        """The passes that are still to be made. InputError if the memory does not hold one."""
        try:
            while self.status == "running":
                began = time.monotonic()
                step = self._pass()
                self.seconds += time.monotonic() - began
                if step is None:
                    return
                self.steps.append(step)
                self.status = self._next_status(step)
                yield step
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"The memory does not hold {self.config.batch:,} outcomes at a time on {self.lm.name}; use a "
                "smaller batch."
            ) from error

    def finish(self) -> AdapterRun:
        """Make all passes that are left."""
        for _ in self:
            pass
        return self

    def _next_status(self, step: AdapterStep) -> AdapterStatus:
        if not math.isfinite(step.loss_nats):
            return "nonfinite"
        if self.config.early_stop and step.loss_nats <= (1 + self.config.gamma) * sum(step.floor_nats):
            return "early_stop"
        return "max_passes" if len(self.steps) >= self.config.passes else "running"

    def _pass(self) -> AdapterStep | None:
        """One step for each request, in random order; None if the run was cancelled."""
        self._set_rate()
        losses = [math.nan] * len(self.targets)
        for i in torch.randperm(len(self.targets), generator=self._rng).tolist():
            if self._cancelled.is_set():
                self.status = "cancelled"
                return None
            losses[i] = self._step(self.targets[i], self.probabilities[i])
        floors = [target.entropy_nats for target in self.targets]
        return AdapterStep(len(self.steps) + 1, losses, floors)

    def _set_rate(self) -> None:
        done = len(self.steps) / self.config.passes
        share = (1 + math.cos(math.pi * done)) / 2 if self.config.decay else 1.0
        for group in self._optimiser.param_groups:
            group["lr"] = share * self.config.learning_rate

    def _step(self, target: StringTarget, probabilities: Tensor) -> float:
        """One AdamW step on one request; the cross-entropy before it, in nats.

        The outcomes' probabilities before it are written into `probabilities` `(outcomes,)`.
        """
        weighted = target.weights.nonzero()[:, 0]
        order = weighted[torch.randperm(len(weighted), generator=self._rng)]
        self._optimiser.zero_grad(set_to_none=True)
        total = 0.0
        with torch.enable_grad():
            for part in order.split(self.config.batch):
                found = part_log_probs(self.adapter.lm, target, part)
                loss = weighted_loss(found, target.weights[part])
                loss.backward()
                total += float(loss.detach())
                probabilities[part] = with_all_else(found.detach())[:-1].exp().double().cpu()
        torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), self.config.clip)
        if math.isfinite(total):
            self._optimiser.step()
        return total


def cross_entropy(lm: LanguageModel, target: StringTarget) -> Tensor:
    """Σ wᵢ · NLL of outcome i with its end, in nats, of a request."""
    return weighted_loss(part_log_probs(lm, target, torch.arange(len(target.weights))), target.weights)


def part_log_probs(lm: LanguageModel, target: StringTarget, part: Tensor) -> Tensor:
    """log q of the outcomes `part` `(n,)` of a request, in that order, in nats: `(prefixes n)`, differentiable."""
    prompt = lm.embed(torch.tensor([target.request_ids]))
    if len(part) == len(target.weights):
        return outcome_log_probs(lm, prompt, target.tree)[0][:, part]
    return outcome_log_probs(lm, prompt, subtree(target, part))[0]


def weighted_loss(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Σ wᵢ · NLL of outcome i from log q `(prefixes n)` and weights `(n,)`, in nats, the mean over the prefixes."""
    return -(weights.to(log_probs) * log_probs).sum(-1).mean()


def subtree(target: StringTarget, part: Tensor) -> OutcomeTree:
    """The tree of some outcomes `(n,)` of a target."""
    tree = target.tree
    prefixes = [tree.sequence(prefix, 0)[0] for prefix in range(tree.paths.shape[0])]
    return OutcomeTree.of([tree.sequence(0, i)[1] for i in part.tolist()], prefixes)


def train_adapter(
    lm: LanguageModel, targets: Sequence[StringTarget], config: AdapterConfig | None = None, **changes: object
) -> AdapterRun:
    """A LoRA run made to its end."""
    config = replace(config or AdapterConfig(), **changes)  # type: ignore[arg-type]
    return AdapterRun(lm, targets, config).finish()
