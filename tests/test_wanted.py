"""Work that nobody waits for ends: every long piece of it asks, and gives up at the first no."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import spacy
import torch
from torch import nn

from dpexplore import parse_recipe
from dpexplore.floor.reach import reach, reach_each
from dpexplore.models import LanguageModel
from dpexplore.models.interruption import prepare
from dpexplore.serving import model_pool
from dpexplore.serving.floors import Floors
from dpexplore.serving.model_pool import ModelPool
from dpexplore.serving.run_view import capsule_view
from dpexplore.targets import Target, pos_tagger
from dpexplore.tuning import TuneConfig, single_token, tune
from dpexplore.tuning.init import lookup
from dpexplore.wanted import NotWanted, check_wanted, while_asking, while_wanted

TinyLM = Callable[[str], LanguageModel]


class Client:
    """A client that disconnects after `patience` questions."""

    def __init__(self, patience: int) -> None:
        self.patience, self.asked = patience, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked <= self.patience


def asks(work: Callable[[], object]) -> int:
    """How often a piece of work asks when it may go on to its end; it asks no more once the answer was no."""
    stays = Client(10**9)
    with while_wanted(stays):
        work()
    for patience in {0, stays.asked // 2, stays.asked - 1}:
        leaves = Client(patience)
        with while_wanted(leaves), pytest.raises(NotWanted):
            work()
        assert leaves.asked == patience + 1
    return stays.asked


@pytest.fixture(scope="module")
def lm(tiny_lm: TinyLM) -> LanguageModel:
    lm = tiny_lm("llama")
    prepare(lm)
    return lm


@pytest.mark.parametrize(
    ("recipe", "least"),
    [
        ("entropy(bits=3)", 10),
        ("entropy(bits=3, outliers=2)", 2),
        ('entropy(bits=3, method="temperature")', 3),
        ("entropy(bits=3).matched(seed=1)", 10),
        ('capture("I love the sea")', 2),
        ("random_prompt(length=5)", 2),
        ('order("a", "b")', 1),
        ('tokens({"a": 1})', 1),
    ],
)
def test_building_a_target_ends_when_nobody_waits_for_it(lm: LanguageModel, recipe: str, least: int) -> None:
    assert asks(lambda: parse_recipe(recipe).build(lm)) >= least


def test_a_capture_asks_before_each_layer(lm: LanguageModel) -> None:
    layers = max((each for each in lm.model.modules() if isinstance(each, nn.ModuleList)), key=len)
    assert asks(lambda: parse_recipe('capture("I love the sea")').build(lm)) == len(layers)


def test_reading_a_table_ends_when_nobody_waits_for_it(lm: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("id,p\n" + "".join(f"{number},1\n" for number in range(300)) + "\n" * 3000)
    assert asks(lambda: parse_recipe(f'file("{path}")').build(lm)) >= 4


def test_tagging_words_ends_when_nobody_waits_for_it() -> None:
    tagger = pos_tagger.Tagger(spacy.blank("en"), "blank", "0")
    assert asks(lambda: tagger._votes(["sea"] * 3000, *pos_tagger._FRAMES[0])) == 3


def test_reach_ends_when_nobody_waits_for_it(lm: LanguageModel) -> None:
    assert asks(lambda: reach(lm, "a")) >= 1
    assert asks(lambda: list(reach_each(lm, range(lm.vocab_size)))) >= 2


def test_scoring_every_token_ends_when_nobody_waits_for_it(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    target = parse_recipe("entropy(bits=3)").build(lm)
    for name in ("_known", "_under_way"):  # other tests of this process may have measured the same model
        monkeypatch.setattr(lookup, name, WeakKeyDictionary())
    monkeypatch.setattr(lookup, "_keep", lambda *_: None)
    monkeypatch.setattr(lookup, "_read", lambda *_: None)
    measured = []

    def measure(*arguments: Any, **named: Any) -> float:
        measured.append(1)
        return real(*arguments, **named)

    real = single_token.measure_more
    monkeypatch.setattr(single_token, "measure_more", measure)
    with while_wanted(Client(0)), pytest.raises(NotWanted):
        single_token.best_single_token(lm, target)
    assert len(measured) == 1  # one batch of them
    single_token.best_single_token(lm, target)
    assert asks(lambda: single_token.best_single_token(lm, target)) >= 1  # of those that the table leaves


def test_scoring_a_capsule_ends_when_nobody_waits_for_it(lm: LanguageModel) -> None:
    target = parse_recipe("entropy(bits=3)").build(lm)
    config = TuneConfig(method="hard", length=2, restarts=1, steps=2)
    capsule = tune(lm, target, config).result.capsule
    few = asks(lambda: capsule_view(lm, target, capsule))
    for row in ("kl_nats", "entropy_nats"):  # a long history is drawn again, a part after the other
        capsule["history"][row] *= 3000
    assert few >= 4
    assert asks(lambda: capsule_view(lm, target, capsule)) > few


def test_a_model_that_nobody_waits_for_any_more_takes_no_thread(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_pool, "LOOK_SECONDS", 0.001)
    hold = threading.Event()
    pool = ModelPool(lambda _name, progress: hold.wait(30) and lm)  # type: ignore[arg-type,return-value]
    leaves = Client(2)
    with while_wanted(leaves), pytest.raises(NotWanted):
        pool.load("tiny")
    assert leaves.asked == 3
    hold.set()
    assert pool.load("tiny").lm is lm  # others wait for the same load
    pool.close()


def test_a_floor_ends_with_its_last_reader(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work stops at its next bound once the last reader has left; a later reader starts it again."""
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def solve(_lm: LanguageModel, target: Target, start: Any, report: Any) -> Any:
        begun.set()
        try:
            while not go_on.wait(0.001):
                report(0.5, torch.zeros(1))
        finally:
            ended.set()
        return found

    found: Any = type("Found", (), {"point": torch.zeros(1)})()
    floors = Floors(solve)
    target = parse_recipe("entropy(bits=3)").build(lm)
    with while_wanted(Client(3)), pytest.raises(NotWanted):
        list(floors.rising(lm, target))
    assert begun.wait(30)
    assert ended.wait(30)
    monkeypatch.setattr("dpexplore.serving.floors.ASKED_SECONDS", 0.0)  # nobody asks again
    ended.clear()
    assert isinstance(floors.start(lm, target).exception(30), NotWanted)
    go_on.set()
    assert list(floors.rising(lm, target))[-1] is found
    floors.close()


def test_all_who_may_say_no_are_asked() -> None:
    with while_wanted(lambda: True):
        check_wanted()
        with while_wanted(lambda: False), pytest.raises(NotWanted):
            check_wanted()
        check_wanted()
    asked = Client(10**9)
    with while_wanted(asked):
        assert list(while_asking(range(25), 10)) == list(range(25))
    assert asked.asked == 3
