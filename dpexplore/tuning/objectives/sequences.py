"""The sequence objective: Σ wᵢ · NLL of outcome i with its end (Forcing Diffuse Distributions, Eq. 1).

All outcomes stand behind the prompt in one sequence, as a tree: what they begin with is computed once, an attention
mask lets every node see the prompt and its own ancestors alone, and positions restart behind the prompt on each branch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import StringTarget, Target
from dpexplore.targets.outcome_tree import OutcomeTree
from dpexplore.tuning.objectives.next_token import (
    Divergence,
    NextTokenObjective,
    Objective,
    Scores,
    divergence,
    log_probs_of,
)
from dpexplore.tuning.objectives.prefix import Prefix
from dpexplore.wanted import NotWanted

AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Nats by which the packed pass may differ from the plain one where a model is tried; half precision is coarser."""
COARSE_AGREEMENT = 0.1

_packing: WeakKeyDictionary[LanguageModel, bool] = WeakKeyDictionary()


def objective_for(lm: LanguageModel, target: Target, kind: Divergence = "kl") -> Objective:
    """What is minimised for a target: over next tokens, or over whole strings. InputError as their constructors."""
    if isinstance(target, StringTarget):
        return SequenceObjective(lm, target, kind)
    return NextTokenObjective(lm, target, kind)


class SequenceObjective:
    """A distance between weights on outcomes and what a prompt makes of them, KL by default.

    KL(w‖q) = Σ wᵢ log wᵢ − Σ wᵢ log q(outcome i), the loss of the paper less its floor H(w). q is a distribution over
    the outcomes and all else, `(outcomes + 1,)`; behind several prefixes it is their mean, and so is the loss.
    """

    token_probs: Tensor | None = None

    def __init__(self, lm: LanguageModel, target: StringTarget, kind: Divergence = "kl") -> None:
        """InputError for reverse KL, which is infinite as soon as anything but an outcome can be said."""
        if kind == "reverse_kl":
            raise InputError(
                "KL(q‖p) is infinite for targets over strings, because every prompt leaves some probability to other "
                "strings; the objectives kl, js and tv accept them."
            )
        self.kind: Divergence = kind
        self.tree = target.tree
        self.probs = target.probs.to(lm.device, torch.float32)
        self.log_p = log_probs_of(target.probs).to(lm.device, torch.float32)
        self.entropy_nats = target.entropy_nats
        self.group: Hashable = target.recipe, kind
        self.behind = len(self.tree.inputs)
        self.answers = len(target.probs)  # the outcomes and all else

    @staticmethod
    def score(
        lm: LanguageModel, embeds: Tensor, objectives: Sequence[SequenceObjective], prefix: Prefix | None = None
    ) -> Scores:
        """embeds `(rows pos hidden)` float32; all objectives are of one group, so that one tree serves all rows.

        A prefix is computed with every prompt: beside the tree it is short.
        """
        first = objectives[0]
        log_q = outcome_log_probs(lm, embeds.to(lm.dtype), first.tree)
        kl = -(first.probs[:-1] * log_q).sum(-1).mean(-1) - first.entropy_nats
        whole = with_all_else(log_q)
        loss = kl if first.kind == "kl" else divergence(first.kind, first.probs, first.log_p, whole)
        return Scores(loss, kl.detach(), whole.detach())


def with_all_else(log_q: Tensor) -> Tensor:
    """`(… prefixes outcomes)` -> `(… outcomes + 1)`: the mean over the prefixes, and the log of what is left to 1."""
    mean = log_q.logsumexp(-2) - torch.log(torch.tensor(float(log_q.shape[-2])))
    rest = (1 - mean.exp().sum(-1, keepdim=True)).clamp_min(1e-12).log()
    return torch.cat([mean, rest], -1)


def outcome_log_probs(lm: LanguageModel, embeds: Tensor, tree: OutcomeTree) -> Tensor:
    """log q of every outcome after a prompt, in nats.

    embeds `(rows pos hidden)` -> `(rows prefixes outcomes)` float32; differentiable in `embeds` and in whatever
    parameter of the model asks for a gradient.
    """
    if can_pack(lm) and _in_one_window(lm, embeds.shape[1] + tree.height):
        return packed_log_probs(lm, embeds, tree)
    return plain_log_probs(lm, embeds, tree)


def packed_log_probs(lm: LanguageModel, embeds: Tensor, tree: OutcomeTree) -> Tensor:
    """`outcome_log_probs` by one pass over the prompt and the tree behind it."""
    rows, prompt, _ = embeds.shape
    device, nodes = embeds.device, len(tree.inputs)
    behind = lm.embed(tree.inputs[None]).to(embeds.dtype).expand(rows, -1, -1)
    sees = torch.ones(prompt + nodes, prompt + nodes, dtype=torch.bool, device=device).tril()
    sees[prompt:, prompt:] = tree.sight.to(device)
    mask = torch.zeros(sees.shape, dtype=lm.dtype, device=device).masked_fill_(~sees, torch.finfo(lm.dtype).min)
    positions = torch.cat([torch.arange(prompt), prompt + tree.depths]).to(device)
    output = lm.model(
        inputs_embeds=torch.cat([embeds, behind], 1),
        attention_mask=mask[None, None].expand(rows, 1, -1, -1),
        position_ids=positions[None].expand(rows, -1),
        use_cache=False,
        **lm.keep_logits(nodes + 1),
    )
    logits = output.logits[:, -(nodes + 1) :].float()
    sources = tree.sources.to(device)
    edges = logits[:, sources, tree.tokens.to(device)] - logits.logsumexp(-1)[:, sources]
    return functional.pad(edges, (0, 1))[:, tree.paths.to(device)].sum(-1)


def plain_log_probs(lm: LanguageModel, embeds: Tensor, tree: OutcomeTree, batch: int = 32) -> Tensor:
    """`outcome_log_probs` the plain way: every outcome in a sequence of its own, the prompt repeated for each.

    For models that cannot be packed (ALiBi counts positions by place, state-space models know no mask), and to check.
    `batch` sequences a row go into one pass.
    """
    prefixes, outcomes, _ = tree.paths.shape
    sequences = [tree.sequence(prefix, outcome) for prefix in range(prefixes) for outcome in range(outcomes)]
    found = [
        _plain_batch(lm, embeds, [before for before, _ in part], [ids for _, ids in part])
        for part in (sequences[start : start + batch] for start in range(0, len(sequences), batch))
    ]
    return torch.cat(found, 1).unflatten(1, (prefixes, outcomes))


def _plain_batch(lm: LanguageModel, embeds: Tensor, before: list[list[int]], predicted: list[list[int]]) -> Tensor:
    """Log-probabilities of `predicted`, each behind the prompt and what stands before it, `(rows sequences)`."""
    rows = len(embeds)
    whole = [first + second for first, second in zip(before, predicted, strict=True)]
    longest = max(map(len, whole))
    ids = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in whole], device=embeds.device)
    counts = torch.tensor(
        [[len(first) <= i < len(every) for i in range(longest)] for first, every in zip(before, whole, strict=True)],
        device=embeds.device,
    )
    words = lm.embed(ids).to(embeds.dtype)
    pairs = torch.cat(
        [embeds[:, None].expand(-1, len(whole), -1, -1), words[None].expand(rows, -1, -1, -1)], 2
    ).flatten(0, 1)
    output = lm.model(inputs_embeds=pairs, use_cache=False, **lm.keep_logits(longest + 1))
    logits = output.logits[:, -(longest + 1) : -1].float()
    picked = logits.gather(-1, ids.repeat(rows, 1)[..., None])[..., 0] - logits.logsumexp(-1)
    return (picked.unflatten(0, (rows, len(whole))) * counts).sum(-1)


def can_pack(lm: LanguageModel) -> bool:
    """Whether a model gives packed outcomes the probabilities that it gives each alone; it is asked once, by trying."""
    known = _packing.get(lm)
    if known is None:
        known = _packing[lm] = lm.max_positions is not None and _packing_agrees(lm)
    return known


def _packing_agrees(lm: LanguageModel) -> bool:
    ids = lm.ordinary_ids[torch.linspace(0, len(lm.ordinary_ids) - 1, 12).long()].tolist()
    tree = OutcomeTree.of([[ids[0], ids[1], ids[2]], [ids[0], ids[3], ids[4]], [ids[5], ids[6], ids[7]]], [ids[8:9]])
    with torch.no_grad():
        prompt = lm.embed(torch.tensor([ids[9:]]))
        try:
            packed = packed_log_probs(lm, prompt, tree)
        except NotWanted:
            raise
        except Exception:  # as many kinds as there are models that take no such mask
            return False
        apart = (packed - plain_log_probs(lm, prompt, tree)).abs().max()
    return bool(apart < AGREEMENT.get(lm.dtype, COARSE_AGREEMENT))


def _in_one_window(lm: LanguageModel, length: int) -> bool:
    """Whether a model with sliding attention sees all of so long a sequence at once."""
    window = getattr(lm.model.config.get_text_config(), "sliding_window", None)
    return window is None or length <= window
