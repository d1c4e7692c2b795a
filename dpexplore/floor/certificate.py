"""A lower bound on KL(p‖q) that holds for every prompt, computed from any point, converged or not.

Every distribution the model can output lies in {softmax(Au + b) : ‖u‖ ≤ R} (`dpexplore.models.head`). For any
vector z and q = softmax(z), convexity of logsumexp gives, for all u in the ball,

    KL(p ‖ softmax(Au + b)) ≥ logsumexp(z) + q·(Au + b − z) − p·(Au + b) − H(p)
                            ≥ logsumexp(z) − q·z + (q − p)·b − R‖Aᵀ(q − p)‖ − H(p).

At z = Au + b this is the Frank-Wolfe bound f(u) − (g·u + R‖g‖). It needs no converged solver, and not even that z
was computed accurately: only q = softmax(z) and the product Aᵀ(q − p) have to be right.

What is subtracted for rounding. With ε = 2⁻⁵³ a float64 sum of n terms is off by at most nε times the sum of the
terms' sizes, whatever the order of summation. All sums here run over the vocabulary or over `hidden`, on terms that
are probabilities times numbers no larger than S = max|z| + max|b| + R·max‖a_v‖ + log(vocab) + 1; eight such sums
are chained at most, so 8·(vocab + hidden + 64)·ε·S bounds them all (2e-8 nats for a vocabulary of 50,000). The
stored A may differ from the exact product of unembedding and norm weight by a relative `rounding` per entry, which
moves ‖Aᵀ(q − p)‖ by at most rounding·Σ|q − p|·‖a_v‖ (about 1e-5 nats for a head stored in float32).

What is certified: the head in exact arithmetic, from the weights as they are loaded. A model that runs in float32
reproduces it to about 1e-5 nats; one that runs in bfloat16 rounds each logit by up to 2⁻⁸ of its size, so a KL
*measured* there may scatter around the exact value by some hundredths of a nat, on either side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dpexplore.floor.products import HeadProducts

EPSILON = 2.0**-53
CHAINED_SUMS = 8


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is known at points u in the ball, one row a target."""

    kl_nats: Tensor
    """KL(p ‖ softmax(Au + b)) at u, `(rows,)` float64."""
    lower_bound_nats: Tensor
    """No point of the ball has a smaller KL, `(rows,)` float64, never negative."""
    log_probs: Tensor
    """log softmax(Au + b), `(rows vocab)` float64."""


def cross_entropy(probs: Tensor, log_probs: Tensor) -> Tensor:
    """−Σ p·log q in nats, `(… vocab)` twice -> `(…)`; terms with p = 0 count 0."""
    return -torch.where(probs > 0, probs * log_probs, 0.0).sum(-1)


def certify(
    products: HeadProducts,
    bias: Tensor,
    radius: float,
    probs: Tensor,
    points: Tensor,
    *,
    row_norms: Tensor | None = None,
    rounding: float = 0.0,
) -> Certificate:
    """KL at `points` `(rows hidden)` and the bound they prove for targets `probs` `(rows vocab)`; all float64."""
    if row_norms is None:
        row_norms = products.row_norms()
    logits = products.forward(points) + bias
    logits = logits - logits.amax(-1, keepdim=True)
    log_probs = logits.log_softmax(-1)
    kl = cross_entropy(probs, log_probs) - torch.special.entr(probs).sum(-1)
    bound = bound_nats(products, bias, radius, probs, log_probs, row_norms=row_norms, rounding=rounding)
    return Certificate(kl.clamp_min(0), bound, log_probs)


def bound_nats(
    products: HeadProducts,
    bias: Tensor,
    radius: float,
    probs: Tensor,
    log_probs: Tensor,
    *,
    row_norms: Tensor,
    rounding: float = 0.0,
    product: Tensor | None = None,
) -> Tensor:
    """What any distributions `log_probs` `(rows vocab)` prove about targets `probs`, `(rows,)`, never negative.

    It does not matter where the distributions come from: an unfinished search proves a bound, too. product: Aᵀ(q − p)
    `(rows hidden)` where it is known, off by at most `rounding` times Σ|q − p|·‖a_v‖, A's own rounding included.
    """
    q = log_probs.exp()
    difference = q - probs
    slope = (products.backward(difference) if product is None else product).norm(dim=-1)
    model_entropy = cross_entropy(q, log_probs)
    bound = model_entropy + difference @ bias - radius * slope - torch.special.entr(probs).sum(-1)
    terms = products.vocab_size + products.hidden_size + 64
    size = log_probs.abs().amax(-1) + bias.abs().max() + radius * row_norms.max() + math.log(products.vocab_size) + 1
    arithmetic = CHAINED_SUMS * terms * EPSILON * size
    stored = radius * rounding * (difference.abs() @ row_norms)
    return (bound - arithmetic - stored).clamp_min(0)
