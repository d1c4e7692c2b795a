"""`load_model`: from what the user asked for to a frozen `LanguageModel`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpexplore.models.default_model import DEFAULT_MODEL, IDENTITY, Progress, prepare_default_model
from dpexplore.models.language_model import LanguageModel
from dpexplore.models.quiet import quiet_libraries
from dpexplore.models.registry import default_device, default_dtype


def load_model(
    name: str = DEFAULT_MODEL,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LanguageModel:
    """Load a causal language model, frozen and in eval mode."""
    place = default_device() if device is None else torch.device(device)
    precision = default_dtype(place) if dtype is None else dtype
    with quiet_libraries():
        if name == DEFAULT_MODEL:
            folder, identity = prepare_default_model(progress or (lambda _text, _fraction: None)), IDENTITY
        else:
            folder, identity = Path(name), f"path:{name}"
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=precision, trust_remote_code=False)
        model = model.to(place).eval().requires_grad_(False)
    return LanguageModel(name=name, model=model, tokenizer=tokenizer, identity=identity)
