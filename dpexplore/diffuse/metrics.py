"""How near a model is to weights on strings: exactly, over the outcomes, and by samples of what it says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from scipy.special import gammaln
from torch import Tensor

from dpexplore.diffuse.biographies import BiographyCounts, biography_counts
from dpexplore.models import LanguageModel
from dpexplore.targets import StringTarget
from dpexplore.tuning.objectives.next_token import entropy_of
from dpexplore.tuning.objectives.sequences import outcome_log_probs, with_all_else

TEXT_WINDOW = 512
"""Tokens of a held-out text that are read at a time."""


@dataclass(frozen=True, eq=False)
class OutcomeFit:
    """A request's answers against its target, from the probabilities of the outcomes themselves."""

    cross_entropy_nats: float
    """Σ wᵢ · NLL of outcome i with its end."""
    floor_nats: float
    """H(w): no model's cross-entropy is lower."""
    valid_mass: float
    """Probability of answering with a valid outcome, one of weight 0 included; 0 to 1."""
    entropy_nats: float
    """Entropy of the answer over the outcomes and all else as one."""
    probabilities: Tensor
    """`(outcomes,)` float64."""

    @property
    def kl_nats(self) -> float:
        """Sequence-level KL(w‖q) over the outcomes."""
        return self.cross_entropy_nats - self.floor_nats


def outcome_fit(lm: LanguageModel, target: StringTarget, prompt: Tensor | None = None) -> OutcomeFit:
    """How a model answers a target's request, or a prompt `(pos hidden)` in its place."""
    with torch.no_grad():
        embeds = lm.embed(torch.tensor([target.request_ids])) if prompt is None else prompt[None].to(lm.device)
        found = outcome_log_probs(lm, embeds.to(lm.dtype), target.tree)[0].double().cpu()
    # 0 · −inf of an outcome that the target excludes and the model never says is 0.
    asked = target.weights > 0
    loss = -(target.weights[asked] * found[:, asked]).sum(-1).mean()
    q = with_all_else(found)
    return OutcomeFit(
        cross_entropy_nats=float(loss),
        floor_nats=target.entropy_nats,
        valid_mass=float(q[:-1].exp().sum()),
        entropy_nats=float(entropy_of(q)),
        probabilities=q[:-1].exp(),
    )


@dataclass(frozen=True)
class SampleFacts:
    """What samples of a model's answers have in them."""

    count: int
    entropy_nats: float
    """Of the answers' empirical distribution, as it comes; at most log(count)."""
    coverage: dict[int, float]
    """N -> expected number of distinct valid outcomes among N of the samples."""
    invalid_share: float
    """Share of answers that are no valid outcome, 0 to 1."""
    unseen: int
    """Distinct valid outcomes among the answers that were never trained on (those of weight 0)."""
    biographies: BiographyCounts | None = None
    """Different people among the answers; None for targets that are not over biography sketches."""


def sample_facts(target: StringTarget, samples: Sequence[str], sizes: Iterable[int] = (10, 100)) -> SampleFacts:
    """Entropy, coverage and validity of answers."""
    counts = Counter(samples)
    weights = dict(zip(target.outcomes, target.weights.tolist(), strict=True))
    valid = {text: count for text, count in counts.items() if text in weights}
    total = len(samples)
    shares = torch.tensor(list(counts.values()), dtype=torch.float64) / max(total, 1)
    return SampleFacts(
        count=total,
        entropy_nats=float(torch.special.entr(shares).sum()),
        coverage={n: coverage(valid.values(), n, total) for n in sizes if n <= total},
        invalid_share=1 - sum(valid.values()) / max(total, 1),
        unseen=sum(weights[text] == 0 for text in valid),
        biographies=biography_counts(target, samples),
    )


def coverage(counts: Iterable[int], draws: int, total: int | None = None) -> float:
    """Expected number of distinct outcomes in `draws` of the samples, by rarefaction.

    E = Σₖ [1 − C(n − nₖ, N) / C(n, N)] for n samples of which nₖ are outcome k, and N draws without replacement
    (Hurlbert, 1971): no chance of the order of sampling is left in it. `total` is n where some samples do not count.
    """
    counts = list(counts)
    total = sum(counts) if total is None else total
    if not 0 <= draws <= total:
        raise ValueError(f"{draws} draws of {total} samples")

    def missed(count: int) -> float:
        rest = total - count
        return 0.0 if rest < draws else math.exp(_log_choose(rest, draws) - _log_choose(total, draws))

    return sum(1 - missed(count) for count in counts)


def perplexity(lm: LanguageModel, text: str) -> float:
    """exp of the mean NLL of a text's tokens, each given up to 512 tokens before it (windows side by side)."""
    ids = lm.text_ids(text)
    window = min(TEXT_WINDOW, lm.max_positions or TEXT_WINDOW) - len(lm.bos_ids)
    total = count = 0.0
    for start in range(0, len(ids), window):
        part = torch.tensor([[*lm.bos_ids, *ids[start : start + window]]], device=lm.device)  # type: ignore[index]
        if part.shape[1] < 2:
            continue
        with torch.no_grad():
            logits = lm.model(inputs_embeds=lm.embed(part), use_cache=False).logits[0, :-1].float()
        total -= float(logits.log_softmax(-1).gather(-1, part[0, 1:, None]).sum())
        count += part.shape[1] - 1
    return math.exp(total / count)


def _log_choose(n: int, k: int) -> float:
    return float(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
