"""Examples, lessons, and continuations of a prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dpexplore.serving.app_context import AppContext
from dpexplore.targets import parse_recipe
from dpexplore.tuning.continuation import continue_prompt
from dpexplore.ui.components.continuation import continuations
from dpexplore.ui.components.examples import EXAMPLES, settings_of
from dpexplore.ui.components.lesson_frame import Lesson, LessonContext
from dpexplore.ui.components.lesson_steps import LESSONS
from dpexplore.ui.components.settings import (
    make_config,
)
from dpexplore.ui.components.tune_panel import tune
from dpexplore.ui.tabs.lessons import answer, look
from tests.ui.shared import (
    CAPSULE,
    HARD,
    SOFT,
    last,
)


def test_a_class_sees_what_it_guessed_before_the_answer(app: AppContext) -> None:
    lesson = next(lesson for lesson in LESSONS if lesson.key == "kl")
    first = list(answer(LessonContext(app, "one pupil", "tiny"), lesson, lesson.options[0], 0.2))
    assert not any("data-guesses" in told for told in first)  # one guess is nobody else's business
    second = list(answer(LessonContext(app, "another pupil", "tiny"), lesson, lesson.options[1], 0.2))
    assert "data-guesses='2'" in second[0]  # before the answer
    assert "dpx-answer" not in second[0]
    assert "dpx-answer" in second[-1]


# Examples, lessons, continuations.


def test_examples_are_recipes_and_settings_that_run(app: AppContext) -> None:
    assert len(EXAMPLES) == 6
    for example in EXAMPLES:
        parse_recipe(example.recipe)
        assert make_config(settings_of(example)).method == example.method
    assert {example.key for example in EXAMPLES} == {"die", "love", "shuffled", "moderate", "outlier", "uniform"}


VALUES: dict[str, tuple] = {
    "softmax": (2, 1, 0),
    "model": ("I love",),
    "kl": (0.2,),
    "search": (5,),
    "head": (4,),
    "together": ("I love", 1),
    "never": ("love",),
}


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.key)
def test_a_lesson_shows_asks_and_answers_by_numbers(app: AppContext, lesson: Lesson) -> None:
    context, values = LessonContext(app, "pupil", "tiny"), VALUES[lesson.key]
    assert "is-error" not in look(context, lesson, *values)
    (first,) = answer(context, lesson, None, *values)
    assert "Choose an answer first" in first
    verdicts = []
    for option in lesson.options:
        *_, last = answer(context, lesson, option, *values)
        assert "dpx-answer" in last
        verdicts.append("is-right" in last)
    assert sum(verdicts) == 1


def test_what_a_lesson_cannot_show_is_one_sentence(app: AppContext) -> None:
    lesson = next(lesson for lesson in LESSONS if lesson.key == "model")
    assert "is-error" in look(LessonContext(app, "pupil", "tiny"), lesson, "")
    assert "There is no model" in look(LessonContext(app, "pupil", "missing"), lesson, "I love")


@pytest.mark.parametrize("settings", [SOFT, HARD])
def test_a_continuation_is_drawn_after_the_capsules_prompt(app: AppContext, settings: dict[str, Any]) -> None:
    final = last(tune(app, "session", "tiny", "entropy(bits=3, seed=0)", settings))
    capsule = final[CAPSULE]["value"]
    busy, shown = continuations(app, "tiny", capsule, 4, 3)
    assert "is-busy" in busy
    assert shown.count("<li>") == 3
    assert shown == [*continuations(app, "tiny", capsule, 4, 3)][-1]
    assert shown != [*continuations(app, "tiny", capsule, 4, 4)][-1]
    for path, tokens in ((None, 4), (capsule, 0), (capsule, None), (capsule, 10_000)):
        assert "is-error" in [*continuations(app, "tiny", path, tokens, 0)][-1]


def test_a_continuations_first_token_is_a_draw_from_q(app: AppContext) -> None:
    lm = app.pool.get("tiny").lm
    embeds = lm.embed(torch.tensor(lm.encode("I love")))
    drawn = torch.tensor([ids[0] for ids in continue_prompt(lm, embeds, 1, samples=20_000, seed=1) if ids])
    q = lm.log_probs_of_ids(torch.tensor([lm.encode("I love")]))[0].exp().double()
    share = torch.bincount(drawn, minlength=lm.vocab_size).double() / len(drawn)
    ordinary = q.clone()
    end = lm.tokenizer.eos_token_id
    assert isinstance(end, int)
    ordinary[end] = 0  # ends at once, and is not among the drawn
    assert float((share - ordinary / ordinary.sum()).abs().max()) < 0.02
