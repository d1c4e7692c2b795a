"""The softmax head of a causal language model: everything after the last residual stream, as plain tensors.

A model ends in a norm and an unembedding. RMSNorm gives g ⊙ x/rms(x), LayerNorm g ⊙ (x − mean)/std + β, so with
u = x/rms(x), or u = (x − mean)/std, logits = A u + b and ‖u‖ ≤ R = √hidden for every prompt there is. Nothing is
believed from names: the norm is found by what it computes, the map from it to the logits is measured, and the whole
is held against the model on prompts near and far from any text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from dpexplore.errors import InputError
from dpexplore.models.language_model import LanguageModel

FLOAT32_ROUNDING = 2.0**-24
FITTED_SCALE_ROUNDING = 1e-6
RADIUS_TOLERANCE = 1e-4
# Largest disagreement accepted, relative to the largest logit: accumulated rounding of the dtype.
AGREEMENT = {torch.float64: 1e-6, torch.float32: 2e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
PROMPT_SCALES = (1e-3, 0.3, 1.0, 30.0, 1e3)
"""Sizes of the test prompts' embeddings beside real ones: soft prompts wander far off the manifold."""
FAR = 8.0
"""How much longer than any u the head is probed: what bends there (soft-capping) bends inside, too."""
BLOCK_ROWS = 4096


class NoHead(InputError):
    """This model has no softmax head that a floor could be computed for; the message says why."""


@dataclass(frozen=True, eq=False)
class SoftmaxHead:
    """logits = A u + b with ‖u‖ ≤ radius, for every prompt."""

    matrix: Tensor
    """A `(vocab hidden)`, float32 or float64, on the model's device."""
    bias: Tensor | None
    """b `(vocab,)` float64, None if it is zero."""
    radius: float
    """R = √hidden, hidden the width of the final norm."""
    zero_mean: bool
    """u has zero mean besides (LayerNorm)."""
    rounding: float
    """Relative error of A's entries: the product of weights, rounded once."""

    @property
    def vocab_size(self) -> int:
        """Rows of the unembedding."""
        return self.matrix.shape[0]

    @property
    def hidden_size(self) -> int:
        """Columns of the unembedding."""
        return self.matrix.shape[1]


@dataclass(frozen=True, eq=False)
class _Norm:
    """y = gain ⊙ u + shift, with u the normalised input."""

    module: nn.Module
    zero_mean: bool
    gain: Tensor
    shift: Tensor
    epsilon: float

    def normalise(self, x: Tensor) -> Tensor:
        x = x.double()
        if self.zero_mean:
            x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + self.epsilon).sqrt()


@torch.no_grad()
def extract_head(lm: LanguageModel) -> SoftmaxHead:
    """The head of `lm`, verified on test prompts. NoHead, with the reason in one sentence, if there is none.

    The matrix takes as much memory as a float32 unembedding; it is the model's own tensor where that is A already.
    """
    unembedding = lm.model.get_output_embeddings()
    if not isinstance(unembedding, nn.Linear):
        raise NoHead("No floor for this model: its logits do not come from a plain unembedding matrix.")
    calls = _trace(lm)
    norm, between = _final_norm(calls, unembedding, lm.dtype)
    bias, scale, rounding = _tail(lm, norm, between, unembedding)
    matrix, rounding = _matrix(norm, between, unembedding, scale, rounding)
    width = norm.gain.shape[0]
    head = SoftmaxHead(matrix, bias if bool(bias.any()) else None, math.sqrt(width), norm.zero_mean, rounding)
    _verify(lm, norm, head)
    return head


def _test_prompts(lm: LanguageModel) -> Iterator[Tensor]:
    """Prompts `(rows pos hidden)`: random tokens, then random vectors of many sizes.

    Prompts of ids `(rows pos)` alone for a model that does not take vectors.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, lm.embedding_table.shape[0], (4, 3), generator=generator)
    if lm.untunable is not None:
        yield ids
        for _ in PROMPT_SCALES:
            yield torch.randint(0, lm.embedding_table.shape[0], (4, 3), generator=generator)
        return
    tokens = lm.embed(ids).float()
    yield tokens
    spread = tokens.std().clamp_min(1e-6).item()
    for scale in PROMPT_SCALES:
        noise = torch.randn(4, 3, lm.hidden_size, generator=generator)
        yield (scale * spread * noise).to(tokens.device)


def _logits(lm: LanguageModel, prompts: Tensor) -> Tensor:
    """`(rows pos hidden)`, or ids `(rows pos)`, -> float64 logits of the last position, `(rows vocab)`."""
    by_ids = not prompts.is_floating_point()
    given = {"input_ids": prompts.to(lm.device)} if by_ids else {"inputs_embeds": prompts.to(lm.device, lm.dtype)}
    output = lm.model(**given, use_cache=False)
    return output.logits[:, -1].double()


def _trace(lm: LanguageModel) -> list[tuple[nn.Module, Tensor]]:
    """Modules without children in the order in which one prompt runs through them, with their inputs."""
    calls: list[tuple[nn.Module, Tensor]] = []

    def record(module: nn.Module, args: tuple, _output: object) -> None:
        if args and isinstance(args[0], Tensor):
            calls.append((module, args[0]))

    leaves = [module for module in lm.model.modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(_here_only(record)) for module in leaves]
    try:
        _logits(lm, next(_test_prompts(lm)))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _here_only(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook for passes of this thread alone: others may be tuning on the model at the same time."""
    owner = get_ident()
    return lambda *arguments: hook(*arguments) if get_ident() == owner else None


def _final_norm(
    calls: list[tuple[nn.Module, Tensor]], unembedding: nn.Module, dtype: torch.dtype
) -> tuple[_Norm, list[nn.Linear]]:
    """The last module before the unembedding that normalises, and the projections after it (OPT-350m has one)."""
    places = [place for place, (module, _) in enumerate(calls) if module is unembedding]
    if not places:
        raise NoHead("No floor for this model: its unembedding is not the last step to its logits.")
    between: list[nn.Linear] = []
    width = calls[places[-1]][1].shape[-1]
    for module, seen in reversed(calls[: places[-1]]):
        if isinstance(module, nn.Linear):
            if module.out_features != width:  # Qwen 4 mixes several streams after its last norm
                break
            between.insert(0, module)
            width = module.in_features
        elif seen.shape[-1] == width and (norm := _as_norm(module, seen, dtype)) is not None:
            return norm, between
    raise NoHead("No floor for this model: no RMSNorm or LayerNorm stands right before its unembedding.")


def _as_norm(module: nn.Module, seen: Tensor, dtype: torch.dtype) -> _Norm | None:
    """What `module` computes, if that is a norm: tried on what it saw and on vectors of other sizes."""
    weights = dict(module.named_parameters(recurse=False))
    if any(value.ndim != 1 or value.shape[0] != seen.shape[-1] for value in weights.values()):
        return None
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, seen.shape[-1], generator=generator) + 0.5
    x = torch.cat([seen.reshape(-1, seen.shape[-1]), noise.to(seen), 30 * noise.to(seen)])
    try:
        y = module(x).double()
    except (TypeError, RuntimeError):
        return None
    if y.shape != x.shape:
        return None
    options = {"dtype": torch.float64, "device": x.device}
    shift = weights["bias"].double() if "bias" in weights else torch.zeros(x.shape[-1], **options)
    weight = weights["weight"].double() if "weight" in weights else None
    # Gemma keeps the gain's distance from one.
    gains = [torch.ones(x.shape[-1], **options)] if weight is None else [weight, 1 + weight]
    epsilon = next(
        (float(getattr(module, name)) for name in ("eps", "variance_epsilon", "epsilon") if hasattr(module, name)),
        0.0,
    )
    for gain in gains:
        for zero_mean in (False, True):
            norm = _Norm(module, zero_mean, gain, shift, epsilon)
            error = (gain * norm.normalise(x) + shift - y).abs().max()
            if error <= AGREEMENT.get(dtype, 1e-3) * y.abs().max():
                return norm
    return None


@contextmanager
def _norm_replaced(norm: _Norm, output: Tensor) -> Iterator[None]:
    """Within, the final norm puts out `output` `(rows hidden)` at every position."""

    def replace(_module: nn.Module, _args: tuple, y: Tensor) -> Tensor:
        flat = output.to(y)
        return flat[:, None].expand_as(y) if y.ndim == 3 else flat.repeat_interleave(len(y) // len(flat), 0)

    handle = norm.module.register_forward_hook(_here_only(replace))
    try:
        yield
    finally:
        handle.remove()


def _tail(
    lm: LanguageModel, norm: _Norm, between: list[nn.Linear], unembedding: nn.Linear
) -> tuple[Tensor, float, float]:
    """From the norm's output to the logits: bias b `(vocab,)`, the logit scale, and how well the scale is known."""
    if any(getattr(lm.model.config.get_text_config(), name, None) for name in _CAPPING):
        raise NoHead(
            "No floor for this model: it soft-caps its logits, which are then not affine in the norm's output."
        )
    prompt = next(_test_prompts(lm))
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(len(prompt), len(norm.gain), generator=generator).to(norm.gain)
    # Rounded as the model will see it.
    y = (norm.gain * norm.normalise(u) * FAR).to(lm.dtype).double()

    def run(output: Tensor) -> Tensor:
        with _norm_replaced(norm, output):
            return _logits(lm, prompt)

    plain = _unembed(between, unembedding, y) - _unembed(between, unembedding, torch.zeros_like(y))
    at_zero = run(torch.zeros_like(y))[:1]
    measured = run(y) - at_zero
    fitted = float((plain * measured).sum() / plain.square().sum())
    scale, rounding = _known_scale(lm, fitted)
    if (scale * plain - measured).abs().max() > AGREEMENT.get(lm.dtype, 1e-3) * measured.abs().max():
        raise NoHead("No floor for this model: its logits are not an affine function of its final norm's output.")
    bias = scale * _unembed(between, unembedding, norm.shift[None])[0]
    return bias, scale, rounding


_CAPPING = ("final_logit_softcapping", "logits_soft_cap", "logit_softcapping", "output_logits_soft_cap")


def _unembed(between: list[nn.Linear], unembedding: nn.Linear, y: Tensor) -> Tensor:
    """y `(rows hidden)` through the projections and the unembedding in float64, `(rows vocab)`, by blocks."""
    for layer in between:
        y = y @ layer.weight.double().T
        y = y if layer.bias is None else y + layer.bias.double()
    logits = torch.cat([y @ block.double().T for block in unembedding.weight.split(BLOCK_ROWS)], dim=1)
    return logits if unembedding.bias is None else logits + unembedding.bias.double()


def _known_scale(lm: LanguageModel, fitted: float) -> tuple[float, float]:
    """The logit scale as the configuration has it (Cohere multiplies, Granite divides), else as measured."""
    tolerance = 100 * AGREEMENT.get(lm.dtype, 1e-3) * abs(fitted)
    config = lm.model.config.get_text_config()
    known = [1.0]
    for name in ("logit_scale", "logits_scaling", "output_multiplier_scale", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value:
            known += [float(value), 1 / float(value)]
    nearest = min(known, key=lambda value: abs(value - fitted))
    if abs(nearest - fitted) <= min(tolerance, 0.02 * abs(fitted)):
        return nearest, 0.0
    return fitted, FITTED_SCALE_ROUNDING


def _matrix(
    norm: _Norm, between: list[nn.Linear], unembedding: nn.Linear, scale: float, rounding: float
) -> tuple[Tensor, float]:
    """A = scale · W · P · diag(gain), and its relative rounding."""
    weight = unembedding.weight
    gain = scale * norm.gain
    if not between and weight.dtype in (torch.float32, torch.float64) and bool((gain == 1).all()):
        return weight.detach(), rounding
    projection = None
    for layer in between:
        product = layer.weight.double()
        projection = product if projection is None else product @ projection
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    matrix = torch.empty(weight.shape[0], len(gain), dtype=dtype, device=weight.device)
    for start in range(0, len(matrix), BLOCK_ROWS):
        block = weight[start : start + BLOCK_ROWS].double()
        if projection is not None:
            block = block @ projection
        matrix[start : start + BLOCK_ROWS] = block * gain
    return matrix, rounding + (FLOAT32_ROUNDING if dtype == torch.float32 else 2.0**-53)


def _verify(lm: LanguageModel, norm: _Norm, head: SoftmaxHead) -> None:
    """Rebuild the logits of the test prompts from what the norm saw: NoHead if they differ or u leaves the ball."""
    seen: list[Tensor] = []
    handle = norm.module.register_forward_pre_hook(_here_only(lambda _module, args: seen.append(args[0])))
    try:
        for embeds in _test_prompts(lm):
            seen.clear()
            logits = _logits(lm, embeds)
            x = seen[-1]
            x = x[:, -1] if x.ndim == 3 else x.view(len(embeds), -1, x.shape[-1])[:, -1]
            u = norm.normalise(x)
            if (u.norm(dim=-1) > head.radius * (1 + RADIUS_TOLERANCE)).any():
                raise NoHead("No floor for this model: its final norm lets vectors grow beyond √hidden.")
            rebuilt = torch.cat([u @ block.double().T for block in head.matrix.split(BLOCK_ROWS)], dim=1)
            if head.bias is not None:
                rebuilt = rebuilt + head.bias
            error = (rebuilt - logits).abs().max()
            if not error <= AGREEMENT.get(lm.dtype, 1e-3) * logits.abs().max():
                raise NoHead("No floor for this model: its logits could not be rebuilt from its final norm.")
    finally:
        handle.remove()
