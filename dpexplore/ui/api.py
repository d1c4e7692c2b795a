"""Named endpoints for programs: /models, /target, /floor, /single_token, /reach, /reach_all, /tune.

What they are given is checked here, not by Gradio.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import gradio as gr
import torch
from anyio import to_thread
from gradio.events import api

from dpexplore.errors import InputError
from dpexplore.floor.reach import reach, words_of
from dpexplore.serving.app_context import AppContext, sentence
from dpexplore.serving.live_run import LiveRun
from dpexplore.serving.reach import ANSWER_SECONDS, listing
from dpexplore.tuning import TuneConfig
from dpexplore.tuning.record.schema import ResultRecord, StepRecord
from dpexplore.tuning.single_token import best_single_token, score_tokens
from dpexplore.ui.components.floor_panel import SCORING
from dpexplore.ui.components.reach_panel import LISTING
from dpexplore.ui.visitor import program_session

TOP_TOKENS = 20
TOO_LONG_FOR_AGENTS = ("capsule", "u")


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
        for info in app.offered()
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


def floor_endpoint(app: AppContext, model: str, recipe: str, session: str = "") -> dict[str, Any]:
    name = _name(app, model)
    lm = app.pool.load(name).lm
    floor = app.wait_for_floor(session, lm, app.target(name, _text("recipe", recipe)))
    return {
        "lower_bound_nats": floor.lower_bound_nats,
        "kl_nats": floor.kl_nats,
        "head_optimum_nats": floor.head_optimum_nats,
        "unconstrained_kl_nats": floor.unconstrained_kl_nats,
        "status": floor.status,
        "seconds": floor.seconds,
    }


def single_token_endpoint(app: AppContext, model: str, recipe: str) -> Iterator[dict[str, Any]]:
    """Rows that say how far it is and what is left; the last one has `done` and the best prompt of one token."""
    name = _name(app, model)
    lm = app.pool.load(name).lm
    target = app.target(name, _text("recipe", recipe))
    app.check_scoring(lm)
    for now in score_tokens(lm):
        yield {"done": False, "share": now.share, "seconds_left": now.seconds_left}
    yield {"done": True, **vars(best_single_token(lm, target))}


def reach_endpoint(app: AppContext, model: str, first: str, order: str) -> dict[str, Any]:
    """As `dpexplore reach --json` prints it."""
    if bool(first) == bool(order):
        raise InputError("Name one of `first` and `order`.")
    words = [_text("first", first)] if first else words_of(_text("order", order))
    if app.rules:
        app.rules.check_text("The text", first or order)
    return reach(app.pool.load(_name(app, model)).lm, words, seconds=ANSWER_SECONDS).record()


def reach_all_endpoint(app: AppContext, model: str) -> Iterator[dict[str, Any]]:
    """Rows that say how far it is; the last one has `done` and the records of all tokens that can never come first."""
    for now in listing(app.pool.load(_name(app, model)).lm):
        row = {"done": now.done, "decided": now.decided, "total": now.total, "undecided": now.undecided}
        yield row | {"cannot": now.unsayable if now.done else [record["ids"][0] for record in now.unsayable]}


async def tune_endpoint(
    app: AppContext, model: str, recipe: str, config: TuneConfig, session: str = "program"
) -> AsyncGenerator[dict[str, Any]]:
    """Rows `{"event": "step", …}`, then one `{"event": "result", …}`, as the command line prints them.

    The run stops when its caller disconnects. InputError if it cannot begin, or failed.
    """
    live = await to_thread.run_sync(_begin, app, session, _name(app, model), _text("recipe", recipe), config)
    async with aclosing(live.rows()) as views:
        async for view in views:
            if view.result is not None:
                yield {
                    "event": "result",
                    "run": live.id,
                    **ResultRecord.of(view.result).model_dump(),
                    "capsule": view.result.capsule,
                }
            elif view.step is not None:
                yield {"event": "step", "run": live.id, **StepRecord.of(view.step).model_dump()}
    if live.run.error is not None:
        raise live.run.error


def _begin(app: AppContext, session: str, model: str, recipe: str, config: TuneConfig) -> LiveRun:
    app.pool.load(model)
    return app.begin(session, model, recipe, config, grace_seconds=0.0, floor_lines=False)


def tune_config(preset: str, settings: Any, **numbers: Any) -> TuneConfig:
    """A preset, the endpoint's own arguments where they are given, and further fields of `TuneConfig` over both."""
    if settings is not None and not isinstance(settings, dict):
        raise InputError(f"`settings` is {settings!r}; use an object of TuneConfig's fields.")
    asked = {name: value for name, value in numbers.items() if value not in (None, "")}
    return TuneConfig.from_dict({**TuneConfig.preset(preset, **asked).to_dict(), **(settings or {})})


def add_endpoints(app: AppContext) -> None:
    """Publish the endpoints on the page that is being built."""

    def models(request: gr.Request) -> list[dict[str, Any]]:
        """The curated models: parameters, vocabulary, memory needed and present."""
        return _answer(request, lambda: models_endpoint(app))

    def target(request: gr.Request, recipe: str, model: str = "") -> dict[str, Any]:
        """Build a target distribution over next tokens: its entropy and its most probable tokens.

        Args:
            recipe: such as `capture("I love")`, `entropy(bits=7, seed=0)` or `tokens({" yes": 0.7, " no": 0.3})`
            model: name, Hub id or folder; empty: the page's own
        """
        return _answer(request, lambda: target_endpoint(app, model, recipe))

    def floor(request: gr.Request, recipe: str, model: str = "") -> dict[str, Any]:
        """The certified floor: no prompt, of any length, brings the model closer to the target, in nats of KL(p‖q).

        Args:
            recipe: the target, such as `entropy(bits=10, seed=0)`
            model: name, Hub id or folder; empty: the page's own
        """
        return _answer(request, lambda: floor_endpoint(app, model, recipe, program_session(app, request)))

    def single_token(request: gr.Request, recipe: str, model: str = "") -> Iterator[dict[str, Any]]:
        """The best prompt of one token, exact: every token is scored, which takes minutes, once for a model.

        Args:
            recipe: the target, such as `entropy(bits=10, seed=0)`
            model: name, Hub id or folder; empty: the page's own
        """
        try:
            for row in single_token_endpoint(app, model, recipe):
                yield _told(request, row)
        except Exception as error:
            raise gr.Error(sentence(error), print_exception=False) from None

    def reach(request: gr.Request, first: str = "", order: str = "", model: str = "") -> dict[str, Any]:
        """Can a word ever be the model's likeliest next token, or words the likeliest in an order? With the proof.

        Args:
            first: one token, such as ` the` (its space counts); leave `order` empty then
            order: tokens separated by commas, such as ` the, a, an`
            model: name, Hub id or folder; empty: the page's own
        """
        return _answer(request, lambda: reach_endpoint(app, model, first, order))

    def reach_all(request: gr.Request, model: str = "") -> Iterator[dict[str, Any]]:
        """List the tokens that no prompt can make the likeliest; a whole vocabulary takes a minute or more, once.

        Args:
            model: name, Hub id or folder; empty: the page's own
        """
        try:
            for row in reach_all_endpoint(app, model):
                yield _told(request, row)
        except Exception as error:
            raise gr.Error(sentence(error), print_exception=False) from None

    api(models, api_name="models", concurrency_limit=None)
    api(reach, api_name="reach", concurrency_limit=None)
    api(reach_all, api_name="reach_all", concurrency_id=LISTING, concurrency_limit=1)
    api(target, api_name="target", concurrency_limit=None)
    api(floor, api_name="floor", concurrency_limit=None)
    api(single_token, api_name="single_token", concurrency_id=SCORING, concurrency_limit=1)
    _add_tune(app)


def _add_tune(app: AppContext) -> None:
    async def tune(
        request: gr.Request,
        recipe: str,
        method: str = "soft",
        length: int | None = None,
        restarts: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        slots: str = "",
        model: str = "",
        preset: str = "paper",
        settings: dict[str, Any] | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Tune a prompt towards a target; yields one small row for each update and the result as the last one.

        Args:
            recipe: the target, such as `capture("I love")` or `entropy(bits=7, seed=0)`
            method: soft, hard or hybrid
            length: number of virtual tokens; empty: the preset's
            restarts: independent beginnings, of which the best is kept; empty: the preset's
            steps: most steps of each restart; empty: the preset's
            seed: of the beginnings and the search
            slots: for hybrid prompts, such as `"Q:" soft*3 hard*2`
            model: name, Hub id or folder; empty: the page's own
            preset: paper, fast or thorough
            settings: further fields of TuneConfig, such as {"patience": 50}
        """
        try:
            numbers = {"length": length, "restarts": restarts, "steps": steps, "seed": seed, "slots": slots}
            config = tune_config(preset, settings, method=method, **numbers)
            async with aclosing(tune_endpoint(app, model, recipe, config, program_session(app, request))) as rows:
                async for row in rows:
                    yield _told(request, row)
        except Exception as error:
            raise gr.Error(sentence(error), print_exception=False) from None

    api(tune, api_name="tune", concurrency_limit=None)


def _answer(request: gr.Request, make: Callable[[], Any]) -> Any:
    try:
        return _told(request, make())
    except Exception as error:
        raise gr.Error(sentence(error), print_exception=False) from None


def _told(request: gr.Request, answer: Any) -> Any:
    """An answer as its asker reads it.

    An agent gets JSON, since MCP carries text, and neither capsule nor u, which would take thousands of its tokens.
    """
    if request.headers.get("x-gradio-user") != "mcp":
        return answer
    if isinstance(answer, dict):
        answer = {name: value for name, value in answer.items() if name not in TOO_LONG_FOR_AGENTS}
    return json.dumps(answer, ensure_ascii=False)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"`{name}` is {value!r}; use a text.")
    return value


def _name(app: AppContext, model: object) -> str:
    return app.model if model in ("", None) else _text("model", model).strip()
