"""Where a search for the last token begins: tokens after which alone the model comes closest to the target.

The last token shapes the next one's distribution most. KL(p‖q) after a token t is logsumexp(z) − p·z − H(p), and with
logits z = W h + b its middle term is (Wᵀp)·h + p·b: the last states h of all tokens, computed once for a model, rank
the whole vocabulary for any target by one matrix-vector product.
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


@dataclass(frozen=True, eq=False)
class TokenStates:
    """What a model thinks after each ordinary token, standing behind its BOS or a line break."""

    ids: Tensor
    """`(tokens,)`."""
    states: Tensor
    """h `(tokens hidden)` float16, what the unembedding is given."""
    log_norms: Tensor
    """`(tokens,)` float32, logsumexp of the logits."""

    def losses(self, unembedding: Tensor, probs: Tensor) -> Tensor:
        """KL(p‖q) after each token, `(tokens,)` nats, up to a number that is the same for all; probs `(vocab,)`."""
        direction = (probs.to(unembedding.device, unembedding.dtype) @ unembedding).float().cpu()
        products = [states.float() @ direction for states in self.states.split(RANKED_AT_ONCE)]
        return self.log_norms - torch.cat(products)


@dataclass(eq=False)
class _Measuring:
    """A table of which the first `done` tokens are known."""

    table: TokenStates
    done: int = 0


_known: WeakKeyDictionary[LanguageModel, TokenStates | None] = WeakKeyDictionary()
_under_way: WeakKeyDictionary[LanguageModel, _Measuring] = WeakKeyDictionary()
_one_at_a_time = Lock()


def closest_tokens(lm: LanguageModel, probs: Tensor) -> Tensor | None:
    """Ordinary ids `(tokens,)`, those after which alone the model is closest to `probs` first.

    The first call for a model measures what `measure_more` has not measured yet. None if the model's logits are no
    plain product of its last state.
    """
    while measure_more(lm) < 1:
        pass
    table = _known[lm]
    unembedding = lm.model.get_output_embeddings()
    if table is None or unembedding is None:
        return None
    return table.ids[table.losses(_weight(unembedding), probs).argsort()]


def measure_more(lm: LanguageModel, most: int = BATCH) -> float:
    """Run at most so many more tokens of the vocabulary through a model; the share that is done, 1 once all are.

    Each token is a prompt of two: it and what stands before it. The whole is kept in the cache folder, and read from
    there where it has been measured before.
    """
    with _one_at_a_time:
        if lm in _known:
            return 1.0
        unembedding = lm.model.get_output_embeddings()
        if not isinstance(unembedding, nn.Linear):
            _known[lm] = None
            return 1.0
        if lm not in _under_way:
            kept = _read(lm)
            if kept is not None:
                _known[lm] = kept
                return 1.0
            _under_way[lm] = _Measuring(_empty(lm, unembedding))
        part = _under_way[lm]
        tokens = len(part.table.ids)
        usable = _measure(lm, unembedding, part, most)
        if usable and part.done < tokens:
            return part.done / tokens
        _known[lm] = part.table if usable else None
        del _under_way[lm]
        if usable:
            _keep(lm, part.table)
        return 1.0


def table_bytes(lm: LanguageModel) -> int:
    """Bytes of the processor's memory that a model's table still takes: none where it is there already."""
    unembedding = lm.model.get_output_embeddings()
    if lm in _known or lm in _under_way or not isinstance(unembedding, nn.Linear):
        return 0
    numbers = unembedding.in_features * torch.float16.itemsize + torch.int64.itemsize + torch.float32.itemsize
    return len(lm.ordinary_ids) * numbers


def _weight(unembedding: nn.Module) -> Tensor:
    weight = unembedding.weight
    assert isinstance(weight, Tensor)
    return weight


def _empty(lm: LanguageModel, unembedding: nn.Linear) -> TokenStates:
    ids = lm.ordinary_ids.cpu()
    states = torch.zeros(len(ids), unembedding.in_features, dtype=torch.float16)
    return TokenStates(ids, states, torch.zeros(len(ids)))


@torch.no_grad()
def _measure(lm: LanguageModel, unembedding: nn.Linear, part: _Measuring, most: int) -> bool:
    """Measure at most so many more tokens; False if the model turns out to be one that has no table."""
    owner, seen = get_ident(), []

    def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if get_ident() == owner:  # others may be tuning on the model at the same time
            seen.append(inputs[0][:, -1])

    start, stop = part.done, min(part.done + most, len(part.table.ids))
    ids = part.table.ids[start:stop]
    handle = unembedding.register_forward_pre_hook(note)
    try:
        log_q = lm.log_probs_of_ids(torch.stack([torch.full_like(ids, _before(lm)), ids], 1))
    finally:
        handle.remove()
    states = seen.pop()
    logits = unembedding.weight[0] @ states.T + (0 if unembedding.bias is None else unembedding.bias[0])
    norms = logits.float() - log_q[:, 0]  # of one token suffices: log q = z − logsumexp(z)
    if start == 0 and not _agrees(lm, unembedding, TokenStates(ids, states.cpu(), norms.cpu()), log_q):
        return False
    part.table.states[start:stop] = states
    part.table.log_norms[start:stop] = norms
    part.done = stop
    return True


def _before(lm: LanguageModel) -> int:
    """What stands before each token: alone at the beginning of a text, models treat any token as a mark."""
    try:
        return (lm.bos_ids or lm.encode("\n", bos=False))[-1]
    except InputError:  # a tokenizer that drops line breaks
        return int(lm.ordinary_ids[0])


def _agrees(lm: LanguageModel, unembedding: nn.Linear, table: TokenStates, log_q: Tensor) -> bool:
    """Whether a table's losses are the model's own but for a shift, tried on one target; log_q `(tokens vocab)`."""
    probs = torch.randn(log_q.shape[1], generator=torch.Generator().manual_seed(0)).mul(3).softmax(0)
    shift = table.losses(unembedding.weight, probs) + (log_q.cpu() @ probs)
    return bool((shift - shift.mean()).abs().max() < TOLERANCE.get(lm.dtype, COARSE_TOLERANCE))


def _file(lm: LanguageModel) -> Path:
    key = hashlib.sha256(f"{lm.identity} {lm.dtype}".encode()).hexdigest()[:32]
    return cache_folder() / "lookup" / f"{key}.safetensors"


def _read(lm: LanguageModel) -> TokenStates | None:
    try:
        return TokenStates(**load_file(_file(lm)))
    except Exception:  # not there, or damaged in one of many ways: it is measured again
        return None


def _keep(lm: LanguageModel, table: TokenStates) -> None:
    """A full disk loses nothing but time."""
    file = _file(lm)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as beside:
            save_file(vars(table), beside)
    except OSError:
        return
