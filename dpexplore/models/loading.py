"""`load_model`: from what the user asked for to a frozen `LanguageModel`."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from accelerate import init_empty_weights
from filelock import FileLock
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from dpexplore.errors import InputError, in_short
from dpexplore.files import reason, replacing_folder
from dpexplore.models import gguf, hub
from dpexplore.models.checksums import is_whole
from dpexplore.models.config import check_causal, check_fits, read_config
from dpexplore.models.default_model import PACKAGED, Progress
from dpexplore.models.folder import adapter_base, check_pointers
from dpexplore.models.language_model import LanguageModel, is_spread
from dpexplore.models.names import DEFAULT_MODEL
from dpexplore.models.packaged import gguf_folder
from dpexplore.models.placement import device_map, free_cards, needs_all_cards
from dpexplore.models.precision import choose_precision, dtype_of, split_dtype
from dpexplore.models.proof import prove
from dpexplore.models.quiet import quiet_libraries
from dpexplore.models.random_model import (
    BYTES_LLAMA,
    bytes_llama_config,
    bytes_tokenizer,
    drawn_on,
    initialise,
    random_identity,
)
from dpexplore.models.registry import REGISTRY, default_device
from dpexplore.models.sizes import count_parameters

RANDOM_PREFIX = "random:"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
)
_ONE_AT_A_TIME = Lock()  # loading flips global switches of transformers, and fills the memory it has measured


def load_model(
    name: str = DEFAULT_MODEL,
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LanguageModel:
    """Load a causal language model, frozen and in eval mode.

    name: a registry name (`describe_models`), Hub id, model folder, `.gguf` file, or `random:` before one of
        these: the same architecture and tokenizer with random weights drawn from `seed`
        (the paper's Fig. 6). `random:bytes-llama` needs no files at all. It may end in `@float32` or `@bfloat16`.
    device: default CUDA if there is one.
    dtype: "float32" or "bfloat16"; default float32 unless its weights take half of a card's memory or more.
    progress: called with what is being done and the fraction done (None if unknown).

    InputError, in one sentence, if there is no such model, it is gated or cannot be reached, is no causal
    language model, needs code of its repository to be run, does not fit into the free memory, or is damaged.
    """
    place = _device(device)
    name, asked = split_dtype(name.strip())
    if dtype is not None:
        asked = dtype_of(dtype)
    if not name.removeprefix(RANDOM_PREFIX):
        raise InputError(f"No model was named; the default is {DEFAULT_MODEL}.")
    with _ONE_AT_A_TIME, quiet_libraries():
        loader = _Loader(place, device is None, asked, progress or (lambda _text, _fraction: None))
        if name.startswith(RANDOM_PREFIX):
            return loader.random(name, seed)
        if name.lower().endswith(".gguf"):
            return loader.gguf_file(name)
        return loader.pretrained(name)


class _Loader:
    """One call of `load_model`: where the model goes, and who hears of the progress."""

    def __init__(self, device: torch.device, may_spread: bool, asked: torch.dtype | None, progress: Progress) -> None:
        """`may_spread`: nobody named a device, so that a model too large for one card may take all of them."""
        self.device, self.progress = device, progress
        self._may_spread, self._asked = may_spread, asked
        self.precision = choose_precision(0, device, asked)

    def _admit(self, name: str, parameters: int) -> None:
        """Choose the precision for a model of this size. InputError if it does not fit."""
        self.precision = choose_precision(parameters, self.device, self._asked)
        if not self._spreads(parameters):
            check_fits(name, parameters, self.precision.dtype, self.device)

    def _spreads(self, parameters: int) -> bool:
        return self._may_spread and needs_all_cards(parameters, self.precision.dtype, free_cards())

    def pretrained(self, name: str) -> LanguageModel:
        """A registry name, a folder, or a Hub id."""
        entry = REGISTRY.get(name.lower())
        if entry is not None:
            self._admit(entry.name, entry.parameters)
            name = entry.name
        if name in PACKAGED:
            return self._from_folder(PACKAGED[name].prepare(self.progress), name, PACKAGED[name].identity)
        if entry is None and is_path(name):
            folder = _existing_folder(name)
            base = adapter_base(folder, name)
            return self._from_folder(folder, name, None) if base is None else self._with_adapter(folder, name, base)
        hub_id = name if entry is None else entry.hub_id
        snapshot = hub.fetch(hub_id, self.progress, weights=True, check=lambda folder: self._preflight(folder, name))
        return self._from_folder(snapshot.folder, name, f"hub:{hub_id}@{snapshot.commit}")

    def _with_adapter(self, folder: Path, name: str, base: str) -> LanguageModel:
        """The base model that an adapter names, with the adapter's weights added to its own."""
        try:
            from peft import PeftModel
        except ImportError as error:
            raise InputError(
                f"{name} is an adapter, and the Python package peft, which reads it, is missing."
            ) from error
        if is_path(base) and adapter_base(_existing_folder(base), base) is not None:
            raise InputError(f"{name} is an adapter on {base}, which is an adapter itself; merge that one first.")
        try:
            lm = self.pretrained(base)
        except InputError as error:
            raise InputError(f"{name} is an adapter for {base}, which cannot be loaded: {error}") from error
        check_pointers(folder, name)
        try:
            merged: Any = PeftModel.from_pretrained(lm.model, str(folder)).merge_and_unload()
        except Exception as error:  # wrong shapes, damaged files and unknown kinds each raise their own
            raise InputError(f"The adapter {name} is damaged or was made for another model than {base}.") from error
        weights = sorted(folder.glob("adapter_model.*"))
        return self._finish(name, merged, lm.tokenizer, f"{lm.identity}+adapter:sha256:{_sha256(weights)}")

    def gguf_file(self, name: str) -> LanguageModel:
        """Dequantised the first time it is seen, and kept: a second start reads safetensors."""
        file = Path(name).expanduser()
        if not file.is_file():
            raise hub.no_such_model(name)
        identity = f"sha256:{_sha256([file])}"
        folder = gguf_folder(identity)
        if not is_whole(folder):
            with gguf.parsed_once():
                config, _ = _read_gguf(file, name)
                self._admit(name, count_parameters(config, name))
                self.progress(f"Unpacking {name}, once", None)
                _keep_gguf(file, name, folder)
        return self._from_folder(folder, name, identity)

    def random(self, name: str, seed: int) -> LanguageModel:
        wanted = name.removeprefix(RANDOM_PREFIX).strip()
        config, tokenizer = self._config_and_tokenizer(wanted)
        parameters = count_parameters(config, name)
        self._admit(name, parameters)
        drawn, dtype = drawn_on(parameters, self.device), self.precision.dtype
        model = initialise(config, seed, drawn, dtype)
        return self._finish(name, model, tokenizer, random_identity(seed, wanted, drawn, dtype))

    def _config_and_tokenizer(self, wanted: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
        if wanted.lower() == BYTES_LLAMA:
            return bytes_llama_config(), bytes_tokenizer()
        if wanted.lower().endswith(".gguf"):
            return _read_gguf(Path(wanted).expanduser(), wanted)
        entry = REGISTRY.get(wanted.lower())
        if entry is not None and entry.name in PACKAGED:
            folder = PACKAGED[entry.name].prepare(self.progress)
        elif entry is None and is_path(wanted):
            folder = _existing_folder(wanted)
        else:
            hub_id = wanted if entry is None else entry.hub_id
            folder = hub.fetch(hub_id, self.progress, weights=False).folder
        return read_config(folder, wanted), _read_tokenizer(folder, wanted)

    def _preflight(self, folder: Path, name: str) -> None:
        self._admit(name, count_parameters(read_config(folder, name), name))

    def _from_folder(self, folder: Path, name: str, identity: str | None) -> LanguageModel:
        """identity: None for a folder whose weights must be hashed to name them."""
        check_pointers(folder, name)
        self._preflight(folder, name)
        tokenizer = _read_tokenizer(folder, name)
        self.progress(f"Loading {name}", None)
        model = self._read_weights(folder, name)
        if identity is None:
            identity = f"sha256:{_sha256(_weight_files(folder))}"
        return self._finish(name, model, tokenizer, identity)

    def _read_weights(self, folder: Path, name: str) -> PreTrainedModel:
        # On CUDA each tensor goes straight to the card: the machine's memory may be smaller than the card's.
        placement = self._device_map(folder, name) if self.device.type == "cuda" else {}
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=self.precision.dtype, trust_remote_code=False, output_loading_info=True, **placement
            )
        except ImportError as error:
            raise InputError(
                f"The weights of {name} need a Python package that is not installed ({in_short(error)}); install it, "
                "or choose a variant that is not quantised."
            ) from error
        except torch.OutOfMemoryError as error:
            raise InputError(f"{name} does not fit into the free memory of {self.device}.") from error
        except Exception as error:  # weights are damaged in many ways, each with its own exception
            raise InputError(
                f"The weights of {name} are missing, damaged or do not match its config.json; "
                "download or save the model again."
            ) from error
        model, report = loaded
        missing = sorted(report["missing_keys"])
        if missing:
            raise InputError(
                f"The weights of {name} lack {len(missing)} of the tensors of a causal language model "
                f"({missing[0]}); choose a model that was saved with its language-model head."
            )
        if self.precision.dtype.itemsize < torch.float32.itemsize:
            _restore_buffers(model)
        return model

    def _device_map(self, folder: Path, name: str) -> dict[str, Any]:
        config = read_config(folder, name)
        if not self._spreads(count_parameters(config, name)):
            return {"device_map": {"": self.device}}
        cards = free_cards()
        found = device_map(config, self.precision.dtype, cards)
        if found is None:
            raise InputError(
                f"The layers of {name} do not fit into the {len(cards)} cards of this machine; choose a smaller model."
            )
        return {"device_map": found}

    def _finish(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, identity: str
    ) -> LanguageModel:
        _place(model, None if is_spread(model) else self.device, self.precision.dtype)
        model.eval().requires_grad_(False)
        head = model.get_output_embeddings()
        if head is not None:
            head.register_forward_pre_hook(_contiguous)
        self.progress(f"Loaded {name}", 1.0)
        lm = LanguageModel(name, model, tokenizer, identity, dtype_reason=self.precision.why)
        return dataclasses.replace(lm, untunable=prove(lm))


def _place(model: PreTrainedModel, device: torch.device | None, dtype: torch.dtype) -> None:
    """Parameters go to the device in the dtype; buffers, such as rotary frequencies, are never rounded to less.

    device: None leaves everything where it is.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(device or parameter.device, dtype)
    for buffer in model.buffers():
        widened = torch.promote_types(buffer.dtype, dtype) if buffer.is_floating_point() else buffer.dtype
        buffer.data = buffer.data.to(device or buffer.device, widened)


def _restore_buffers(model: PreTrainedModel) -> None:
    """Constants that are not stored with the weights, such as Gemma's scale of embeddings, in float32 again.

    transformers rounds some of them to the dtype of the weights, after which no computation in float32 is exact.
    """
    with no_init_weights(), init_empty_weights(include_buffers=False):
        exact = type(model)._from_config(copy.deepcopy(model.config), dtype=torch.float32)
    for name, buffer in exact.named_buffers():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf in module._non_persistent_buffers_set and buffer.is_floating_point():
            setattr(module, leaf, buffer.to(getattr(module, leaf).device))


def _contiguous(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Lay the last positions of a batch out one after the other before the unembedding.

    Models hand it a slice of all positions. PyTorch multiplies such a slice by a frozen matrix row by row, reading the
    whole matrix for each, where one product of all rows reads it once.
    """
    return args[0].contiguous(), *args[1:]


def _device(name: str | None) -> torch.device:
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
        # Anything that a tensor cannot be made on and read from again does not work here, whatever its name.
        works = device.type != "meta" and float(torch.ones(1, device=device)[0]) == 1
    except (RuntimeError, NotImplementedError, AssertionError, ImportError, ValueError):
        works = False
    if not works:
        raise InputError(f"This machine has no device {name}; it has {', '.join(_devices())}.")
    return device


def _devices() -> list[str]:
    """The devices of this machine, as `device` takes them."""
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def is_path(name: str) -> bool:
    """Whether the name is a path, not a Hub id (`owner/name` or `name`)."""
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~")) or name.count("/") > 1


def _existing_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise hub.no_such_model(name)
    return folder


def _read_gguf(file: Path, name: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    if not file.is_file():
        raise hub.no_such_model(name)
    try:
        config, tokenizer = gguf.read_config(file), gguf.read_tokenizer(file)
    except Exception as error:  # as many kinds as a file can be damaged in ways
        raise InputError(
            f"{name} is damaged or of an architecture that transformers cannot read from GGUF; "
            "give a GGUF file of a common one, such as Llama, Qwen2 or GPT-2."
        ) from error
    check_causal(config, name)
    return config, tokenizer


def _keep_gguf(file: Path, name: str, folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not is_whole(folder):
                with replacing_folder(folder) as beside:
                    gguf.convert(file, beside)
    except OSError as error:
        raise InputError(
            f"{name} cannot be kept in the cache folder ({reason(error)}); free room for it in 32 bits there, or name "
            "another folder in DPEXPLORE_CACHE."
        ) from error
    except Exception as error:  # as many kinds as a file can be damaged in ways
        raise InputError(f"{name} is damaged or incomplete; download it again.") from error


def _read_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    if not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise InputError(f"{name} has no tokenizer; save the model's tokenizer into the same folder.")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ImportError as error:
        raise InputError(
            f"The tokenizer of {name} needs a Python package that is not installed: {in_short(error)}."
        ) from error
    except Exception as error:
        raise InputError(
            f"The tokenizer of {name} is damaged or of a kind that transformers cannot read; "
            "save it again as tokenizer.json."
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    safe = sorted(folder.glob("model*.safetensors"))
    return safe or sorted(folder.glob("pytorch_model*.bin"))


def _sha256(files: list[Path]) -> str:
    """One digest over the files' contents, in the order given."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
