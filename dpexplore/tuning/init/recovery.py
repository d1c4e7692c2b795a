"""The prompt behind a state, found from its last token to its first.

What a model says of a random prompt is like a hash: any other prompt says something else, and no gradient points at
the right tokens. But the last state is regressed well on the last token while all others are random
(`dpexplore.tuning.init.regression`), and once the last token is known, on the one before it, among prompts that end
alike. So a beam of suffixes grows leftwards, each judged by the density of the state that is looked for, and the
prompts of the best are compared with it exactly. Where that fails, the beam is made wider.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Generator
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
from dpexplore.tuning.init.policy import survives
from dpexplore.tuning.init.regression import Moments, Regression

Suffix = tuple[int, ...]
States = Generator[Tensor, Tensor, None]
"""Yields prompts `(rows pos)`, is sent their last states `(rows width)`."""

MOST_POSITIONS = 10
"""Hard tokens up to which recovering is tried; the beam's cost grows with their square."""
GENERAL_SAMPLES = 16
"""Random prompts per dimension of the state that a model is first learnt from, once for a layout;"""
SUFFIX_SAMPLES = 3
"""and for every suffix that is looked into."""
NEAREST_SHARE = 9
"""One in as many of the random prompts is near the state that is looked for."""
FIRST_BEAM = 2
"""Suffixes of each length at first; twice as many in every round that follows."""
CHECKED = 256
"""Whole prompts compared with the state behind each suffix in the first round; twice as many in every one after."""
RECOVERY_STREAM = 2**32 - 2
"""Sets its random numbers apart from those of other searches."""
SAME_STATE = 1e-3
"""States this close, relative to their length, are the same but for rounding; other prompts stay above 0.01."""


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
        self._rng = _generator()
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


@dataclass(eq=False)
class _Ending:
    """Prompts that end in one suffix, and the token in front of it."""

    tokens: Tensor
    """Allowed tokens, those of highest density first,"""
    densities: Tensor
    """and their densities."""
    checked: int = 0
    """How many of `tokens` were compared exactly, where the token is the prompt's first."""


class Recovery:
    """The search; `work` asks for states, `best` are the prompts found so far."""

    def __init__(
        self,
        lm: LanguageModel,
        layout: Layout,
        state: Tensor,
        general: General,
        *,
        seed: int,
        most: int,
        keep: int,
        round_trip: bool = False,
    ) -> None:
        """state `(width,)`. At most `most` prompts are asked for; the `keep` closest are kept."""
        self._lm, self._layout, self._general = lm, layout, general
        self._state = state.to(workplace(lm), torch.float32)
        self._features = features(lm, layout.allowed).to(workplace(lm))
        self._places = layout.hard.nonzero()[:, 0]
        self._rng = _generator(seed)
        self._keep, self._round_trip = keep, round_trip
        self._endings: dict[Suffix, _Ending] = {}
        self._closest: list[tuple[float, tuple[int, ...]]] = []  # a heap; the first is the farthest
        self._kept: set[tuple[int, ...]] = set()
        self.left = most
        self.asked = 0
        """Prompts asked for so far."""
        self.size = 64
        """Prompts asked for at once; the caller may change it between two parts."""
        self.suffix: Suffix = ()
        """The most promising ending at present."""

    @property
    def best(self) -> list[tuple[int, ...]]:
        """The prompts closest to the state, closest first."""
        return [ids for _, ids in sorted(self._closest, reverse=True)]

    @property
    def distance(self) -> float:
        """Of the closest prompt's state, relative to the state's length."""
        return min((-distance for distance, _ in self._closest), default=torch.inf)

    @property
    def found(self) -> bool:
        """Whether a prompt has the state that was looked for."""
        return self.distance < SAME_STATE

    def work(self) -> States:
        """Search until a prompt is found, every prompt was compared, or as many were asked for as may be."""
        beam, checked, progress = FIRST_BEAM, CHECKED, True
        while progress and not self.found and self.left:
            before = self.asked
            suffixes: list[Suffix] = [()]
            for _ in range(len(self._places) - 1):
                suffixes = yield from self._grow(suffixes, beam)
            for suffix in suffixes:
                self.suffix = suffix
                yield from self._check(suffix, checked)
                if self.found:
                    return
            progress, beam, checked = self.asked > before, 2 * beam, 2 * checked

    def _grow(self, suffixes: list[Suffix], beam: int) -> Generator[Tensor, Tensor, list[Suffix]]:
        """The `beam` best suffixes that are one token longer."""
        longer: list[tuple[float, Suffix]] = []
        for suffix in suffixes:
            ending = yield from self._ending(suffix)
            best = zip(ending.densities[:beam].tolist(), ending.tokens[:beam].tolist(), strict=True)
            longer += [(density, (token, *suffix)) for density, token in best]
        longer.sort(reverse=True)
        chosen = [suffix for _, suffix in longer[:beam]]
        self.suffix = chosen[0]
        return chosen

    def _ending(self, suffix: Suffix) -> Generator[Tensor, Tensor, _Ending]:
        """What is known of prompts that end so; they are sampled when it is first asked for."""
        if suffix not in self._endings:
            if not suffix:
                self._endings[suffix] = _Ending(*self._last_tokens())
            else:
                width, place = len(self._state), len(self._places) - len(suffix) - 1
                moments = Moments.none(self._features.shape[1], width, self._state.device)
                prompts = random_prompts(self._layout, SUFFIX_SAMPLES * width, self._rng, suffix)
                yield from self._sample(prompts, place, moments)
                fit = Regression.of(moments, self._general.slopes[place])
                self._endings[suffix] = _Ending(*self._ranked(fit))
        return self._endings[suffix]

    def _ranked(self, fit: Regression) -> tuple[Tensor, Tensor]:
        """The allowed tokens, those of highest density first, and their densities."""
        densities, order = fit.log_densities(self._features, self._state).sort(descending=True, stable=True)
        return self._layout.allowed[order.cpu()], densities.cpu()

    def _last_tokens(self) -> tuple[Tensor, Tensor]:
        """The allowed tokens in turn by the regression on all samples and by that on the nearest ones.

        States lie in clusters, within which tokens move them in other ways than on the whole.
        """
        general = self._general
        distances = torch.linalg.vector_norm(general.states.float() - self._state, dim=1)
        nearest = distances.nan_to_num(torch.inf).argsort()[: len(distances) // NEAREST_SHARE]
        moments = Moments.none(self._features.shape[1], len(self._state), self._state.device)
        moments.add(features(self._lm, general.tokens[nearest.cpu()]), general.states[nearest])
        orders = [self._ranked(fit)[0] for fit in (Regression.of(moments), general.last)]
        in_turn = torch.stack(orders, 1).flatten().tolist()
        tokens = torch.tensor(list(dict.fromkeys(in_turn)))
        return tokens, -torch.arange(len(tokens), dtype=torch.float32)

    def _check(self, suffix: Suffix, most: int) -> States:
        """Compare the prompts of a suffix with the state, up to the `most` most likely ones."""
        ending = yield from self._ending(suffix)
        tokens = ending.tokens[ending.checked : most]
        ending.checked = max(ending.checked, min(most, len(ending.tokens)))
        prompts = self._layout.ids.repeat(len(tokens), 1)
        prompts[:, self._places[0]] = tokens
        prompts[:, self._places[1:]] = torch.tensor(suffix, dtype=torch.long)
        if self._round_trip:
            prompts = prompts[self._lasting(prompts)]
        yield from self._sample(prompts, 0, None)

    def _sample(self, prompts: Tensor, place: int, moments: Moments | None) -> States:
        """Ask for the states of prompts; learn from them if they are `moments` of the token at a hard position."""
        while len(prompts) and self.left and not self.found:
            size = min(self.size, self.left)
            part, prompts = prompts[:size], prompts[size:]
            self.left -= len(part)
            self.asked += len(part)
            states = (yield part).to(self._state.device)
            if moments is not None:
                moments.add(features(self._lm, part[:, self._places[place]]), states)
            self._note(part, states)

    def _lasting(self, prompts: Tensor) -> Tensor:
        """Which of them survive decoding and encoding, `(rows,)` bool."""
        lasting = survives(self._lm, prompts.tolist(), len(self._layout.bos_ids)) if len(prompts) else []
        return torch.tensor(lasting, dtype=torch.bool)

    def _note(self, prompts: Tensor, states: Tensor) -> None:
        """Keep the closest prompts."""
        distances = (torch.linalg.vector_norm(states - self._state, dim=1) / self._state.norm()).nan_to_num(torch.inf)
        order = distances.argsort()[: self._keep].cpu()
        if self._round_trip:
            order = order[self._lasting(prompts[order])]
        for distance, ids in zip(distances[order.to(distances.device)].tolist(), prompts[order].tolist(), strict=True):
            prompt = tuple(ids)
            if prompt in self._kept:
                continue
            entry = (-distance, prompt)
            if len(self._closest) < self._keep:
                heapq.heappush(self._closest, entry)
                self._kept.add(prompt)
            elif entry > self._closest[0]:
                self._kept.discard(heapq.heapreplace(self._closest, entry)[1])
                self._kept.add(prompt)


def _generator(*seeds: int) -> torch.Generator:
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
