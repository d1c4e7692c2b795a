"""What a model's configuration says before any weight is read: may it be loaded here at all?"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    PretrainedConfig,
)

from dpexplore.errors import InputError
from dpexplore.models.folder import read_object
from dpexplore.models.registry import memory_needed, memory_present
from dpexplore.models.sizes import check_layers


def read_config(folder: Path, name: str) -> PretrainedConfig:
    """The folder's configuration, if it is that of a causal language model transformers knows by itself."""
    try:
        raw = read_object(folder, "config.json", name)
    except FileNotFoundError as error:
        raise InputError(
            f"{name} holds no config.json, so it is not a transformers model; give a folder written by save_pretrained."
        ) from error
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(f"The config.json of {name} is damaged; download or save the model again.")
    if model_type not in CONFIG_MAPPING:
        if raw.get("auto_map"):
            raise _needs_code(name)
        raise InputError(
            f"{name} has the architecture {model_type}, which the installed transformers does not know; "
            "upgrade transformers or choose another model."
        )
    check_layers(raw, name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the config classes validate with exceptions of many kinds
        raise InputError(f"The config.json of {name} is damaged; download or save the model again.") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" in raw.get("auto_map", {}):
        raise _needs_code(name)
    check_causal(config, name)
    return config


def _needs_code(name: str) -> InputError:
    return InputError(
        f"{name} needs Python code from its repository, which dpexplore never runs; "
        "choose a model whose architecture is part of transformers."
    )


def check_causal(config: PretrainedConfig, name: str) -> None:
    """InputError unless the architecture predicts the next token from the ones before it."""
    # BERT, BART and their like have causal variants in transformers, which their checkpoints are not.
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or masked or getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{name} is not a causal language model ({config.model_type}); "
            "choose one that predicts the next token, such as gpt2 or smollm2-135m."
        )


def check_fits(name: str, parameters: int, dtype: torch.dtype, device: torch.device) -> None:
    """InputError with the numbers if the device's free memory does not hold the model."""
    needed, present = memory_needed(parameters, dtype), memory_present(device)
    if needed > present:
        raise InputError(
            f"{name} needs about {needed / 1e9:.1f} GB of memory in {str(dtype).removeprefix('torch.')}, "
            f"but only {present / 1e9:.1f} GB are free on {device}; choose a smaller model."
        )
