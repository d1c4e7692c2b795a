"""Gradient passes as recorded programs: replayed, they cost the host one launch where an eager pass costs thousands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.tuning.engine.passes import Evaluation
from dpexplore.tuning.knobs import Divergence
from dpexplore.tuning.objectives.next_token import NextTokenObjective, entropy_of

logger = logging.getLogger(__name__)

RUNGS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Row counts that are recorded; a batch is padded up to the next one, a larger one stays eager."""
EAGER_FIRST = 2
"""Passes of a shape that run eagerly before it is recorded: the first numbers never wait, a short run never pays."""
MOST_PROGRAMS = 24
"""Recordings kept; each holds buffers on the device."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Share by which loss and gradient may differ from the eager pass's, rounding aside; half precision is coarser."""
COARSE_TOLERANCE = 0.05

Outputs = tuple[Tensor, ...]


class Recorder(Protocol):
    """Records work on fixed buffers, to be done again by a single call."""

    def record(self, work: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        """What does the work again, and the tensors that then hold its results."""
        ...


class CudaGraphs:
    """Recordings as CUDA graphs; they share one pool of memory, since none is replayed before the last is read."""

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()  # lets libraries set up what may not be set up while a graph is captured
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads (floors, pages) go on launching work of their own meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = work()
        return graph.replay, outputs


def recorder_for(lm: LanguageModel) -> Recorder | None:
    """How passes of a model are recorded: on one CUDA card; nowhere else."""
    return CudaGraphs() if lm.device.type == "cuda" and not lm.is_spread else None


class _Shape(NamedTuple):
    """What passes of one recording have in common."""

    rung: int
    pos: int
    kind: Divergence
    shared: bool
    """Whether one target serves all rows."""


@dataclass(eq=False)
class _Program:
    embeds: Tensor
    """`(rung pos hidden)` float32: the buffer that the prompts are written into."""
    targets: Outputs
    """Buffers of what the objectives are made of, each `(rung …)` or `(1 …)`."""
    written: object
    """What stands in `targets`."""
    replay: Callable[[], object]
    outputs: Outputs
    """Loss, KL and entropy `(rung,)`, gradient `(rung pos hidden)`, log q `(rung vocab)`."""


class CapturedPasses:
    """Gradient passes of one model, recorded by shape."""

    def __init__(self, lm: LanguageModel, recorder: Recorder | None) -> None:
        self._lm, self._recorder = lm, recorder
        self._uses: dict[_Shape, int] = {}
        self._programs: dict[_Shape, _Program] = {}

    def evaluate(self, embeds: Tensor, objectives: Sequence[Any], *, keep_log_q: bool) -> Evaluation | None:
        """The pass of prompts `(rows pos hidden)`, replayed; None where it has to be made eagerly."""
        rows, first = len(embeds), objectives[0]
        if self._recorder is None or rows > RUNGS[-1] or not isinstance(first, NextTokenObjective):
            return None
        rung = next(rung for rung in RUNGS if rung >= rows)
        targets = first.stacked(objectives)
        shared = len(targets[0]) == 1 < rows
        key = _Shape(rung, embeds.shape[1], first.kind, shared)
        program = self._programs.get(key)
        if program is None:
            self._uses[key] = self._uses.get(key, 0) + 1
            if self._uses[key] <= EAGER_FIRST:
                return None
            program = self._recorded(key, embeds, first, targets)
            if program is None:
                return None
        _fill(program, embeds, targets)
        program.replay()
        loss, kl, entropy, grad, log_q = (output[:rows] for output in program.outputs)
        # Copied, because the next replay writes over them.
        kept = log_q.clone() if keep_log_q else None
        return Evaluation(loss.clone(), kl.clone(), entropy.clone(), grad.clone(), kept)

    def _recorded(
        self, key: _Shape, embeds: Tensor, objective: NextTokenObjective, targets: Outputs
    ) -> _Program | None:
        """A program that has given what the eager pass gives; from the first failure on, all passes are eager."""
        assert self._recorder is not None
        if len(self._programs) >= MOST_PROGRAMS:
            self._programs.pop(next(iter(self._programs)))
        leaf = embeds[:1].detach().repeat(key.rung, 1, 1).requires_grad_()
        copies = 1 if key.shared else key.rung
        buffers = tuple(part[:1].repeat(copies, *[1] * (part.ndim - 1)) for part in targets)

        def work() -> Outputs:
            with torch.enable_grad():
                scores = objective.score_stacked(self._lm, leaf, buffers)
                (grad,) = torch.autograd.grad(scores.loss.sum(), leaf)
            return scores.loss.detach(), scores.kl, entropy_of(scores.log_q), grad, scores.log_q

        try:
            program = _Program(leaf, buffers, None, *self._recorder.record(work))
            _fill(program, embeds, targets)
            eager = [output[: len(embeds)].clone() for output in work()]
            program.replay()
            for name, ours, theirs in zip(("loss", "KL", "entropy", "gradient"), program.outputs, eager, strict=False):
                apart = (ours[: len(embeds)] - theirs).abs().max()
                allowed = TOLERANCE.get(self._lm.dtype, COARSE_TOLERANCE) * (1 + theirs.abs().max())
                if not apart <= allowed and theirs.isfinite().all():
                    raise RuntimeError(f"its {name} differs by {float(apart):.2g}")
        except Exception as error:  # of as many kinds as there are models that cannot be captured
            logger.warning("Passes of %s cannot be recorded (%s); they run eagerly.", self._lm.name, error)
            self._recorder = None
            self._programs.clear()
            return None
        self._programs[key] = program
        return program


@torch.no_grad()
def _fill(program: _Program, embeds: Tensor, targets: Outputs) -> None:
    """Write prompts, and targets where they are others, into a program's buffers; the rest is padding."""
    program.embeds[: len(embeds)].copy_(embeds)
    if program.written is not targets:
        for buffer, part in zip(program.targets, targets, strict=True):
            buffer[: len(part)].copy_(part)
        program.written = targets
