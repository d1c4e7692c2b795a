"""What a run would cost: operations counted by hand, and in proportion to what is asked."""

from __future__ import annotations

import pytest

from dpexplore.experiments.costs import ModelSize, operations_of, seconds_of_run, slot_tokens
from dpexplore.models import LanguageModel
from dpexplore.tuning import TuneConfig


def test_operations_are_those_of_two_passes_and_one_head_a_step(lm: LanguageModel) -> None:
    size = ModelSize(lm.parameter_count, lm.vocab_size, lm.hidden_size, lm.dtype)
    head = lm.vocab_size * lm.hidden_size
    assert operations_of(size, positions=6, row_steps=2) == 4 * (6 * (lm.parameter_count - head) + 2 * head)


def test_a_runs_time_grows_with_its_restarts_and_with_the_prompts_that_it_scores(lm: LanguageModel) -> None:
    config = TuneConfig(length=5, restarts=2, steps=10)
    assert config.most_evaluations == 1 + 10
    assert seconds_of_run(lm, TuneConfig(length=5, restarts=6, steps=10)) == pytest.approx(
        3 * seconds_of_run(lm, config)
    )
    searching = {"method": "hard", "hard_rule": "search", "length": 5, "restarts": 2, "steps": 10, "candidates": 64}
    for evaluations, most in ((None, 1 + 10 * 65), (100, 1 + 100)):
        search = TuneConfig(**searching, evaluations=evaluations)
        assert search.most_evaluations == most
        assert seconds_of_run(lm, search) == pytest.approx(most / 11 * seconds_of_run(lm, config))


def test_fixed_text_counts_as_tokens_of_three_characters() -> None:
    assert slot_tokens(TuneConfig(slots="'abcdef' soft*3 hard", method="hybrid")) == 3 + 3 + 1
