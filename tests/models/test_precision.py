"""Which precision a model is loaded in, and how it is asked for."""

from __future__ import annotations

import pytest
import torch

from dpexplore.errors import InputError
from dpexplore.models import load_model
from dpexplore.models.precision import _by_size, choose_precision, dtype_of, split_dtype, with_dtype

GIB = 2**30


@pytest.mark.parametrize(
    ("parameters", "gib", "why"),
    [
        (134_515_008, 80, "float32: the weights take 0.5 of 80.0 GiB."),
        (8_030_261_248, 80, "float32: the weights take 29.9 of 80.0 GiB."),
        (8_030_261_248, 24, "bfloat16: in float32 the weights would take 29.9 of 24.0 GiB."),
        (GIB, 8, "bfloat16: in float32 the weights would take 4.0 of 8.0 GiB."),
    ],
)
def test_float32_where_it_leaves_half_of_a_card(parameters: int, gib: int, why: str) -> None:
    chosen = _by_size(parameters, gib * GIB)
    assert chosen.why == why
    assert chosen.dtype == (torch.float32 if why.startswith("float32") else torch.bfloat16)


def test_a_processor_has_float32_unless_asked() -> None:
    assert choose_precision(10**12, torch.device("cpu")).dtype == torch.float32
    assert choose_precision(1, torch.device("cpu"), torch.bfloat16).why == "bfloat16: as requested."


@pytest.mark.parametrize(
    ("name", "bare", "dtype"),
    [
        ("gpt2", "gpt2", None),
        ("gpt2@bfloat16", "gpt2", torch.bfloat16),
        ("./a@b/model@float32", "./a@b/model", torch.float32),
        ("./a@float16", "./a@float16", None),
        ("@bfloat16", "", torch.bfloat16),
    ],
)
def test_a_name_may_end_in_a_dtype(name: str, bare: str, dtype: torch.dtype | None) -> None:
    assert split_dtype(name) == (bare, dtype)
    assert split_dtype(with_dtype(name, "float32")) == (bare, torch.float32)
    assert with_dtype(name, None) == name


def test_the_dtype_in_a_name_is_loaded() -> None:
    lm = load_model("random:bytes-llama@bfloat16", device="cpu")
    assert (lm.dtype_name, lm.name, lm.identity) == ("bfloat16", "random:bytes-llama", "random:0:bytes-llama")
    assert lm.dtype_reason == "bfloat16: as requested."
    assert load_model("random:bytes-llama@bfloat16", device="cpu", dtype="float32").dtype_name == "float32"
    with pytest.raises(InputError, match="No model was named"):
        load_model("@bfloat16")


def test_no_such_dtype() -> None:
    with pytest.raises(InputError, match="use float32 or bfloat16"):
        dtype_of("int4")
