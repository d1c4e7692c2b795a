"""What the manifest lets visitors do, and the server around the page, without a network."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HFValidationError

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.serving.model_pool import ModelPool
from dpexplore.space import VisitorRules, load_manifest
from dpexplore.space import visitors as visitors_module
from dpexplore.space.visitors import this_machine
from dpexplore.targets import parse_recipe
from dpexplore.tuning import TuneConfig
from dpexplore.ui.components.string_runs import Running
from dpexplore.ui.server import JsonLines


@pytest.fixture
def rules() -> VisitorRules:
    return VisitorRules(load_manifest(), "cpu")


@pytest.fixture
def open_rules(rules: VisitorRules) -> VisitorRules:
    """Where any model of the Hub may be asked for."""
    models = rules.manifest.models.model_copy(update={"any_hub_model": True, "max_parameters": 1000})
    return VisitorRules(rules.manifest.model_copy(update={"models": models}), "cpu")


def hub_of(monkeypatch: pytest.MonkeyPatch, **info: Any) -> list[Any]:
    """The Hub's answer about any model; the list notes who asked."""
    asked: list[Any] = []
    known = {"private": False, "gated": False, "tags": [], "safetensors": SimpleNamespace(total=10)} | info

    class Api:
        def __init__(self, token: Any) -> None:
            asked.append(token)

        def model_info(self, hub_id: str, timeout: float) -> Any:
            if "raises" in info:
                raise info["raises"]
            return SimpleNamespace(**known)

    monkeypatch.setattr(visitors_module, "HfApi", Api)
    return asked


def test_listed_models_need_no_hub(rules: VisitorRules, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub_of(monkeypatch)
    for name in rules.manifest.models.allowed:
        rules.check_model(name)
    with pytest.raises(InputError, match="own list"):
        rules.check_model("Qwen/Qwen2.5-0.5B")
    assert asked == []


def test_other_models_are_looked_at_before_anything_is_fetched(
    open_rules: VisitorRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = hub_of(monkeypatch)
    open_rules.check_model("some/model")
    assert asked == [False]  # never with the owner's token
    for name in ("../etc/passwd", "/etc/passwd", "a/b/c", "random:gpt2", "some/model.gguf/..", "a" * 200 + "/b", ""):
        with pytest.raises(InputError, match="Hub id"):
            open_rules.check_model(name)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("info", "told"),
    [
        ({"private": True}, "open to everybody"),
        ({"gated": "manual"}, "open to everybody"),
        ({"tags": ["custom_code"]}, "code of its own"),
        ({"safetensors": None}, "safetensors"),
        ({"safetensors": SimpleNamespace(total=1001)}, "at most"),
        ({"raises": HFValidationError("x")}, "cannot be reached"),
        ({"raises": ConnectionError()}, "cannot be reached"),
    ],
)
def test_models_that_strangers_may_not_load(
    open_rules: VisitorRules, monkeypatch: pytest.MonkeyPatch, info: dict[str, Any], told: str
) -> None:
    hub_of(monkeypatch, **info)
    with pytest.raises(InputError, match=told):
        open_rules.check_model("some/model")


def test_the_pool_fetches_nothing_that_is_not_permitted(rules: VisitorRules) -> None:
    fetched: list[str] = []

    def loader(name: str, progress: Any) -> LanguageModel:
        fetched.append(name)
        raise InputError("no network")

    pool = ModelPool(loader, rules.check_model)
    with pytest.raises(InputError, match="own list"):
        pool.load("evil/model")
    assert fetched == []
    with pytest.raises(InputError, match="no network"):
        pool.load("gpt2")
    assert fetched == ["gpt2"]


def test_presets_are_within_the_limits(rules: VisitorRules, tiny_lm: Any) -> None:
    lm = tiny_lm("llama")
    for machine in ("cpu", "gpu", "zero"):
        for preset in ("paper", "fast"):
            for method in ("soft", "hard"):
                bounded = VisitorRules(rules.manifest, machine).bounded(lm, TuneConfig.preset(preset, method=method))
                assert bounded.seconds == rules.manifest.limits[machine].seconds
    assert rules.bounded(lm, TuneConfig(seconds=7)).seconds == 7
    assert rules.bounded(lm, TuneConfig(seconds=10**6)).seconds == rules.limits.seconds


def test_recipes_are_walked_to_their_ends(rules: VisitorRules) -> None:
    rules.check_recipe(parse_recipe('capture("I love").shuffle(seed=1)'))
    for text, told in {
        'entropy(bits=3).mix(capture("x", model="evil/model"), 0.5)': "own list",
        'random_prompt(length=3, model="/etc").temperature(2)': "own list",
        "random_prompt(length=1000)": "at most",
        f'capture("{"a" * 30_000}")': "at most",
    }.items():
        with pytest.raises(InputError, match=told):
            rules.check_recipe(parse_recipe(text))


def test_watermarks_refuse_runs_in_a_sentence(rules: VisitorRules, monkeypatch: pytest.MonkeyPatch) -> None:
    rules.check_room(0)
    with pytest.raises(InputError, match="as many as fit"):
        rules.check_room(rules.manifest.server.runs)
    with monkeypatch.context() as patch:
        patch.setattr(visitors_module, "memory_present", lambda _device: 2**20)
        with pytest.raises(InputError, match="short of memory"):
            rules.check_room(0)
    monkeypatch.setattr(visitors_module, "free_disk", lambda: 2**20)
    with pytest.raises(InputError, match="short of disk"):
        rules.check_room(0)


def test_a_visitor_has_a_share_of_the_runs_and_never_all_of_them(rules: VisitorRules) -> None:
    server = rules.manifest.server
    assert server.runs_per_visitor * server.visitors_per_address > server.runs // 2  # so half is what binds
    rules.check_room(server.runs - 1, server.runs_per_visitor - 1, server.runs // 2 - 1)
    for own in ((server.runs_per_visitor, 0), (0, server.runs // 2)):
        with pytest.raises(InputError, match="a visitor's share"):
            rules.check_room(server.runs - 1, *own)


def test_the_machine_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert this_machine() == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert this_machine() == "gpu"
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert this_machine() == "zero"


def test_strangers_train_one_adapter_at_a_time() -> None:
    running = Running()
    with running.training(alone=True):
        with pytest.raises(InputError, match="Another visitor"), running.training(alone=True):
            pass
        with running.training(alone=False):
            pass
    with running.training(alone=True):
        pass


# The server around the page.


def test_log_lines_are_json_and_hold_no_words_of_visitors() -> None:
    for with_text in (False, True):
        formatter = JsonLines(with_text=with_text)
        try:
            raise ValueError("private words")
        except ValueError as error:
            info = (type(error), error, error.__traceback__)
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "loading %s failed", ("private words",), info)
        line = json.loads(formatter.format(record))
        assert line["error"] == "ValueError"
        assert Path(__file__).name in line["at"][-1]
        assert ("private" in json.dumps(line)) is with_text
