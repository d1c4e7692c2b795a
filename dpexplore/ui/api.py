"""Named endpoints for programs: /models, /target, /floor, /tune. What they are given is checked here, not by Gradio."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import gradio as gr
import torch
from gradio.events import api

from dpexplore.errors import InputError
from dpexplore.models import describe_models
from dpexplore.tuning import TuneConfig
from dpexplore.ui.context import AppContext, sentence
from dpexplore.ui.tune_panel import start_run

TOP_TOKENS = 20


def models_endpoint(app: AppContext) -> list[dict[str, Any]]:
    return [
        {
            "name": info.name,
            "hub_id": info.hub_id,
            "parameters": info.parameters,
            "vocab_size": info.vocab_size,
            "bytes_needed": info.bytes_needed,
            "bytes_present": info.bytes_present,
            "gated": info.gated,
            "loaded": app.pool.is_loaded(info.name),
        }
        for info in describe_models()
    ]


def target_endpoint(app: AppContext, model: str, recipe: str) -> dict[str, Any]:
    name = _name(app, model)
    entry = app.pool.load(name)
    target = app.target(name, _text("recipe", recipe))
    values, ids = torch.topk(target.probs, min(TOP_TOKENS, target.vocab_size))
    return {
        "vocab_size": target.vocab_size,
        "entropy_bits": target.entropy_bits,
        "entropy_nats": target.entropy_nats,
        "recipe": target.recipe,
        "provenance": target.provenance,
        "top": [
            {"id": int(i), "token": entry.lm.token_text(int(i)), "p": float(p)}
            for p, i in zip(values.tolist(), ids.tolist(), strict=True)
        ],
    }


def floor_endpoint(app: AppContext, model: str, recipe: str) -> dict[str, Any]:
    name = _name(app, model)
    lm = app.pool.load(name).lm
    floor = app.floors.start(lm, app.target(name, _text("recipe", recipe))).result()
    return {
        "lower_bound_nats": floor.lower_bound_nats,
        "kl_nats": floor.kl_nats,
        "head_optimum_nats": floor.head_optimum_nats,
        "unconstrained_kl_nats": floor.unconstrained_kl_nats,
        "status": floor.status,
        "seconds": floor.seconds,
    }


def tune_endpoint(
    app: AppContext, model: str, recipe: str, method: str, slots: str, length: int, restarts: int, steps: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Rows `{"event": "step", …}`, then one `{"event": "result", …}`, as the command line prints them."""
    name = _name(app, model)
    app.pool.load(name)
    config = TuneConfig.preset(
        "paper", method=method, slots=slots or None, length=length, restarts=restarts, steps=steps, seed=seed
    )
    session = f"api {uuid.uuid4().hex}"
    for view in start_run(app, session, name, _text("recipe", recipe), config):
        if view.result is None:
            if view.step is not None:
                yield {
                    "event": "step",
                    "step": view.step.step,
                    "kl_nats": view.step.kl_nats,
                    "entropy_nats": view.step.entropy_nats,
                }
        else:
            result = view.result
            yield {
                "event": "result",
                "status": result.status,
                "kl_nats": result.kl_nats,
                "kl_nats_per_restart": result.kl_nats_per_restart,
                "entropy_nats": result.entropy_nats,
                "target_entropy_nats": result.target_entropy_nats,
                "slots": result.slots,
                "prompt_ids": result.prompt_ids,
                "prompt_text": result.prompt_text,
                "kl_reencoded_nats": result.kl_reencoded_nats,
                "capsule": result.capsule,
            }


def add_endpoints(app: AppContext) -> None:
    """Publish the endpoints on the page that is being built."""

    def models() -> list[dict[str, Any]]:
        """The curated models: parameters, vocabulary, memory needed and present."""
        return _answer(lambda: models_endpoint(app))

    def target(recipe: str, model: str = "") -> dict[str, Any]:
        """Build a target from its recipe: entropy and the most probable tokens. `model` empty: the page's own."""
        return _answer(lambda: target_endpoint(app, model, recipe))

    def floor(recipe: str, model: str = "") -> dict[str, Any]:
        """The certified floor: no prompt of any length brings the model closer to the target, in nats."""
        return _answer(lambda: floor_endpoint(app, model, recipe))

    def tune(
        recipe: str,
        method: str = "soft",
        length: int = 5,
        restarts: int = 5,
        steps: int = 500,
        seed: int = 0,
        slots: str = "",
        model: str = "",
    ) -> Iterator[dict[str, Any]]:
        """Tune a prompt towards a target; yields one small row for each update and the result as the last one."""
        try:
            yield from tune_endpoint(app, model, recipe, method, slots, length, restarts, steps, seed)
        except Exception as error:
            raise gr.Error(sentence(error), print_exception=False) from None

    api(models, api_name="models", concurrency_limit=None)
    api(target, api_name="target", concurrency_limit=None)
    api(floor, api_name="floor", concurrency_limit=None)
    api(tune, api_name="tune", concurrency_limit=None)


def _answer(make: Any) -> Any:
    try:
        return make()
    except Exception as error:
        raise gr.Error(sentence(error), print_exception=False) from None


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"`{name}` is {value!r}; a text is accepted.")
    return value


def _name(app: AppContext, model: object) -> str:
    return app.model if model in ("", None) else _text("model", model).strip()
