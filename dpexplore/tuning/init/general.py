"""What a model's random prompts teach about the tokens behind a state, once for every layout of slots."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpexplore.files import replacing
from dpexplore.models import LanguageModel
from dpexplore.models.default_model import cache_folder
from dpexplore.tuning.init.layout import Layout
from dpexplore.tuning.init.regression import Moments, Regression

Suffix = tuple[int, ...]

GENERAL_SAMPLES = 16
"""Random prompts per dimension of the state."""
RECOVERY_STREAM = 2**32 - 2
"""Sets the random numbers apart from those of other searches."""


@dataclass(eq=False)
class General:
    """What a model's random prompts of one layout have taught: the regression on every hard position."""

    slopes: Tensor
    """`(hard features width)` float32."""
    last: Regression
    """On the last of them."""
    tokens: Tensor
    """`(samples,)` the last hard token of each sample,"""
    states: Tensor
    """and its state, `(samples width)` float16."""


class Learning:
    """Samples random prompts of a layout until `general` is known."""

    def __init__(self, lm: LanguageModel, layout: Layout) -> None:
        self._lm, self._layout = lm, layout
        self._moments: list[Moments] = []
        self._tokens: list[Tensor] = []
        self._states: list[Tensor] = []
        self._rng = generator()
        self._wanted = GENERAL_SAMPLES * lm.hidden_size
        self.general: General | None = None

    @property
    def done(self) -> float:
        """The share that is done."""
        return min(1.0, self._moments[0].count / self._wanted) if self._moments else 0.0

    def samples(self, size: int) -> Tensor:
        """Prompts `(size pos)`."""
        return random_prompts(self._layout, size, self._rng)

    def take(self, ids: Tensor, states: Tensor) -> None:
        """Learn from the states of some samples."""
        places = self._layout.hard.nonzero()[:, 0].tolist()
        if not self._moments:
            sizes = self._lm.hidden_size, states.shape[1], workplace(self._lm)
            self._moments = [Moments.none(*sizes) for _ in places]
        self._tokens.append(ids[:, places[-1]])
        self._states.append(states.to(workplace(self._lm), torch.float16))
        for place, moments in zip(places, self._moments, strict=True):
            moments.add(features(self._lm, ids[:, place]), states)
        if self.done == 1:
            fits = [Regression.of(moments) for moments in self._moments]
            slopes = torch.stack([fit.slope for fit in fits])
            self.general = General(slopes, fits[-1], torch.cat(self._tokens), torch.cat(self._states))


_known: WeakKeyDictionary[LanguageModel, dict[str, General]] = WeakKeyDictionary()
_under_way: WeakKeyDictionary[LanguageModel, dict[str, Learning]] = WeakKeyDictionary()


def general_of(lm: LanguageModel, layout: Layout) -> General | Learning:
    """What is known of a layout's random prompts, from memory or the cache folder, or who is learning it."""
    key = _key(lm, layout)
    known, under_way = _known.setdefault(lm, {}), _under_way.setdefault(lm, {})
    if key not in known and key not in under_way:
        kept = _read(key, workplace(lm))
        if kept is None:
            under_way[key] = Learning(lm, layout)
        else:
            known[key] = kept
    if key in under_way and (general := under_way[key].general) is not None:
        del under_way[key]
        known[key] = general
        _keep(key, general)
    return known[key] if key in known else under_way[key]


def features(lm: LanguageModel, ids: Tensor) -> Tensor:
    """What the regressions know of tokens `(n,)`, `(n features)` float32: their embeddings."""
    return lm.embedding_table[ids.to(lm.device)].float()


def workplace(lm: LanguageModel) -> torch.device:
    """Where moments are summed up, in float64, which Apple's GPUs do not have."""
    return torch.device("cpu") if lm.device.type == "mps" else lm.device


def random_prompts(layout: Layout, size: int, rng: torch.Generator, suffix: Suffix = ()) -> Tensor:
    """Prompts `(size pos)` of a layout without soft positions: random allowed tokens, the last ones `suffix`."""
    ids = layout.ids.repeat(size, 1)
    places = layout.hard.nonzero()[:, 0]
    ids[:, places] = layout.allowed[torch.randint(len(layout.allowed), (size, len(places)), generator=rng)]
    if suffix:
        ids[:, places[-len(suffix) :]] = torch.tensor(suffix, dtype=torch.long)
    return ids


def generator(*seeds: int) -> torch.Generator:
    """Random numbers that share nothing with those of targets and initial prompts of the same seeds."""
    state = np.random.SeedSequence([*seeds, RECOVERY_STREAM]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def _key(lm: LanguageModel, layout: Layout) -> str:
    allowed = hashlib.sha256(layout.allowed.numpy().tobytes()).hexdigest()
    text = f"{lm.identity} {lm.dtype} {layout.ids.tolist()} {layout.hard.tolist()} {allowed} {GENERAL_SAMPLES}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _file(key: str) -> Path:
    return cache_folder() / "recovery" / f"{key}.safetensors"


def _read(key: str, device: torch.device) -> General | None:
    try:
        kept = {name: tensor.to(device) for name, tensor in load_file(_file(key)).items()}
        slopes, tokens, states = (kept.pop(name) for name in ("slopes", "tokens", "states"))
        return General(slopes, Regression(**kept), tokens.cpu(), states)
    except Exception:  # not there, or damaged in one of many ways: it is learnt again
        return None


def _keep(key: str, general: General) -> None:
    """A full disk loses nothing but time."""
    file = _file(key)
    tensors = {"slopes": general.slopes, "tokens": general.tokens, "states": general.states, **vars(general.last)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as beside:
            save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, beside)
    except OSError:
        return
