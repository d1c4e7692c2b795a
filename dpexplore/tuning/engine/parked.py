"""Rows that wait for their turn."""

from __future__ import annotations

from dataclasses import dataclass

from dpexplore.tuning.rules.memory import SearchMemory
from dpexplore.tuning.rules.state import PromptState, RowState


@dataclass(frozen=True, eq=False)
class ParkedRow:
    """A restart that has begun and made room for others, with all that is known of it."""

    restart: int
    memory: SearchMemory
    prompts: PromptState
    """Of this one row,"""
    soft: RowState
    """and its soft rule's."""
