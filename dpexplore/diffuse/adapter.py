"""A LoRA adapter on a copy of the model that shares its weights; the model itself is never touched."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dpexplore.errors import InputError, in_short
from dpexplore.extras import extra
from dpexplore.models import LanguageModel

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

PAPER_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
STATE_SPACE_WEIGHTS = frozenset({"out_proj", "conv1d"})
"""Layers whose weights Mamba's kernels read without calling them, past any adapter."""
MAX_ADAPTER_BYTES = 2 * 2**30


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapted model beside the one it came from; letting go of it frees the adapter alone."""

    lm: LanguageModel
    """The adapted model; its base weights are the original's own tensors."""
    peft: PeftModel

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self.peft.parameters() if parameter.requires_grad]

    def save(self, folder: str | Path) -> None:
        """Write the adapter in PEFT's format; `peft.PeftModel.from_pretrained(base, folder)` reads it."""
        self.peft.save_pretrained(str(folder), save_embedding_layers=False)


def new_adapter(lm: LanguageModel, rank: int, seed: int) -> Adapter:
    """A fresh adapter, which changes nothing yet: A is drawn as PEFT draws it, by its own generator, and B is 0.

    It stands on the first of `target_choices` that PEFT takes and that a gradient reaches. InputError if there is none.
    """
    lm.check_tunable()
    reasons: list[str] = []
    for modules in target_choices(lm):
        try:
            adapter = _on_modules(lm, modules, rank, seed)
            learns = _learns(adapter)
        except (torch.OutOfMemoryError, InputError):
            raise
        except Exception as error:  # PEFT refuses modules by whatever exception it likes
            logger.info("no adapter on %s of %s", modules, lm.name, exc_info=True)
            reasons.append(in_short(error))
            continue
        if learns:
            return adapter
        reasons.append("no finite gradient reaches it")
    raise InputError(
        f"LoRA cannot train {lm.name} ({lm.model.config.model_type}): none of its linear layers takes an adapter "
        f"({reasons[-1].rstrip('.')}). Tune a prompt instead."
    )


def _on_modules(lm: LanguageModel, modules: list[str] | str | None, rank: int, seed: int) -> Adapter:
    with extra("diffuse", "LoRA"):
        from peft import LoraConfig, get_peft_model

    shared = _shared_copy(lm)
    config = LoraConfig(
        r=rank,
        task_type="CAUSAL_LM",
        target_modules=modules,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in lm.model.modules()),
    )
    with _undisturbed():
        model = get_peft_model(shared, config)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                drawn = torch.empty(parameter.shape)
                nn.init.kaiming_uniform_(drawn, a=5**0.5, generator=rng)
                parameter.copy_(drawn)
    return _adapter(lm, shared, model)


def load_adapter(lm: LanguageModel, folder: str | Path) -> Adapter:
    """An adapter in PEFT's format on a model. InputError if the folder holds none that fits the model."""
    with extra("diffuse", "LoRA"):
        from peft import PeftModel

    folder = Path(folder).expanduser()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(f"{folder} is not an adapter: it has no {name}; `diffuse --out` writes one.")
    if (folder / WEIGHTS_FILE).stat().st_size > MAX_ADAPTER_BYTES:
        raise InputError(f"The adapter in {folder} is larger than {MAX_ADAPTER_BYTES // 2**30} GiB.")
    shared = _shared_copy(lm)
    try:
        with _undisturbed():
            model = PeftModel.from_pretrained(shared, str(folder))
    except Exception as error:  # wrong shapes, damaged files and unknown kinds each raise their own
        logger.info("loading the adapter in %s failed", folder, exc_info=True)
        raise InputError(f"The adapter in {folder} is damaged or was made for another model than {lm.name}.") from error
    return _adapter(lm, shared, model)


def target_choices(lm: LanguageModel) -> Iterator[list[str] | str | None]:
    """What may be adapted, the best first, as PEFT's `target_modules`.

    The paper's seven projections where the model has them all; what PEFT takes for its architecture (None); all linear
    layers but the head; those of them that a state-space block calls as modules.
    """
    modules = {name: module for name, module in lm.model.named_modules() if name}
    names = {name.rpartition(".")[2] for name in modules}
    if names.issuperset(PAPER_MODULES):
        yield list(PAPER_MODULES)
    with extra("diffuse", "LoRA"):
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    if lm.model.config.model_type in KNOWN:
        yield None
    yield "all-linear"
    head = lm.model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in modules.items()
        if type(module) in (nn.Linear, Conv1D) and module is not head  # routers of experts derive from nn.Linear
    }
    if called := sorted(linear - STATE_SPACE_WEIGHTS):
        yield called


def _learns(adapter: Adapter) -> bool:
    """Whether a finite gradient that is not 0 reaches the adapter: it would train."""
    lm, parameters = adapter.lm, adapter.parameters()
    ids = lm.ordinary_ids[: min(4, lm.max_positions or 4)][None]
    with torch.enable_grad():
        loss = lm.log_probs(lm.embed(ids))[0].max()
        if not loss.requires_grad:
            return False
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    found = [grad for grad in grads if grad is not None]
    return all(bool(grad.isfinite().all()) for grad in found) and any(bool(grad.any()) for grad in found)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """PEFT draws from the global generator, which is put back, and meets a name that transformers has deprecated."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def _adapter(lm: LanguageModel, shared: Any, model: Any) -> Adapter:
    shared.eval()
    return Adapter(LanguageModel(f"{lm.name} + LoRA", shared, lm.tokenizer, lm.identity), model)


def _shared_copy(lm: LanguageModel) -> Any:
    """New modules around the same tensors: adapters go into these, and the model itself is left alone."""
    tensors: Iterable[Tensor] = chain(lm.model.parameters(), lm.model.buffers())
    return copy.deepcopy(lm.model, {id(tensor): tensor for tensor in tensors})
