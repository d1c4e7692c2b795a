"""Passes as recorded programs: replayed, they cost the host one launch where an eager pass costs thousands."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.tuning.engine.passes import Evaluation
from dpexplore.tuning.knobs import Divergence
from dpexplore.tuning.objectives.next_token import NextTokenObjective, entropy_of

logger = logging.getLogger(__name__)

RUNGS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Row counts that are recorded; a batch is padded up to the next one, a larger one stays eager."""
EAGER_FIRST = 2
"""Passes of a shape that run eagerly before it is recorded: the first numbers never wait, a short run never pays."""
MOST_PROGRAMS = 24
"""Recordings kept; each holds buffers on the device."""
MOST_FAILURES = 3
"""Recordings that may fail before a model counts as one that cannot be recorded: one failure can be chance."""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Share by which a row's loss and gradient may differ from the eager pass's; half precision is coarser."""
COARSE_TOLERANCE = 0.05
ROUNDING = 30
"""Times what the row changes by when its prompt is changed in the last bit: steep prompts magnify rounding."""

Outputs = tuple[Tensor, ...]


class Recorder(Protocol):
    """Records work on fixed buffers, to be done again by a single call."""

    def record(self, work: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        """What does the work again, and the tensors that then hold its results."""
        ...


_capturing = threading.Lock()
"""Engines of several models capture one after the other."""


@contextmanager
def _nothing_collected() -> Generator[None]:
    """No garbage is collected in here: an old graph that is freed while another is captured spoils the capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CudaGraphs:
    """Recordings as CUDA graphs; they share one pool of memory, since none is replayed before the last is read."""

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def record(self, work: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        with _capturing, _nothing_collected():
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                work()  # lets libraries set up what may not be set up while a graph is captured
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads (floors, pages) go on launching work of their own meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
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
    grad: bool


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
    """Loss, KL and entropy `(rung,)`, log q `(rung vocab)`, and where it is wanted the gradient `(rung pos hidden)`."""


class CapturedPasses:
    """Passes of one model, recorded by shape."""

    def __init__(self, lm: LanguageModel, recorder: Recorder | None) -> None:
        self._lm, self._recorder = lm, recorder
        self._uses: dict[_Shape, int] = {}
        self._programs: dict[_Shape, _Program] = {}
        self._failures = 0

    def evaluate(self, embeds: Tensor, objectives: Sequence[Any], *, grad: bool, keep_log_q: bool) -> Evaluation | None:
        """The pass of prompts `(rows pos hidden)`, replayed; None where it has to be made eagerly.

        `grad` asks for the gradient of the loss too, `keep_log_q` for log q.
        """
        rows, first = len(embeds), objectives[0]
        if self._recorder is None or rows > RUNGS[-1] or not isinstance(first, NextTokenObjective):
            return None
        rung = next(rung for rung in RUNGS if rung >= rows)
        targets = first.stacked(objectives)
        shared = len(targets[0]) == 1 < rows
        key = _Shape(rung, embeds.shape[1], first.kind, shared, grad)
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
        # Copied, because the next replay writes over them.
        loss, kl, entropy = (output[:rows].clone() for output in program.outputs[:3])
        log_q = program.outputs[3][:rows].clone() if keep_log_q else None
        return Evaluation(loss, kl, entropy, program.outputs[4][:rows].clone() if grad else None, log_q)

    def _recorded(
        self, key: _Shape, embeds: Tensor, objective: NextTokenObjective, targets: Outputs
    ) -> _Program | None:
        """A program that has given what the eager pass gives; after several failures all passes are eager."""
        assert self._recorder is not None
        if len(self._programs) >= MOST_PROGRAMS:
            self._programs.pop(next(iter(self._programs)))
        leaf = embeds[:1].detach().repeat(key.rung, 1, 1).requires_grad_(key.grad)
        copies = 1 if key.shared else key.rung
        buffers = tuple(part[:1].repeat(copies, *[1] * (part.ndim - 1)) for part in targets)

        def work() -> Outputs:
            with torch.set_grad_enabled(key.grad):
                scores = objective.score_stacked(self._lm, leaf, buffers)
                grad = torch.autograd.grad(scores.loss.sum(), leaf) if key.grad else ()
            return scores.loss.detach(), scores.kl, entropy_of(scores.log_q), scores.log_q, *grad

        try:
            program = _Program(leaf, buffers, None, *self._recorder.record(work))
            self._check(program, work, embeds, targets)
        except Exception as error:  # of as many kinds as there are models that cannot be captured
            self._failures += 1
            self._uses[key] = 0
            if self._failures >= MOST_FAILURES:
                logger.warning("Passes of %s cannot be recorded (%s); they run eagerly.", self._lm.name, error)
                self._recorder = None
                self._programs.clear()
            return None
        self._programs[key] = program
        return program

    def _check(self, program: _Program, work: Callable[[], Outputs], embeds: Tensor, targets: Outputs) -> None:
        """RuntimeError if a replay differs from the eager pass of the same prompts by more than rounding does."""
        rows = len(embeds)
        _fill(program, embeds * (1 + torch.finfo(self._lm.dtype).eps), targets)
        nudged = [_by_row(output, rows).clone() for output in work()]
        _fill(program, embeds, targets)
        eager = [_by_row(output, rows).clone() for output in work()]
        program.replay()
        share = TOLERANCE.get(self._lm.dtype, COARSE_TOLERANCE)
        for name, place in (("loss", 0), ("KL", 1), ("entropy", 2), ("gradient", 4)):
            if place < len(eager):
                theirs = eager[place]
                apart = (_by_row(program.outputs[place], rows) - theirs).abs().amax(1)
                rounding = (nudged[place] - theirs).abs().amax(1)
                allowed = share * (1 + theirs.abs().amax(1)) + ROUNDING * rounding
                wrong = ~(apart <= allowed) & theirs.isfinite().all(1)
                if wrong.any():
                    raise RuntimeError(f"its {name} differs by {float(apart[wrong].max()):.2g}")


def _by_row(output: Tensor, rows: int) -> Tensor:
    """`(rung …)` -> `(rows n)`."""
    return output[:rows].reshape(rows, -1)


@torch.no_grad()
def _fill(program: _Program, embeds: Tensor, targets: Outputs) -> None:
    """Write prompts, and targets where they are others, into a program's buffers; the rest is padding."""
    program.embeds[: len(embeds)].copy_(embeds)
    if program.written is not targets:
        for buffer, part in zip(program.targets, targets, strict=True):
            buffer[: len(part)].copy_(part)
        program.written = targets
