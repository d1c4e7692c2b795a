"""From a distribution back to the state that says it: of all states, and of those that prompts can bring about."""

from __future__ import annotations

import torch
from torch import Tensor

from dpexplore.floor.prepared import floor_solver
from dpexplore.floor.products import HeadProducts
from dpexplore.models.head import NoHead
from dpexplore.models.language_model import LanguageModel

AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-5}
"""Largest error of a rebuilt logit, relative to the largest, and of the length of u, relative to R."""
COARSE_AGREEMENT = 0.03
SMALLEST_EIGENVALUE = 1e-12
"""Directions that hardly move any logit, relative to the one that moves them most, are left at zero."""


def state_behind(lm: LanguageModel, probs: Tensor) -> Tensor | None:
    """What the unembedding was given when the model said `probs` `(vocab,)`; `(width,)` float64 on the head's device.

    A distribution is what the head says of some prompt only if log p is affine in a state, and if the final norm can
    put a state there: the residual of a least-squares fit is rounding, and ‖u‖ = R. None if it is not, or if the
    model's logits are no plain product of its last state.
    """
    if not bool((probs > 0).all()):
        return None
    try:
        solver = floor_solver(lm)
    except NoHead:
        return None
    log_p = probs.to(solver.device, torch.float64).log()
    tolerance = AGREEMENT.get(lm.dtype, COARSE_AGREEMENT)
    u = _preimage(solver.products, solver.bias, log_p, tolerance)
    if u is None or abs(float(u.norm()) / solver.radius - 1) > tolerance:
        return None
    unembedding = lm.model.get_output_embeddings()
    assert isinstance(unembedding, torch.nn.Linear)  # or there is no head
    weight = unembedding.weight.detach().to(solver.device)
    bias = torch.zeros_like(log_p) if unembedding.bias is None else unembedding.bias.detach().to(log_p)
    return _preimage(HeadProducts(weight, zero_mean=False), bias, log_p, tolerance)


def _preimage(products: HeadProducts, bias: Tensor, log_p: Tensor, tolerance: float) -> Tensor | None:
    """The shortest u with A u + b = log p up to a constant, `(hidden,)`; None if there is none."""
    logits = log_p - bias
    logits = logits - logits.mean()
    gram = torch.zeros(products.hidden_size, products.hidden_size, dtype=torch.float64, device=log_p.device)
    total = torch.zeros(products.hidden_size, dtype=torch.float64, device=log_p.device)
    for _, _, block in products.blocks():
        gram += block.T @ block
        total += block.sum(0)
    gram -= torch.outer(total, total) / products.vocab_size
    if products.zero_mean:
        gram = products.centre(products.centre(gram).T)
    values, vectors = torch.linalg.eigh(gram)
    inverse = torch.where(values > SMALLEST_EIGENVALUE * values[-1], 1 / values, 0.0)
    u = vectors @ (inverse * (vectors.T @ products.backward(logits[None])[0]))
    rebuilt = products.forward(u[None])[0]
    error = (rebuilt - rebuilt.mean() - logits).abs().max()
    return u if error <= tolerance * logits.abs().max() else None
