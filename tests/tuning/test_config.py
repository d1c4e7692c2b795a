"""Settings and slots: what is refused in a sentence, and what comes back as it was written."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpexplore.errors import InputError
from dpexplore.models import LanguageModel
from dpexplore.targets import Target, entropy
from dpexplore.tuning import (
    KNOBS,
    Slot,
    Slots,
    TuneConfig,
    fig4_slots,
    tune,
)
from tests.tuning.shared import TinyLM


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "magic"}, "use one of 'soft', 'hard', 'hybrid'"),
        ({"restarts": 0}, "`restarts` is 0; use a whole number from 1 to"),
        ({"steps": 1.5}, "`steps` is 1.5"),
        ({"seed": -1}, "`seed` is -1"),
        ({"learning_rate": float("nan")}, "`learning_rate` is nan"),
        ({"patience": 0}, "`patience` is 0"),
        ({"init": "zeros"}, "init is 'zeros'"),
        ({"method": "soft", "slots": "hard*2"}, "use method 'hybrid'"),
        ({"method": "hybrid"}, "needs slots"),
        ({"slots": '"only text"'}, "nothing to tune"),
        ({"slots": "soft*2 sift*3"}, "'sift\\*3'"),
        ({"slots": "soft*0"}, "at least one token"),
        ({"slots": '"open soft*2'}, "cannot be read"),
        ({"slots": '"bad \\x" soft*2'}, "not escaped correctly"),
        ({"slots": '"\ud83d" soft*2'}, "`slots` holds half of a character"),
        ({"init": "text", "init_text": "\ud83d"}, "`init_text` holds half of a character"),
        ({"method": "hard", "forbid": ("\ud83d",)}, "`forbid` holds half of a character"),
        ({"method": "hard", "allow": ("\ud83d",)}, "`allow` holds half of a character"),
    ],
)
def test_impossible_configs_are_named(changes: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        TuneConfig(**changes)


def test_unknown_preset_is_named() -> None:
    with pytest.raises(InputError, match="'paper'"):
        TuneConfig.preset("quick")


def test_a_target_over_another_vocabulary_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(InputError, match=f"has 10 probabilities.*{lm.vocab_size}"):
        tune(lm, Target(torch.full((10,), 0.1), "ten"), TuneConfig())


def test_an_over_long_prompt_is_refused(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("gpt2")
    target = entropy(bits=2).build(lm)
    with pytest.raises(InputError, match=f"65 tokens.*at most {lm.max_positions}"):
        tune(lm, target, TuneConfig(length=65))


def test_more_than_the_memory_holds_is_refused(lm: LanguageModel, target: Target) -> None:
    with pytest.raises(InputError, match=r"1,000,000 restarts of .* GiB"):
        tune(lm, target, TuneConfig(restarts=1_000_000, length=60))


# Slots.

SLOT = st.one_of(
    st.builds(lambda text: Slot("text", text=text), st.text(min_size=1)),
    st.builds(lambda n: Slot("soft", count=n), st.integers(1, 999)),
    st.builds(lambda n: Slot("hard", count=n), st.integers(1, 999)),
)


@given(st.lists(SLOT, min_size=1, max_size=6))
def test_slots_text_round_trips(items: list[Slot]) -> None:
    if all(slot.kind == "text" for slot in items):
        items = [*items, Slot("soft")]
    slots = Slots(tuple(items))
    assert Slots.parse(str(slots)) == slots


@given(st.text())
def test_any_text_is_slots_or_a_sentence(line: str) -> None:
    try:
        slots = Slots.parse(line)
    except InputError:
        return
    assert Slots.parse(str(slots)) == slots


# What is refused, in a sentence.


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"objective": "cosine"}, "use one of 'kl', 'reverse_kl', 'js', 'tv'"),
        ({"soft_rule": "sgd"}, "use one of 'adamw', 'lbfgs'"),
        ({"hard_rule": "beam"}, "use one of 'eq4', 'gcg', 'search'"),
        ({"policy": "nice"}, "'printable'"),
        ({"candidates": 0}, "`candidates` is 0"),
        ({"evaluations": 0}, "`evaluations` is 0"),
        ({"allow": "yes"}, "list of token texts or ids"),
        ({"init": "text"}, "go together"),
        ({"init_text": "x"}, "go together"),
        ({"round_trip": True}, "soft tokens"),
        ({"chat": 1}, "use True or False"),
        ({"method": "hybrid", "slots": "soft hard", "soft_rule": "lbfgs"}, "unchecked swaps"),
    ],
)
def test_impossible_rules_and_policies_are_named(changes: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        TuneConfig(**changes)


def test_refusals_come_before_the_run(lm: LanguageModel, target: Target) -> None:
    first = lm.ordinary_ids[:1].tolist()
    refused = [
        ({"allow": tuple(first), "forbid": tuple(first)}, "leaves no token"),
        ({"allow": ("the sea and the sky",)}, "is not one token of"),
        ({"forbid": (10**6,)}, "There is no token id"),
        ({"chat": True}, "no chat template"),
    ]
    for changes, sentence in refused:
        with pytest.raises(InputError, match=sentence):
            tune(lm, target, TuneConfig(method="hard", **changes))
    one_hot = Target(torch.eye(lm.vocab_size, dtype=torch.float64)[5], "one")
    with pytest.raises(InputError, match="infinite for every prompt"):
        tune(lm, one_hot, TuneConfig(objective="reverse_kl"))
    with pytest.raises(InputError, match="unknown field 'speed'"):
        TuneConfig.from_dict({"speed": 3})


def test_configs_round_trip_through_json() -> None:
    config = TuneConfig.preset("thorough", method="hard", allow=("a", 3), policy="words", evaluations=100)
    assert TuneConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_fig4_goes_from_all_hard_to_all_soft() -> None:
    assert fig4_slots() == ("hard*5", "soft*1 hard*4", "soft*2 hard*3", "soft*3 hard*2", "soft*4 hard*1", "soft*5")


# The knobs.


def test_every_setting_describes_itself_and_its_limits_are_the_ones_checked() -> None:
    paper = TuneConfig()
    assert set(KNOBS) == set(paper.to_dict())
    assert TuneConfig.preset("paper") == paper
    rules = {*KNOBS["soft_rule"].choices, *KNOBS["hard_rule"].choices}
    for name, knob in KNOBS.items():
        assert knob.text.endswith(".")
        assert set(knob.rules) <= rules
        assert not knob.choices or getattr(paper, name) in knob.choices
        if knob.high is not None:
            with pytest.raises(InputError, match=name):
                TuneConfig.from_dict({name: knob.high + 1})
