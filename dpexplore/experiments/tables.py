"""What the tables of results are, to a type checker."""

from __future__ import annotations

from typing import Any

Table = Any
"""A pandas DataFrame or Series. Which of the two an expression gives depends on its values, which no stub knows."""
