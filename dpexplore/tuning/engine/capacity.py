"""How many rows fit: measured on the model itself, halved when memory runs out, grown back when it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.models.registry import memory_present

USABLE = 0.7  # share of the memory present that rows may take; the rest is for temporaries and for others
GROW_AFTER = 50  # steps at full capacity without running out before more is tried
BYTES_PER_RECORD = 80  # numbers of one restart at one step: in the engine's log, and as Python lists in its capsule
PROBE_LENGTHS = (2, 10)  # prompt lengths at which saved activations are measured; they grow linearly between


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on CUDA or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "can't allocate memory" in text or "not enough memory" in text


@dataclass(frozen=True)
class Memory:
    """A memory that work must fit into."""

    name: str
    """As messages name it."""
    free: Callable[[], int]
    """Bytes that are free now."""


def memory_of_model(lm: LanguageModel) -> Memory:
    """Where rows live: on the model's device; on the fullest card where it is spread over several."""
    devices = {parameter.device for parameter in lm.model.parameters()}
    name = "the machine's memory" if devices == {torch.device("cpu")} else "the card's memory"
    return Memory(name, lambda: min(memory_present(device) for device in devices))


def memory_of_machine() -> Memory:
    """Where records and tables live."""
    return Memory("the machine's memory", lambda: memory_present(torch.device("cpu")))


class Capacity:
    """The number of rows that one pass may hold, for prompts of any length.

    Rows are held against the memory of the model's device; what runs leave behind, against that of the machine.
    """

    def __init__(
        self,
        lm: LanguageModel,
        max_rows: int | None = None,
        device: Memory | None = None,
        machine: Memory | None = None,
    ) -> None:
        self.lm = lm
        self.device = device or memory_of_model(lm)
        self.machine = machine or memory_of_machine()
        self._ceiling = max_rows
        self._limit = max_rows
        self._calm_steps = 0
        self._bytes: tuple[float, float] | None = None

    def bytes_per_row(self, length: int, pairs: int = 0, behind: int = 0) -> int:
        """Bytes that one row of `length` positions needs in a forward and backward pass.

        `pairs` are those of step and gradient change that L-BFGS remembers of it; `behind` are positions that the
        objective computes behind it, with their logits.
        """
        if self._bytes is None:
            first, second = (self._probe(n) for n in PROBE_LENGTHS)
            slope = max(0.0, (second - first) / (PROBE_LENGTHS[1] - PROBE_LENGTHS[0]))
            self._bytes = (first - slope * PROBE_LENGTHS[0], slope)
        base, slope = self._bytes
        # State of a row: prompt, best prompt, gradient and two moments; some eight copies of q live at once.
        state = (6 + 2 * pairs) * length * self.lm.hidden_size * 4 + 8 * (1 + behind) * self.lm.vocab_size * 4
        return int(base + slope * (length + behind) + state)

    def rows(self, length: int, pairs: int = 0, behind: int = 0) -> int:
        """How many rows of this length fit now, at least 1."""
        fit = int(USABLE * self.device.free() // self.bytes_per_row(length, pairs, behind))
        return max(1, fit if self._limit is None else min(fit, self._limit))

    def check(self, length: int, restarts: int, steps: int, pairs: int = 0, behind: int = 0) -> None:
        """InputError, with the numbers, if one row of this length, or what the restarts leave behind, cannot fit."""
        needed = self.bytes_per_row(length, pairs, behind)
        if needed > self.device.free():
            raise _too_much(f"A prompt of {length:,} tokens needs", needed, self.device, "Use a shorter prompt.")
        outcomes = restarts * (length * self.lm.hidden_size * 4 + steps * BYTES_PER_RECORD)
        if outcomes > USABLE * self.machine.free():
            work = f"The records of {restarts:,} restarts of {length:,} tokens and {steps:,} steps need"
            raise _too_much(work, outcomes, self.machine, "Use fewer restarts or steps, or a shorter prompt.")

    def check_table(self, needed: int) -> None:
        """InputError, with the numbers, if a table of this many bytes does not fit into the machine's memory."""
        if needed > USABLE * self.machine.free():
            raise _too_much(f"To look tokens up for {self.lm.name} takes", needed, self.machine, "Use init 'vocab'.")

    def ran_out(self, rows: int) -> None:
        """A pass of this many rows did not fit: half of it is the new limit."""
        self._limit = max(1, rows // 2)
        self._calm_steps = 0

    def went_well(self, *, full: bool) -> None:
        """A step fitted; `full` says that rows are waiting. After a while more is tried, up to the ceiling."""
        if self._limit is None or self._limit == self._ceiling or not full:
            return
        self._calm_steps += 1
        if self._calm_steps >= GROW_AFTER:
            self._calm_steps = 0
            grown = self._limit + max(1, self._limit // 4)
            self._limit = grown if self._ceiling is None else min(grown, self._ceiling)

    def _probe(self, length: int) -> int:
        """Bytes that autograd keeps for the backward pass of one row, weights not counted."""
        lm = self.lm
        weights = [*lm.model.parameters(), *lm.model.buffers()]
        held = {weight.untyped_storage().data_ptr() for weight in weights}
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in held:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        embeds = torch.zeros(1, length, lm.hidden_size, device=lm.device, dtype=lm.dtype, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            graph = lm.log_probs(embeds)
        del graph
        return sum(kept.values())


def _too_much(work: str, needed: int, memory: Memory, instead: str) -> InputError:
    need, free = needed / 2**30, memory.free() / 2**30
    return InputError(f"{work} {need:.1f} GiB of {memory.name}, of which {free:.1f} GiB are free. {instead}")
