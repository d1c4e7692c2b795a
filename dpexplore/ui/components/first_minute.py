"""The first minute: three things to ask of a language model, each guessed before it is answered by numbers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch

from dpexplore.models import LanguageModel
from dpexplore.targets import Target, capture, parse_recipe, token_id, top_tokens
from dpexplore.tuning import TuneResult
from dpexplore.ui.components.lesson_frame import Answer, LessonContext, bars, say_directly
from dpexplore.ui.components.markup import probability, quantity, token

COIN, DIE = (" heads", " tails"), ("1", "2", "3", "4", "5", "6")
ASKED = "Flip a coin: heads or tails?\nAnswer:"
SAID = "I love"
SHUFFLED = f'capture("{SAID}").shuffle(seed=1)'
SHOWN = 5
DIE_TOP = 0.25
"""Probability of a full bar of the die."""
EXACT, ROUGH = 0.005, 0.05
"""Largest error of a probability that passes as exact, and as roughly right."""
FREE_NATS = 0.05
"""A floor below this leaves a target within reach."""


@dataclass(frozen=True)
class Question:
    """One thing to ask of the model. The texts are HTML."""

    key: str
    title: str
    text: str
    show: Callable[[LessonContext], str]
    """What is to be seen before the guess."""
    ask: str
    options: tuple[str, ...]
    answer: Callable[[LessonContext], Generator[str | Answer]]


def _named(lm: LanguageModel, words: Sequence[str], probs: torch.Tensor) -> list[tuple[str, float, str]]:
    """Rows of `bars` for tokens by their text."""
    found = [(word, float(probs[token_id(lm, word)])) for word in words]
    return [(token(word.strip()), p, f"{p:.1%}") for word, p in found]


def _fair(words: Sequence[str]) -> str:
    return "tokens({" + ", ".join(f'"{word}": 1' for word in words) + "})"


def _worst(context: LessonContext, words: Sequence[str], result: TuneResult) -> float:
    """The largest distance of a word's probability from a fair share."""
    q = result.log_probs.exp()
    return max(abs(float(q[token_id(context.lm, word)]) - 1 / len(words)) for word in words)


def _show_coin(context: LessonContext) -> str:
    said = capture(ASKED).build(context.lm)
    rows = _named(context.lm, COIN, said.probs)
    asked = ASKED.replace("\n", " ")
    return f"<p class='dpx-note'>Asked in words, “{asked}”, it says:</p>" + bars(rows, "restart", 1, "Asked in words")


def _answer_coin(context: LessonContext) -> Generator[str | Answer]:
    (result,) = yield from say_directly(context, [parse_recipe(_fair(COIN)).build(context.lm)], "Finding a prompt")
    worst = _worst(context, COIN, result)
    yield Answer(
        2 if worst < EXACT else 1 if worst < ROUGH else 0,
        bars(_named(context.lm, COIN, result.log_probs.exp()), "achieved", 1, "With the prompt that was found")
        + "<p>The prompt is one vector in place of a word: nothing that could be typed, but the same model, its "
        f"weights untouched. What is missing to a perfect coin: {quantity(result.kl_nats, 'kl', 4)}.</p>",
    )


def _show_die(context: LessonContext) -> str:
    return bars([(token(word), 1 / len(DIE), f"{1 / len(DIE):.1%}") for word in DIE], "target", DIE_TOP, "A fair die")


def _answer_die(context: LessonContext) -> Generator[str | Answer]:
    (result,) = yield from say_directly(context, [parse_recipe(_fair(DIE)).build(context.lm)], "Finding a prompt")
    yield Answer(
        0 if _worst(context, DIE, result) < EXACT else 1,
        bars(_named(context.lm, DIE, result.log_probs.exp()), "achieved", DIE_TOP, "With the prompt that was found")
        + f"<p>What is missing to a fair die: {quantity(result.kl_nats, 'kl', 4)}.</p>",
    )


def _show_shuffled(context: LessonContext) -> str:
    columns = []
    for title, target in (
        (f"after “{SAID}”", capture(SAID).build(context.lm)),
        ("dealt out at random", _shuffled(context)),
    ):
        top = top_tokens(target, context.lm, SHOWN)
        rows = [(token(item.token), item.probability, probability(item.probability)) for item in top]
        columns.append(f"<div><p class='dpx-note'>{title}</p>{bars(rows, 'target', label=title)}</div>")
    return f"<div class='dpx-columns'>{''.join(columns)}</div>"


def _shuffled(context: LessonContext) -> Target:
    return parse_recipe(SHUFFLED).build(context.lm)


def _answer_shuffled(context: LessonContext) -> Generator[str | Answer]:
    target = _shuffled(context)
    (result,) = yield from say_directly(context, [target], "Finding the best prompt, and the proof that none is better")
    floor = context.floor_nats(target)
    rows = [("any prompt", floor, f"≥ {quantity(floor, 'kl')}")]
    rows += [("the best found", result.kl_nats, quantity(result.kl_nats, "kl"))]
    yield Answer(
        1 if floor > FREE_NATS else 0,
        bars(rows[:1], "floor", max(result.kl_nats, floor), "Certified floor")
        + bars(rows[1:], "achieved", max(result.kl_nats, floor), "Reached")
        + "<p>The first number is a <b>floor</b>: a proof, not a failed search. The scores of all words come "
        f"from the few numbers of one vector ({context.lm.hidden_size:,} for {context.lm.vocab_size:,} words), so "
        "words rise together or not at all, and no prompt of any length changes that. How far a prompt stays from its "
        "target is measured in KL: 0 would be perfect.</p>",
    )


QUESTIONS = (
    Question(
        "coin",
        "Heads or tails",
        "A language model answers every prompt with a probability for each word. Let us turn that round: we choose the "
        "probabilities, and look for the prompt.",
        _show_coin,
        "Can a prompt make it say heads and tails with 50 % each?",
        ("No, one side stays likelier", "Roughly: within five per cent", "Almost exactly"),
        _answer_coin,
    ),
    Question(
        "die",
        "A fair die",
        "Two words were easy. Now six, one sixth each.",
        _show_die,
        "Can a prompt make it a fair die?",
        ("As exactly as the coin", "No, some numbers stay likelier"),
        _answer_die,
    ),
    Question(
        "shuffled",
        "The same probabilities, other words",
        f"What the model really says after “{SAID}” it can say, of course. Now the same probabilities are dealt out to "
        "other words at random.",
        _show_shuffled,
        "Can a prompt make it say that?",
        ("Yes, with the right prompt", "No prompt ever will"),
        _answer_shuffled,
    ),
)
