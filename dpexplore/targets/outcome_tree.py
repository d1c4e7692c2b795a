"""Outcomes as a tree of tokens: what several of them begin with stands there once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dpexplore.errors import InputError

MAX_TOKENS = 25_000
"""Tokens of all outcomes behind all prefixes; what a tree's nodes see of one another takes their square in bytes."""
MAX_PATHS = 2_000_000
"""Entries of `paths`, most of which fill up the shorter outcomes where one is much longer than the others."""
ROOT = -1
"""Parent of a node that follows the prompt directly."""


class PrefixClash(ValueError):
    """An outcome is the beginning of another: whoever said the longer one would have said the shorter one first."""

    def __init__(self, short: int, long: int) -> None:
        super().__init__(short, long)
        self.short, self.long = short, long
        """Indices of the two outcomes; their tokens may be the same."""


@dataclass(frozen=True, eq=False)
class OutcomeTree:
    """Prefix-free token sequences behind a prompt, laid out so that one pass scores them all.

    A node is a token that something follows; it attends to the prompt, to its ancestors and to itself. An edge is a
    token that is to be predicted, from a node or from the prompt's last position. The probability of an outcome is the
    product over the edges of its path.
    """

    inputs: Tensor
    """`(nodes,)` ids, parents before children."""
    parents: Tensor
    """`(nodes,)` index of a node, or `ROOT`."""
    depths: Tensor
    """`(nodes,)` tokens between the prompt and the node."""
    sources: Tensor
    """`(edges,)` where an edge is predicted: 0 for the prompt's last position, i + 1 for node i."""
    tokens: Tensor
    """`(edges,)` the ids predicted there."""
    paths: Tensor
    """`(prefixes outcomes length)` edges of each outcome behind each prefix, filled up with the number of edges."""

    @classmethod
    def of(cls, outcomes: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]] = ((),)) -> OutcomeTree:
        """The tree of `outcomes` behind each of `prefixes`; a prefix is given and not predicted.

        PrefixClash if an outcome is the beginning of another one or equal to it.
        """
        check_prefix_free(outcomes)
        nodes: dict[tuple[int, int], int] = {}
        edges: dict[tuple[int, int], int] = {}
        inputs, depths, parents = [], [], []

        def node(parent: int, token: int) -> int:
            known = nodes.setdefault((parent, token), len(nodes))
            if known == len(inputs):
                inputs.append(token)
                parents.append(parent)
                depths.append(0 if parent == ROOT else depths[parent] + 1)
            return known

        sources, tokens, paths = [], [], []
        for prefix in prefixes:
            start = ROOT
            for token in prefix:
                start = node(start, token)
            for outcome in outcomes:
                at, path = start, []
                for place, token in enumerate(outcome):
                    if place:
                        at = node(at, outcome[place - 1])
                    edge = edges.setdefault((at, token), len(edges))
                    if edge == len(tokens):
                        sources.append(at + 1)
                        tokens.append(token)
                    path.append(edge)
                paths.append(path)
        longest = max(map(len, paths))
        filled = [path + [len(edges)] * (longest - len(path)) for path in paths]
        return cls(
            torch.tensor(inputs, dtype=torch.long),
            torch.tensor(parents, dtype=torch.long),
            torch.tensor(depths, dtype=torch.long),
            torch.tensor(sources),
            torch.tensor(tokens),
            torch.tensor(filled).view(len(prefixes), len(outcomes), longest),
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest outcome, without its prefix."""
        return self.paths.shape[-1]

    @cached_property
    def height(self) -> int:
        """Tokens of the longest sequence behind the prompt, prefix included."""
        return 1 + int(self.depths.max()) + 1 if len(self.depths) else 1

    def sequence(self, prefix: int, outcome: int) -> tuple[list[int], list[int]]:
        """The ids of a prefix, and those of an outcome behind it."""
        path = [edge for edge in self.paths[prefix, outcome].tolist() if edge < len(self.tokens)]
        before: list[int] = []
        node = int(self.sources[path[0]]) - 1
        while node != ROOT:
            before.insert(0, int(self.inputs[node]))
            node = int(self.parents[node])
        return before, self.tokens[path].tolist()

    @cached_property
    def sight(self) -> Tensor:
        """Which nodes each node attends to: itself and its ancestors, `(nodes nodes)` bool."""
        seen = torch.eye(len(self.inputs), dtype=torch.bool)
        for i, parent in enumerate(self.parents.tolist()):
            if parent != ROOT:
                seen[i] |= seen[parent]
        return seen


def check_prefix_free(outcomes: Sequence[Sequence[int]]) -> None:
    """PrefixClash for the first outcome, in order, that is the beginning of another or equal to it."""
    places: dict[tuple[int, int], int] = {}
    ends: dict[int, int] = {}
    for i, outcome in enumerate(outcomes):
        at = ROOT
        for token in outcome:
            at = places.setdefault((at, token), len(places))
        same = ends.setdefault(at, i)
        if same != i:
            raise PrefixClash(same, i)
    for i, outcome in enumerate(outcomes):
        at = ROOT
        for token in outcome:
            if at in ends:
                raise PrefixClash(ends[at], i)
            at = places[at, token]


def check_tree_size(outcomes: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]) -> None:
    """InputError for what would make too large a tree; counts tokens and builds nothing."""
    each = sum(map(len, outcomes))
    asked = len(prefixes) * each + sum(map(len, prefixes))
    table = len(prefixes) * len(outcomes) * max(map(len, outcomes))
    if asked > MAX_TOKENS or table > MAX_PATHS:
        behind = f" behind {len(prefixes):,} beginnings of the answer" if len(prefixes) > 1 else ""
        raise InputError(
            f"The outcomes have {each:,} tokens together{behind}, too many to be scored in one pass; use fewer or "
            f"shorter ones, of at most {MAX_TOKENS:,} tokens in all."
        )
