"""The model's last state after every token alone: what ranks the whole vocabulary for any target at once.

The last token shapes the next one's distribution most. KL(p‖q) after a token t is logsumexp(z) − p·z − H(p), and with
logits z = W h + b its middle term is (Wᵀp)·h + p·b: the last states h of all tokens, computed once for a model, rank
the whole vocabulary for any target by one matrix-vector product. A search for the last token begins with the first of
that ranking; `dpexplore.tuning.single_token` finds the best prompt of one token by it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, get_ident
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpexplore.errors import InputError
from dpexplore.files import replacing
from dpexplore.models import LanguageModel
from dpexplore.models.default_model import cache_folder

BATCH = 128
"""Tokens measured at once: less than half a second on two cores, so that others move on and Stop is heard."""
TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-2}
"""Nats by which a rank's KL may differ from the model's own where a table is tried; states are kept in float16."""
COARSE_TOLERANCE = 0.3

RANKED_AT_ONCE = 8192
"""Tokens whose states are float32 at the same time."""
HALF_ROUNDING = 2.0**-11
HALF_SMALLEST = 2.0**-25
"""Half the distance of float16 numbers, relative and, below 6e-5, absolute."""

Before = tuple[int, ...]
"""The ids in front of the token."""


@dataclass(frozen=True, eq=False)
class TokenStates:
    """What a model thinks after each token of its vocabulary, standing behind the same few ids."""

    states: Tensor
    """h `(tokens hidden)` float16, what the unembedding is given."""
    log_norms: Tensor
    """`(tokens,)` float32, logsumexp of the logits."""

    def losses(self, unembedding: Tensor, probs: Tensor) -> Tensor:
        """KL(p‖q) after each token, `(tokens,)` nats, up to a number that is the same for all; probs `(vocab,)`."""
        direction = (probs.to(unembedding.device, unembedding.dtype) @ unembedding).float().cpu()
        products = [states.float() @ direction for states in self.states.split(RANKED_AT_ONCE)]
        return self.log_norms - torch.cat(products)

    def half_errors(self, unembedding: Tensor, probs: Tensor) -> Tensor:
        """Most by which the states' float16 can have moved `losses`, `(tokens,)` nats."""
        direction = (probs.to(unembedding.device, unembedding.dtype) @ unembedding).float().cpu().abs()
        products = [states.float().abs() @ direction for states in self.states.split(RANKED_AT_ONCE)]
        return HALF_ROUNDING * torch.cat(products) + HALF_SMALLEST * direction.sum()


@dataclass(eq=False)
class _Measuring:
    """A table of which the first `done` tokens are known."""

    table: TokenStates
    done: int = 0


_known: WeakKeyDictionary[LanguageModel, dict[Before, TokenStates | None]] = WeakKeyDictionary()
_under_way: WeakKeyDictionary[LanguageModel, dict[Before, _Measuring]] = WeakKeyDictionary()
_one_at_a_time = Lock()


def closest_tokens(lm: LanguageModel, probs: Tensor) -> Tensor | None:
    """Ordinary ids `(tokens,)`, those after which alone the model is closest to `probs` first.

    The first call for a model measures what `measure_more` has not measured yet. None if the model's logits are no
    plain product of its last state.
    """
    before = last_token_context(lm)
    while measure_more(lm, before) < 1:
        pass
    table = token_states(lm, before)
    if table is None:
        return None
    ids = lm.ordinary_ids.cpu()
    return ids[table.losses(unembedding_of(lm), probs)[ids].argsort()]


def last_token_context(lm: LanguageModel) -> Before:
    """What stands before each token: alone at the beginning of a text, models treat any token as a mark."""
    try:
        return tuple(lm.bos_ids or lm.encode("\n", bos=False)[-1:])
    except InputError:  # a tokenizer that drops line breaks
        return (int(lm.ordinary_ids[0]),)


def token_states(lm: LanguageModel, before: Before) -> TokenStates | None:
    """The whole table, once `measure_more` has answered 1; None if the model has none."""
    return _known[lm][before]


def unembedding_of(lm: LanguageModel) -> Tensor:
    """W `(vocab hidden)` of a model that has a table."""
    unembedding = lm.model.get_output_embeddings()
    assert isinstance(unembedding, nn.Linear)
    return unembedding.weight


def is_measured(lm: LanguageModel, before: Before) -> bool:
    """Whether a model's table is there, in memory or in the cache folder, so that nothing has to be measured."""
    with _one_at_a_time:
        known = _known.setdefault(lm, {})
        if before not in known and before not in _under_way.get(lm, {}):
            kept = _read(lm, before)
            if kept is not None:
                known[before] = kept
        return before in known


def measure_more(lm: LanguageModel, before: Before, most: int = BATCH) -> float:
    """Run up to `most` more tokens of the vocabulary through a model; the share that is done, 1 once all are.

    Each token is a prompt: it and the ids before it. The whole is kept in the cache folder, and read from there where
    it has been measured before.
    """
    if is_measured(lm, before):
        return 1.0
    with _one_at_a_time:
        known = _known[lm]
        if before in known:
            return 1.0
        unembedding = lm.model.get_output_embeddings()
        if not isinstance(unembedding, nn.Linear):
            known[before] = None
            return 1.0
        parts = _under_way.setdefault(lm, {})
        part = parts.setdefault(before, _Measuring(_empty(lm, unembedding)))
        usable = _measure(lm, unembedding, part, before, most)
        if usable and part.done < lm.vocab_size:
            return part.done / lm.vocab_size
        known[before] = part.table if usable else None
        del parts[before]
        if usable:
            _keep(lm, before, part.table)
        return 1.0


def table_bytes(lm: LanguageModel) -> int:
    """Bytes of the processor's memory that a lookup's table still takes: none where it is there already."""
    unembedding = lm.model.get_output_embeddings()
    before = last_token_context(lm)
    there = before in _known.get(lm, {}) or before in _under_way.get(lm, {})
    if there or not isinstance(unembedding, nn.Linear):
        return 0
    return lm.vocab_size * (unembedding.in_features * torch.float16.itemsize + torch.float32.itemsize)


def _empty(lm: LanguageModel, unembedding: nn.Linear) -> TokenStates:
    states = torch.zeros(lm.vocab_size, unembedding.in_features, dtype=torch.float16)
    return TokenStates(states, torch.zeros(lm.vocab_size))


@torch.no_grad()
def _measure(lm: LanguageModel, unembedding: nn.Linear, part: _Measuring, before: Before, most: int) -> bool:
    """Measure up to `most` more tokens; False if the model turns out to be one that has no table."""
    owner, seen = get_ident(), []

    def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if get_ident() == owner:  # others may be tuning on the model at the same time
            seen.append(inputs[0][:, -1])

    start, stop = part.done, min(part.done + most, lm.vocab_size)
    handle = unembedding.register_forward_pre_hook(note)
    try:
        log_q = lm.log_probs_of_ids(prompts(before, torch.arange(start, stop)))
    finally:
        handle.remove()
    states = seen.pop()
    logits = unembedding.weight[0] @ states.T + (0 if unembedding.bias is None else unembedding.bias[0])
    norms = logits.float() - log_q[:, 0]  # of one token suffices: log q = z − logsumexp(z)
    if start == 0 and not _agrees(lm, unembedding, TokenStates(states.cpu(), norms.cpu()), log_q):
        return False
    part.table.states[start:stop] = states
    part.table.log_norms[start:stop] = norms
    part.done = stop
    return True


def prompts(before: Before, ids: Tensor) -> Tensor:
    """ids `(rows,)` -> the prompts that end in them, `(rows pos)`."""
    return torch.cat([torch.tensor(before, dtype=ids.dtype).expand(len(ids), -1), ids[:, None]], 1)


def tolerance(lm: LanguageModel) -> float:
    """Nats by which a table's losses may differ from the model's own, beside a shift that is the same for all."""
    return TOLERANCE.get(lm.dtype, COARSE_TOLERANCE)


def _agrees(lm: LanguageModel, unembedding: nn.Linear, table: TokenStates, log_q: Tensor) -> bool:
    """Whether a table's losses are the model's own but for a shift, tried on one target; log_q `(tokens vocab)`."""
    probs = torch.randn(log_q.shape[1], generator=torch.Generator().manual_seed(0)).mul(3).softmax(0)
    shift = table.losses(unembedding.weight, probs) + (log_q.cpu() @ probs)
    return bool((shift - shift.mean()).abs().max() < tolerance(lm))


def _file(lm: LanguageModel, before: Before) -> Path:
    key = hashlib.sha256(f"{lm.identity} {lm.dtype} {before}".encode()).hexdigest()[:32]
    return cache_folder() / "lookup" / f"{key}.safetensors"


def _read(lm: LanguageModel, before: Before) -> TokenStates | None:
    try:
        return TokenStates(**load_file(_file(lm, before)))
    except Exception:  # not there, or damaged in one of many ways: it is measured again
        return None


def _keep(lm: LanguageModel, before: Before, table: TokenStates) -> None:
    """A full disk loses nothing but time."""
    file = _file(lm, before)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as beside:
            save_file(vars(table), beside)
    except OSError:
        return
