"""Where a search for the last token begins: tokens after which alone the model comes closest to the target.

The last token shapes the next one's distribution most. KL(p‖q) after a token t is logsumexp(z) − p·z − H(p), and with
logits z = W h + b its middle term is (Wᵀp)·h + p·b: the last states h of all tokens, computed once for a model, rank
the whole vocabulary for any target by one matrix-vector product.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, get_ident
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.models.default_model import cache_folder

BATCH = 256
TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-2}
"""Nats by which a rank's KL may differ from the model's own where a table is tried; states are kept in float16."""
COARSE_TOLERANCE = 0.3

_known: WeakKeyDictionary[LanguageModel, TokenStates | None] = WeakKeyDictionary()
_one_at_a_time = Lock()


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
        direction = probs.to(unembedding.device, unembedding.dtype) @ unembedding
        return self.log_norms - self.states.float() @ direction.float().cpu()


def closest_tokens(lm: LanguageModel, probs: Tensor) -> Tensor | None:
    """Ordinary ids `(tokens,)`, those after which alone the model is closest to `probs` first.

    The first call for a model runs its vocabulary through it, two tokens a prompt, and keeps the result in the cache
    folder. None if the model's logits are no plain product of its last state.
    """
    with _one_at_a_time:
        if lm not in _known:
            _known[lm] = _read(lm) or _measure(lm)
        table = _known[lm]
    unembedding = lm.model.get_output_embeddings()
    if table is None or unembedding is None:
        return None
    return table.ids[table.losses(_weight(unembedding), probs).argsort()]


def _weight(unembedding: nn.Module) -> Tensor:
    weight = unembedding.weight
    assert isinstance(weight, Tensor)
    return weight


@torch.no_grad()
def _measure(lm: LanguageModel) -> TokenStates | None:
    unembedding = lm.model.get_output_embeddings()
    if not isinstance(unembedding, nn.Linear):
        return None
    owner, seen = get_ident(), []

    def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if get_ident() == owner:  # others may be tuning on the model at the same time
            seen.append(inputs[0][:, -1])

    ids = lm.ordinary_ids.cpu()
    first = _before(lm)
    states, norms = [], []
    handle = unembedding.register_forward_pre_hook(note)
    try:
        for part in ids.split(BATCH):
            log_q = lm.log_probs_of_ids(torch.stack([torch.full_like(part, first), part], 1))
            states.append(seen.pop())
            logits = unembedding.weight[0] @ states[-1].T + (0 if unembedding.bias is None else unembedding.bias[0])
            norms.append(logits.float() - log_q[:, 0])  # of one token suffices: log q = z − logsumexp(z)
            if len(norms) == 1 and not _agrees(
                lm, unembedding, TokenStates(part, states[0].cpu(), norms[0].cpu()), log_q
            ):
                return None
    finally:
        handle.remove()
    table = TokenStates(ids, torch.cat(states).half().cpu(), torch.cat(norms).cpu())
    _keep(lm, table)
    return table


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
    """Written whole or not at all; a full disk loses nothing but time."""
    file = _file(lm)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            save_file(vars(table), Path(folder) / file.name)
            os.replace(Path(folder) / file.name, file)
    except OSError:
        return
