"""What each causal architecture of transformers can be used for, as a table.

    python -m tests.benchmarks.architectures                 # all of them, some minutes on one core
    python -m tests.benchmarks.architectures gpt2 mamba      # some of them

Each is built tiny from its configuration, with random weights and a small byte-level tokenizer, saved, and loaded as
any folder: a prompt is captured, a soft prompt tuned for 3 steps, the floor computed, and a LoRA adapter trained
towards two strings. A cell says `yes`, or why not in the sentence that a user would read. Where transformers itself
builds no model from the configuration, the folder holds the configuration alone and loading it is to be refused too;
what transformers said stands at the end. Exit code 1 if anything raised what no user should see.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, logging
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import dpexplore as dp
from dpexplore.diffuse import AdapterConfig, AdapterRun
from dpexplore.targets import capture, strings
from tests.tiny_models import byte_level_tokenizer

CAUSAL: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
TRIES = ("capture", "tune", "floor", "LoRA")
MOST_PARAMETERS = 20_000_000
TINY: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "dim_model", "model_dim"), 32),
    **dict.fromkeys(("embedding_size", "word_embed_proj_dim", "lru_width", "attention_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"), 2),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "attention_num_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dff"), 48),
    **dict.fromkeys(("d_inner", "moe_intermediate_size", "shared_intermediate_size", "feed_forward_size"), 48),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "v_head_dim", "qk_rope_head_dim", "global_head_dim", "d_kv"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "vocab_size_per_layer_input_hidden", "laurel_rank"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "top_k", "num_experts_per_token", "moe_topk"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_source_positions"), 64),
    "max_target_positions": 64,
    "sliding_window": 16,
    "rotary_dim": 8,
    "hidden_size_per_layer_input": 8,
    "n_groups": 1,
    "n_group": 1,
    "topk_group": 1,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "state_size": 8,
    "initializer_range": 0.2,
    **dict.fromkeys(("image_token_id", "image_token_index", "video_token_id", "audio_token_id"), 0),
    "is_decoder": True,
}
"""Sizes by the names that configurations give them; a configuration takes those it has."""


_DOTS3_TEXT: dict[str, Any] = {
    **dict.fromkeys(("index_topk", "index_head_dim", "swa_q_lora_rank", "swa_kv_lora_rank"), 8),
    **dict.fromkeys(("swa_qk_nope_head_dim", "swa_v_head_dim"), 8),
    **dict.fromkeys(("index_n_heads", "swa_num_attention_heads", "swa_num_key_value_heads"), 4),
    **dict.fromkeys(("head_dim", "swa_head_dim"), 16),
    "shared_experts_intermediate_size": 48,
}
_QWEN4_TEXT: dict[str, Any] = {
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "indexer_head_dim", "hc_lowrank"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "indexer_n_heads"), 4),
    "indexer_kv_heads": 1,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "shared_expert_intermediate_size": 48,
}
_INKLING2: dict[str, Any] = {
    "unpadded_vocab_size": 340,
    "swa_head_dim": 8,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
}
_DRAFT: dict[str, dict[str, Any]] = {
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
        }
    },
}
"""What a configuration cannot be made without, at any size."""
OWN: dict[str, dict[str, Any]] = {
    "blt": {
        "encoder_hash_byte_group_vocab": 340,
        **{part: {"hidden_size_global": 32} for part in ("encoder_config", "decoder_config")},
    },
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "dots1": {"n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {
        "text_config": _DOTS3_TEXT,
        "vision_config": dict.fromkeys(("adapter_in_dim", "adapter_out_dim"), 32),
        "audio_config": dict.fromkeys(("adapter_input_size", "adapter_out_dim"), 32),
    },
    "dots3_note_text": _DOTS3_TEXT,
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma4_assistant": {"text_config": _DRAFT["gemma4_assistant"]["text_config"]},
    "inkling2_loop_text": _INKLING2,
    "inkling2_text": _INKLING2,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "qwen4_exp": {"text_config": _QWEN4_TEXT},
    "qwen4_exp_text": _QWEN4_TEXT,
    "zamba": {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "mamba_dt_rank": 4,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "prophetnet": {"num_hidden_layers": None},
    "reformer": {"axial_pos_embds_dim": (8, 24), "axial_pos_shape": (8, 8)},
    "zaya": {"num_experts_per_tok": 1},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "layer_types": ["full_attention"] * 2,
        "activation_sparsity_pattern": [0.0, 0.0],
        "vocab_size_per_layer_input": 340,
        "altup_num_inputs": 2,
    },
    "roc_bert": {
        "pronunciation_vocab_size": 8,
        "shape_vocab_size": 8,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
}
"""What some of them need beside."""


@dataclass
class Tried:
    """What came of one architecture."""

    name: str
    cells: dict[str, str] = field(default_factory=dict)
    """Of `TRIES`: `yes`, or a sentence."""
    unbuilt: str = ""
    """Why transformers does not give it, in its own words."""
    broken: list[str] = field(default_factory=list)
    """What raised something other than a sentence."""


def settable(config: PretrainedConfig, name: str) -> bool:
    """Whether a configuration has an entry that it lets one set: some of them are computed from others."""
    name = config.attribute_map.get(name, name)
    try:
        getattr(config, name)
    except Exception:  # a property that refuses to be read
        return False
    return not isinstance(getattr(type(config), name, None), property)


def sizes_of(config: PretrainedConfig) -> dict[str, Any]:
    """The entries of `TINY` that a configuration has under names that it lets one set."""
    found = {
        name: value
        for name, value in TINY.items()
        if settable(config, name) and not isinstance(getattr(config, name), list | tuple | dict)
    }
    if "kv_lora_rank" in found:  # latent attention has as many keys as queries
        found["num_key_value_heads"] = found.get("num_attention_heads", 4)
    for name in ("layer_types", "layers_block_type", "mlp_layer_types"):
        kinds = getattr(config, name, None)
        if isinstance(kinds, list) and settable(config, name):
            found[name] = [*dict.fromkeys(kinds), kinds[-1]][:2]
    return found


def tiny_sizes(config: PretrainedConfig, own: dict[str, Any]) -> dict[str, Any]:
    """Small sizes for a configuration and for every one inside it: a model that sees has one for its text.

    own: what this architecture needs beside, nested in the same way; a None leaves the configuration's own value.
    """
    sizes = sizes_of(config) | dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1)
    sizes["vocab_size"] = len(byte_level_tokenizer())
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            sizes[name] = {"model_type": part.model_type} | tiny_sizes(part, own.get(name, {}))
    sizes |= {name: value for name, value in own.items() if name not in config.sub_configs}
    return {name: value for name, value in sizes.items() if value is not None}


def tiny_config(model_type: str) -> PretrainedConfig:
    """The configuration of an architecture with small sizes under whatever names it has for them."""
    full = AutoConfig.for_model(model_type, **_DRAFT.get(model_type, {}))
    return AutoConfig.for_model(model_type, **tiny_sizes(full, OWN.get(model_type, {})))


def build(model_type: str, folder: Path) -> None:
    """Save the tiny model. Whatever transformers raises if it cannot."""
    config = tiny_config(model_type)
    with torch.device("meta"):
        size = sum(each.numel() for each in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"It has {size:,} parameters where its text model is tiny.")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    if type(model.config) is not type(config):  # it keeps its text part's, in which no such model is published
        config.save_pretrained(folder)


def attempt(work: Callable[[], object]) -> tuple[str, str | None]:
    """What a cell says, and what was raised that no user should see."""
    try:
        said = work()
    except dp.InputError as refusal:
        return str(refusal), None
    except Exception as error:  # what this command is there to find
        return "broken", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return said if isinstance(said, str) else "yes", None


def try_out(model_type: str) -> Tried:
    """Build, save and load an architecture, and try everything on it."""
    tried = Tried(model_type)
    with tempfile.TemporaryDirectory() as folder:
        try:
            tiny_config(model_type).save_pretrained(folder)
            byte_level_tokenizer().save_pretrained(folder)
            build(model_type, Path(folder))
        except Exception as error:  # where transformers gives no such model, its configuration is to be refused
            tried.unbuilt = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        try:
            lm = dp.load_model(folder, device="cpu")
        except dp.InputError as refusal:
            tried.cells["load"] = str(refusal).replace(folder, "The model")
            return tried
        except Exception as error:
            tried.broken.append(f"load: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return tried
        if tried.unbuilt:
            tried.broken.append(f"load: loaded though it could not be built ({tried.unbuilt})")

        def tuned() -> None:
            result = dp.tune(
                lm, dp.entropy(bits=3, seed=0).build(lm), dp.TuneConfig(length=2, restarts=1, steps=3)
            ).result
            if result.steps != 3:
                raise RuntimeError(f"{result.steps} steps were made")

        def floored() -> None:
            found = dp.softmax_floor(lm, dp.entropy(bits=3, seed=0).build(lm))
            if not found.lower_bound_nats <= found.kl_nats:
                raise RuntimeError("the floor lies above what is reached")

        def adapted() -> str:
            target = strings({"a": 1, "b": 1}, request="I love").build(lm)
            run = AdapterRun(lm, [target], AdapterConfig(passes=2, learning_rate=1e-2)).finish()
            first, last = (step.loss_nats for step in run.steps)
            if not last < first:
                raise RuntimeError(f"the loss went from {first} to {last} nats")
            return "yes"

        works = (lambda: capture("I love").build(lm) and None, tuned, floored, adapted)
        for name, work in zip(TRIES, works, strict=True):
            said, raised = attempt(work)
            tried.cells[name] = said.replace(folder, "the model")
            if raised is not None:
                tried.broken.append(f"{name}: {raised}")
    return tried


def table(found: Sequence[Tried]) -> Iterator[str]:
    """The table in Markdown, its reasons numbered, and what is not in it."""
    reasons: dict[str, int] = {}
    yield f"| architecture | {' | '.join(TRIES)} |"
    yield "|---" * (1 + len(TRIES)) + "|"
    for each in found:
        refused = each.cells.get("load")
        cells = [refused or each.cells.get(name, "broken") for name in TRIES]
        marks = [
            cell if cell in ("yes", "broken") else f"[{reasons.setdefault(cell, 1 + len(reasons))}]" for cell in cells
        ]
        yield f"| {each.name} | {' | '.join(marks)} |"
    yield ""
    yield from (f"{number}. {reason[:1].upper()}{reason[1:]}" for reason, number in reasons.items())
    whole = sum(set(each.cells.values()) == {"yes"} for each in found)
    built = sum(not each.unbuilt for each in found)
    yield f"\n{built} of {len(found)} architectures were built; {whole} of them can do everything."
    yield from (f"- {each.name}: transformers does not build it ({each.unbuilt})" for each in found if each.unbuilt)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", help="transformers' names; default: all causal ones")
    asked = parser.parse_args(arguments).architectures or CAUSAL
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    found = []
    for number, name in enumerate(asked, 1):
        found.append(try_out(name))
        print(f"{number} of {len(asked)}: {name} {found[-1].broken or ''}", file=sys.stderr, flush=True)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}\n")
    print("\n".join(table(found)))
    broken = [f"{each.name}: {line}" for each in found for line in each.broken]
    print("\n".join(broken), file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
