"""A model in low precision, computed in float32 without a second copy of its weights: layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from dpexplore.models.language_model import LanguageModel

_LOW = (torch.bfloat16, torch.float16)
_ONE_AT_A_TIME = Lock()  # two threads in one layer would take its weights from each other
_views: WeakKeyDictionary[LanguageModel, LanguageModel] = WeakKeyDictionary()


@contextmanager
def in_float32(lm: LanguageModel) -> Iterator[LanguageModel]:
    """Within, the same weights with every operation in float32; `lm` itself unless it is in bfloat16 or float16.

    Weights are shared, and `lm` may be used meanwhile: a layer has them as float32 only while it runs, so this needs
    the memory of one layer. One thread at a time; for scoring, not for gradients.
    """
    if lm.dtype not in _LOW:
        yield lm
        return
    with _ONE_AT_A_TIME:
        if lm not in _views:
            _views[lm] = replace(lm, model=_float32_model(lm.model), compute_dtype=torch.float32)
        yield _views[lm]


def _float32_model(model: Any) -> Any:
    """Modules of their own over the parameters of `model`, each layer of which is float32 while it runs."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    view = copy.deepcopy(model, shared)
    for module in view.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dtype in _LOW:
                module._buffers[name] = buffer.float()
    for layer in _layers(view):
        lent: list[tuple[nn.Module, str, nn.Parameter]] = []
        layer.register_forward_pre_hook(_lend(lent))
        layer.register_forward_hook(_take_back(lent), always_call=True)
    return view


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The entries of lists of layers, and whatever else holds parameters of its own."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) or any(True for _ in child.parameters(recurse=False)):
            yield child
        else:
            yield from _layers(child)


def _lend(lent: list[tuple[nn.Module, str, nn.Parameter]]) -> Any:
    def hook(layer: nn.Module, _args: tuple) -> None:
        for module in layer.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.dtype in _LOW:
                    lent.append((module, name, parameter))
                    module._parameters[name] = nn.Parameter(parameter.float(), requires_grad=False)

    return hook


def _take_back(lent: list[tuple[nn.Module, str, nn.Parameter]]) -> Any:
    def hook(_layer: nn.Module, _args: tuple, _output: Any) -> None:
        for module, name, parameter in lent:
            module._parameters[name] = parameter
        lent.clear()

    return hook
