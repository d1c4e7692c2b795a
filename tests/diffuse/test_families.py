"""Prompts, families, and what training on one does to another."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dpexplore as dp
from dpexplore.diffuse.config import AdapterConfig
from dpexplore.diffuse.families import FAMILIES, SIZES, family
from dpexplore.diffuse.generalise import generalise, interval
from dpexplore.diffuse.prompts import fill_slots, prompt_config
from dpexplore.models import LanguageModel
from dpexplore.targets import strings
from dpexplore.tuning import Slots
from tests.diffuse.shared import TinyLm


def test_slots_stand_around_the_request(default_lm: LanguageModel) -> None:
    request = 'Say "yes" or "no"\nnow: request it'
    filled = fill_slots('soft*3 request " request " hard*2', request)
    assert Slots.parse(filled).items[1].text == request
    assert Slots.parse(filled).items[2].text == " request "
    config = prompt_config(default_lm, strings(["a"], request="Say a."), "soft", restarts=1)
    assert config.chat
    assert config.slots == '"Say a." soft*5'


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_is_a_target(default_lm: LanguageModel, name: str, size: str) -> None:
    tasks = family(name, size)  # type: ignore[arg-type]
    assert tasks == family(name, size)  # type: ignore[arg-type]
    for task in tasks:
        target = task.strings.build(default_lm)
        assert target.weights.sum() == pytest.approx(1)
        assert (target.weights > 0).sum() >= 7
        trained = target.weights[target.weights > 0]
        assert trained.max() == pytest.approx(float(trained.min()))


def test_the_lists_are_the_worlds() -> None:
    outcomes = {task.name: set(task.strings.texts) for name in FAMILIES for task in family(name, "full")}
    assert {"{France}", "{Italy}"} <= outcomes["europe"]
    assert {"{Fiji}", "{Samoa}"} <= outcomes["oceania"]
    assert outcomes["primes"] == {f"{{{n}}}" for n in range(2, 101) if all(n % d for d in range(2, n))}
    assert len(outcomes["february"]) == 29
    assert len(outcomes["africa"]) == 54
    with pytest.raises(dp.InputError, match="no family"):
        family("colours")


def test_leave_one_out_trains_on_the_others_alone(tiny_lm: TinyLm, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    small = {"a": ["sea", "shore"], "b": ["fox", "dog"], "c": ["lazy", "quick"]}
    monkeypatch.setattr(
        "dpexplore.diffuse.generalise.family",
        lambda name, size: [type(family("fruits")[0])(name, strings(small[name], request="The"))],
    )
    config = AdapterConfig(learning_rate=0.02, passes=4)
    cells = list(generalise(lm, families=list(small), config=config, seeds=(0, 1)))
    by_place = {(cell.mode, cell.trained, cell.tested): cell for cell in cells}
    assert set(by_place) == (
        {("untuned", (), name) for name in small}
        | {("leave-one-out", tuple(other for other in small if other != name), name) for name in small}
        | {("leave-one-in", (name,), tested) for name in small for tested in small}
    )
    own = by_place["leave-one-in", ("a",), "a"]
    assert len(own.results) == 2
    mean, low, high = own.kl_nats
    assert low <= mean <= high
    assert mean < by_place["untuned", (), "a"].kl_nats[0]
    known = {place for place in by_place if place[1:] != (("b",), "c")}
    (left,) = generalise(lm, families=list(small), config=config, seeds=(0, 1), known=known)
    assert left.place == ("leave-one-in", ("b",), "c")
    assert left.kl_nats == pytest.approx(by_place[left.place].kl_nats, abs=1e-5)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_an_interval_lies_within_its_values(values: list[float]) -> None:
    mean, low, high = interval(values)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert min(values) - 1e-9 <= mean <= max(values) + 1e-9
