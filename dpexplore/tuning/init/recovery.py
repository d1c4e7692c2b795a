"""The prompt behind a state, found from its last token to its first.

What a model says of a random prompt is like a hash: any other prompt says something else, and no gradient points at
the right tokens. But the last state is regressed well on the last token while all others are random
(`dpexplore.tuning.init.regression`), and once the last token is known, on the one before it, among prompts that end
alike. The likeliest tokens are tried: the mean state of a few random prompts that hold one of them tells more than any
regression on its embedding. So suffixes grow leftwards, and the prompts of the best are compared with the state
exactly. What is looked into next is the suffix whose tokens' ranks have the smallest product.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dpexplore.models import LanguageModel
from dpexplore.tuning.init.general import General, Suffix, features, generator, random_prompts, workplace
from dpexplore.tuning.init.layout import Layout
from dpexplore.tuning.init.policy import survives
from dpexplore.tuning.init.regression import Moments, Regression, normal_log_densities

States = Generator[Tensor, Tensor, None]
"""Yields prompts `(rows pos)`, is sent their last states `(rows width)`."""

MOST_POSITIONS = 10
"""Hard tokens up to which recovering is tried; the beam's cost grows with their square."""
SUFFIX_SAMPLES = 3
"""Random prompts per dimension of the state for every suffix that another token is looked for in front of."""
FIRST_SAMPLES, MOST_SAMPLES = 1, 4
"""The same where that token is the prompt's first: at the first try, and at most; twice as many at every try."""
CHECKED = 128
"""Whole prompts compared with the state at the first try; twice as many at every one that follows."""
NEAREST_SHARE = 9
"""One in as many of the random prompts, but at least `LEAST_NEAR` a dimension, is near the state looked for."""
LEAST_NEAR = 0.5
SCREENED = 0.5
"""Tokens tried in front of a suffix, for each dimension of the state, in `FRONTS` random prompts each."""
FRONTS = 4
WIDENED = 4
"""Times as many are tried as soon as one in `USED` of them was looked into."""
USED = 16
SAME_STATE = 1e-3
"""States this close, relative to their length, are the same but for rounding; other prompts stay above 0.01."""


@dataclass(eq=False)
class _Ending:
    """Prompts that end in one suffix, and the token in front of it."""

    tokens: Tensor
    """`(samples,)` that token in random prompts,"""
    states: Tensor
    """and their states `(samples width)` float16."""
    ranking: list[int] = field(default_factory=list)
    """Tokens in front of the suffix, the likeliest first."""
    screened: int = 0
    """How many of them were tried."""
    used: set[int] = field(default_factory=set)
    """Those that were looked into, or compared exactly."""


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
        self._rng = generator(seed)
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
        numbers = itertools.count()
        queue: list[tuple[int, int, int, Suffix, int]] = []

        def ask(cost: int, suffix: Suffix, tries: int) -> None:
            """Look into a suffix when its turn comes; of equal costs, the longest first."""
            heapq.heappush(queue, (cost, -len(suffix), next(numbers), suffix, tries))

        ask(1, (), 0)
        while queue and not self.found and self.left:
            cost, _, _, suffix, tries = heapq.heappop(queue)
            self.suffix = suffix or self.suffix
            if len(suffix) == len(self._places) - 1:
                if (yield from self._check(suffix, tries)):
                    ask(2 * cost, suffix, tries + 1)
                continue
            token = yield from self._token(suffix)
            if token is not None:
                ask(cost // (tries + 1) * (tries + 2), suffix, tries + 1)
                ask(cost, (token, *suffix), 0)

    def _token(self, suffix: Suffix) -> Generator[Tensor, Tensor, int | None]:
        """The likeliest token in front of a suffix that was not looked into yet; None if there is none."""
        ending = self._ending(suffix)
        yield from self._learn(ending, suffix, SUFFIX_SAMPLES)
        if len(ending.used) * USED >= ending.screened and ending.screened < len(ending.ranking):
            yield from self._screen(ending, suffix, WIDENED * ending.screened or int(SCREENED * len(self._state)))
        token = next((token for token in ending.ranking if token not in ending.used), None)
        if token is not None:
            ending.used.add(token)
        return token

    def _check(self, suffix: Suffix, tries: int) -> Generator[Tensor, Tensor, bool]:
        """Compare the likeliest prompts of a suffix with the state; whether there are more."""
        ending = self._ending(suffix)
        yield from self._learn(ending, suffix, min(FIRST_SAMPLES << tries, MOST_SAMPLES))
        left = [token for token in ending.ranking if token not in ending.used]
        tokens = left[: CHECKED << tries]
        ending.used.update(tokens)
        prompts = self._prompts(torch.tensor(tokens, dtype=torch.long), suffix)
        if self._round_trip:
            prompts = prompts[self._lasting(prompts)]
        yield from self._sample(prompts)
        return len(left) > len(tokens)

    def _ending(self, suffix: Suffix) -> _Ending:
        """What is known of prompts that end so."""
        if suffix not in self._endings:
            general = self._general
            none = torch.zeros(0, dtype=torch.long), general.states[:0]
            self._endings[suffix] = _Ending(*(none if suffix else (general.tokens.cpu(), general.states)))
        return self._endings[suffix]

    def _learn(self, ending: _Ending, suffix: Suffix, samples: int) -> States:
        """Rank the tokens by as many random prompts of a suffix as `samples` for each dimension of the state."""
        wanted = samples * len(self._state) - len(ending.tokens)
        if wanted > 0:
            prompts = random_prompts(self._layout, wanted, self._rng, suffix)
            states = yield from self._sample(prompts)
            tokens = prompts[: len(states), self._place(suffix)]
            ending.tokens = torch.cat([ending.tokens, tokens])
            ending.states = torch.cat([ending.states, states.to(ending.states)])
            if len(suffix) == len(self._places) - 1:
                ending.used.update(tokens.tolist())
        if wanted > 0 or not ending.ranking:
            ending.ranking = self._ranked(ending, suffix)

    def _ranked(self, ending: _Ending, suffix: Suffix) -> list[int]:
        """The allowed tokens in turn by a regression on all samples and by one on the nearest of them.

        States lie in clusters, within which tokens move them in other ways than on the whole.
        """
        states, prior = ending.states.float(), self._general.slopes[len(self._places) - 1 - len(suffix)]
        if not len(states):  # nothing may be asked for any more
            return []
        nearest = torch.linalg.vector_norm(states - self._state, dim=1).nan_to_num(torch.inf).argsort()
        nearest = nearest[: max(len(states) // NEAREST_SHARE, int(LEAST_NEAR * len(self._state)))]

        def regression(some: Tensor | slice) -> Regression:
            moments = Moments.none(self._features.shape[1], len(self._state), self._state.device)
            moments.add(features(self._lm, ending.tokens[some]), states[some])
            return Regression.of(moments, prior if suffix else None)

        fits = regression(nearest.cpu()), regression(slice(None)) if suffix else self._general.last
        densities = [fit.log_densities(self._features, self._state) for fit in fits]
        return _in_turn(*(self._layout.allowed[_falling(each)] for each in densities))

    def _screen(self, ending: _Ending, suffix: Suffix, count: int) -> States:
        """Rank the `count` likeliest tokens in turn by the states they are seen to have and as they were."""
        tokens = torch.tensor(ending.ranking[:count])
        fronts = random_prompts(self._layout, FRONTS, self._rng, suffix)
        prompts = fronts.repeat(len(tokens), 1)  # the same fronts for all, so that what they do counts for none
        prompts[:, self._place(suffix)] = tokens.repeat_interleave(FRONTS)
        states = yield from self._sample(prompts)
        ending.screened = count
        whole = len(states) // FRONTS
        states = states[: FRONTS * whole].view(whole, FRONTS, states.shape[1])
        finite = states.isfinite().all(2).all(1)
        tokens, states = tokens[:whole][finite.cpu()], states[finite]
        if len(tokens):
            means = states.mean(1)
            noise = (states - means[:, None]).flatten(0, 1)
            densities = normal_log_densities(self._state - means, noise.T @ noise / (len(noise) - len(means)))
            ending.ranking = _in_turn(tokens[_falling(densities)], torch.tensor(ending.ranking))

    def _place(self, suffix: Suffix) -> int:
        """Where the token in front of a suffix stands in a prompt."""
        return int(self._places[len(self._places) - 1 - len(suffix)])

    def _prompts(self, tokens: Tensor, suffix: Suffix) -> Tensor:
        """Whole prompts: each of the tokens, then the suffix."""
        prompts = self._layout.ids.repeat(len(tokens), 1)
        prompts[:, self._places[0]] = tokens
        prompts[:, self._places[1:]] = torch.tensor(suffix, dtype=torch.long)
        return prompts

    def _sample(self, prompts: Tensor) -> Generator[Tensor, Tensor, Tensor]:
        """The states of prompts `(n width)`, of fewer if one is found or no more may be asked for."""
        seen = [self._state[None, :][:0]]
        while len(prompts) and self.left and not self.found:
            size = min(self.size, self.left)
            part, prompts = prompts[:size], prompts[size:]
            self.left -= len(part)
            self.asked += len(part)
            states = (yield part).to(self._state.device)
            self._note(part, states)
            seen.append(states.float())
        return torch.cat(seen)

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


def _falling(densities: Tensor) -> Tensor:
    """The places of the densities, the highest first, on the CPU."""
    return densities.argsort(descending=True, stable=True).cpu()


def _in_turn(*orders: Tensor) -> list[int]:
    """The tokens of several orders, each once: the first of all of them, then the second ones."""
    longest = max(map(len, orders))
    padded = [torch.cat([order, order[:1].expand(longest - len(order))]) for order in orders]
    return list(dict.fromkeys(torch.stack(padded, 1).flatten().tolist()))
