"""The prompts that a target's sources were captured from, as its record keeps them.

A chat template may write today's date, and a new version of a template other words. A record replays by the ids that
it holds; the recipe's text alone would build another target on another day.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpexplore.errors import InputError
from dpexplore.targets.recipe import Provenance, Recipe, RecordedPrompt
from dpexplore.targets.sources import Capture, RandomPrompt
from dpexplore.targets.strings import Strings
from dpexplore.targets.transforms import Mix, Transform


def recorded_prompts(recipe: Recipe, provenance: Mapping[str, Any]) -> dict[str, RecordedPrompt]:
    """Text of each capturing source of a recipe -> the prompt that its record names; records of before have some.

    InputError if the provenance is none that a target of this recipe has.
    """
    try:
        return _recorded(recipe, provenance)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError("The record of the target is damaged; use an unchanged capsule.") from error


def _recorded(recipe: Recipe, provenance: Mapping[str, Any]) -> dict[str, RecordedPrompt]:
    found: dict[str, RecordedPrompt] = {}
    steps = list(provenance.get("transforms", []))
    while isinstance(recipe, Transform):
        step = steps.pop() if steps else {}
        if isinstance(recipe, Mix):
            found |= _recorded(recipe.other, step.get("other", {}))
        recipe = recipe.base
    ids = provenance.get("prompt_ids")
    if isinstance(recipe, Capture | RandomPrompt | Strings) and ids is not None:
        if not (isinstance(ids, list) and ids and all(type(i) is int and i >= 0 for i in ids)):
            raise TypeError("ids")
        found[str(recipe)] = RecordedPrompt(str(provenance["identity"]), ids)
    return found


def changed_prompt(provenance: Provenance) -> str | None:
    """A sentence if a target was built from recorded ids that its recipe does not give today; None if not."""
    others = [step["other"] for step in provenance.get("transforms", []) if "other" in step]
    if not provenance.get("prompt_changed") and not any(map(changed_prompt, others)):
        return None
    return (
        "The prompt that the target was captured from is the recorded one; its text gives other tokens today (a chat "
        "template may write the date)."
    )
