"""Every setting survives its control, presets and chips."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpexplore.errors import InputError
from dpexplore.tuning import PRESETS, Slot, Slots, TuneConfig
from dpexplore.tuning.knobs import KNOBS
from dpexplore.ui.components.settings import (
    ADVANCED,
    CUSTOM,
    PRESET_FIELDS,
    apply_preset,
    build_control,
    chips_of,
    control_values,
    from_control,
    line_of,
    make_config,
    preset_of,
)


def test_presets_fill_every_setting_that_is_not_the_question() -> None:
    for name in PRESETS:
        filled = dict(zip(PRESET_FIELDS, apply_preset(name), strict=True))
        assert make_config({"method": "soft", **filled}) == TuneConfig.preset(name, method="soft")
        assert preset_of(filled) == name
        assert preset_of({**filled, "steps": filled["steps"] + 1}) == CUSTOM
    assert preset_of(control_values(TuneConfig.preset("fast", method="hard", seed=7))) == "fast"
    assert all("__type__" in value for value in apply_preset(CUSTOM))


def test_every_setting_survives_its_control() -> None:
    config = TuneConfig(
        method="hybrid",
        slots='"Q:" soft*2 hard*1',
        init="text",
        init_text="as it were",
        allow=(" yes", 42, 'a "b"'),
        forbid=(" no",),
        patience=None,
        evaluations=900,
        chat=True,
        learning_rate=1.0,
    )
    assert make_config(control_values(config)) == config
    assert make_config(control_values(TuneConfig())) == TuneConfig()


@pytest.mark.parametrize("name", ADVANCED)
def test_every_advanced_setting_says_what_it_does_and_what_the_paper_takes(name: str) -> None:
    control: Any = build_control(name)
    assert KNOBS[name].text in control.info
    assert "aper" in control.info.removeprefix(KNOBS[name].text)
    assert from_control(name, control.value) == getattr(TuneConfig(), name)


@given(
    st.lists(
        st.builds(Slot, kind=st.just("text"), text=st.text(st.characters(exclude_categories=["Cs"]), max_size=9))
        | st.builds(Slot, kind=st.sampled_from(["soft", "hard"]), count=st.integers(1, 9)),
        max_size=5,
    ).map(lambda slots: Slots((*slots, Slot("soft"))))
)
def test_slots_are_the_same_as_chips_and_as_text(slots: Slots) -> None:
    assert line_of(json.loads(chips_of(str(slots)))) == str(slots)


@pytest.mark.parametrize(
    "chips", [[], None, [{"kind": "soft"}], [{"kind": "text", "text": "a"}], [{"kind": "x"}], "no"]
)
def test_chips_that_are_no_slots_are_one_sentence(chips: Any) -> None:
    with pytest.raises(InputError):
        line_of(chips)
