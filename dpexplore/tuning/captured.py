"""What is known of the prompt that a target was captured from."""

from __future__ import annotations

from dpexplore.models import LanguageModel
from dpexplore.targets import Target


def captured_length(lm: LanguageModel, target: Target) -> int | None:
    """Tokens of the prompt after which `lm` says exactly this target, what the tokenizer puts in front not counted.

    None if the target was captured from another model, changed since, or made in another way.
    """
    known = target.provenance
    if known.get("kind") not in ("capture", "random_prompt") or known.get("identity") != lm.identity:
        return None
    ids, bos = known.get("prompt_ids", []), list(lm.bos_ids)
    if known.get("transforms") or ids[: len(bos)] != bos:
        return None
    return len(ids) - len(bos) or None
