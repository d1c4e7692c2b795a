"""What a stack of rows asks of the model, in passes that fit the memory; a prompt that cannot be scored fails alone."""

from __future__ import annotations

import logging
import math

import torch

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.models.interruption import interruptible, unless
from dpexplore.tuning.engine.capacity import Capacity, is_out_of_memory
from dpexplore.tuning.engine.capture import CapturedPasses, recorder_for
from dpexplore.tuning.engine.passes import Batch, Evaluation
from dpexplore.tuning.engine.rows import RowStack
from dpexplore.tuning.objectives.next_token import entropy_of
from dpexplore.wanted import NotWanted

logger = logging.getLogger(__name__)

INTERNAL_ERROR = "The run ended on an internal error, which the server has logged; try again."


class Evaluator:
    """Evaluates batches of prompts for one engine."""

    def __init__(self, lm: LanguageModel, capacity: Capacity, *, capture: bool, served: bool) -> None:
        """`capture` and `served` as in `Engine`."""
        self.passes = CapturedPasses(lm, recorder_for(lm) if capture else None)
        self._lm, self._capacity, self._served = lm, capacity, served

    def evaluate(self, stack: RowStack, batch: Batch) -> Evaluation:
        """Everything asked of a batch, in as many passes as memory asks for."""
        parts: list[Evaluation] = []
        start, length, most = 0, batch.ids.shape[1], len(batch)
        behind = stack.rows[0].run.objective.behind
        while start < len(batch):
            size = min(self._capacity.rows(length, behind=behind), len(batch) - start, most)
            try:
                evaluated = self._try_pass(stack, batch, start, start + size)
            except NotWanted:
                raise
            except Exception:
                if not self._served:
                    raise
                if size > 1:  # one prompt's trouble is not the others': look for it
                    most = size // 2
                    continue
                logger.exception("scoring a prompt of %d tokens failed", length)
                parts.append(self._give_up(stack, batch, start, INTERNAL_ERROR))
            else:
                if evaluated is None and size > 1:
                    self._capacity.ran_out(size)
                    continue
                parts.append(evaluated or self._give_up(stack, batch, start, self._too_long(length)))
            start += size
        grads = [part.grad for part in parts if part.grad is not None]
        return Evaluation(
            torch.cat([part.loss for part in parts]),
            torch.cat([part.kl for part in parts]),
            torch.cat([part.entropy for part in parts]),
            torch.cat(grads) if batch.grad else None,
            torch.cat([part.log_q for part in parts if part.log_q is not None]) if stack.watches else None,
        )

    def _try_pass(self, stack: RowStack, batch: Batch, start: int, stop: int) -> Evaluation | None:
        """Evaluate some prompts of a batch; None if memory ran out."""
        owners = batch.owners[start:stop]
        objectives = stack.objectives(None if batch.grad and len(owners) == len(stack) else owners)
        try:
            with torch.set_grad_enabled(batch.grad), interruptible(unless(stack.unwanted)):
                embeds, prefix = batch.part(self._lm, start, stop), batch.prefix(start, stop)
                if batch.grad or not prefix.pays:
                    replayed = self.passes.evaluate(embeds, objectives, grad=batch.grad, keep_log_q=stack.watches)
                    if replayed is not None:
                        return replayed
                embeds.requires_grad_(batch.grad)
                scores = objectives[0].score(self._lm, embeds, objectives, prefix)
                grad = torch.autograd.grad(scores.loss.sum(), embeds)[0] if batch.grad else None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            log_q = scores.log_q if stack.watches else None
            return Evaluation(scores.loss.detach(), scores.kl, entropy_of(scores.log_q), grad, log_q)
        if self._lm.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _too_long(self, length: int) -> str:
        return (
            f"The memory does not hold a single prompt of {length:,} tokens for {self._lm.name}; "
            "use a shorter prompt or a smaller model."
        )

    def _give_up(self, stack: RowStack, batch: Batch, index: int, reason: str) -> Evaluation:
        """This one prompt cannot be scored: its run ends with a sentence, the others go on."""
        stack.rows[int(batch.owners[index])].run.fail(InputError(reason))
        nothing = torch.full((1,), math.nan, device=self._lm.device)
        grad = torch.full_like(batch.embeds[:1], math.nan) if batch.grad else None
        log_q = nothing.expand(1, stack.answers) if stack.watches else None
        return Evaluation(nothing, nothing, nothing, grad, log_q)
