"""Outcomes as a tree of tokens: what several of them begin with stands there once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

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
        nodes: dict[tuple[int, ...], int] = {}
        edges: dict[tuple[int, ...], int] = {}
        depths, parents = [], []

        def node(path: tuple[int, ...]) -> int:
            if not path:
                return ROOT
            if path not in nodes:
                parent = node(path[:-1])
                nodes[path] = len(nodes)
                parents.append(parent)
                depths.append(len(path) - 1)
            return nodes[path]

        sources, tokens, paths = [], [], []
        for prefix in map(tuple, prefixes):
            for outcome in map(tuple, outcomes):
                for end in range(len(outcome)):
                    path = prefix + outcome[: end + 1]
                    if path not in edges:
                        edges[path] = len(edges)
                        sources.append(node(path[:-1]) + 1)
                        tokens.append(path[-1])
                paths.append([edges[prefix + outcome[: end + 1]] for end in range(len(outcome))])
        longest = max(map(len, paths))
        filled = [path + [len(edges)] * (longest - len(path)) for path in paths]
        return cls(
            torch.tensor([path[-1] for path in nodes], dtype=torch.long),
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
    ends: dict[tuple[int, ...], int] = {}
    for i, outcome in enumerate(outcomes):
        same = ends.setdefault(tuple(outcome), i)
        if same != i:
            raise PrefixClash(same, i)
    for i, outcome in enumerate(outcomes):
        for end in range(len(outcome)):
            short = ends.get(tuple(outcome[:end]))
            if short is not None:
                raise PrefixClash(short, i)
