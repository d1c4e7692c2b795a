"""The seven lessons: what each shows, asks and answers. Every number is computed when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import suppress
from html import escape
from itertools import pairwise

import gradio as gr
import torch
from gradio.components import Component

from dpexplore.errors import InputError
from dpexplore.serving.reach import answers
from dpexplore.targets import capture, entropy, token_id, top_tokens
from dpexplore.ui.components.lesson_frame import Answer, Lesson, LessonContext, Notes, bars, say_directly
from dpexplore.ui.components.markup import probability, progress_bar, quantity, token
from dpexplore.ui.components.reach_panel import answer_html

WORDS = ("yes", "no", "maybe")
SURE, UNSURE = "The capital of France is", "I love"
LOW_BITS, MIDDLE_BITS, HIGH_BITS = 2.0, 8.0, 15.0
FORGOTTEN = (1e-1, 1e-3, 1e-6, 1e-12)
NEVER = "transistorsum"
"""A token of the default model that its training hardly met."""


def softmax(logits: Sequence[float]) -> list[float]:
    return torch.tensor(logits, dtype=torch.float64).softmax(-1).tolist()


def entropy_bits(probs: Sequence[float]) -> float:
    return -sum(p * math.log2(p) for p in probs if p > 0)


def kl_nats(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def highest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


# 1. Softmax.


def _logit_sliders() -> list[Component]:
    return [
        gr.Slider(-5, 5, 2 - i, step=0.1, label=f"Logit of “{word}”", elem_id=f"lesson-logit-{word}")
        for i, word in enumerate(WORDS)
    ]


def _look_softmax(context: LessonContext, *logits: float) -> str:
    probs = softmax(logits)
    shown = [(token(word), p, f"{p:.3f}") for word, p in zip(WORDS, probs, strict=True)]
    told = f"<p class='dpx-note'>Entropy: {entropy_bits(probs):.2f} bits, at most log₂ 3 = {math.log2(3):.2f}.</p>"
    return bars(shown, "achieved", 1, "Probabilities of the three words") + told


def _answer_softmax(context: LessonContext, *logits: float) -> Generator[str | Answer]:
    before, after = softmax(logits), softmax([logit + 3 for logit in logits])
    moved = max(abs(a - b) for a, b in zip(before, after, strict=True))
    right = 0 if moved < 1e-9 else 1 if max(after) > max(before) else 2
    told = " · ".join(f"{escape(w)} {a:.3f} → {b:.3f}" for w, a, b in zip(WORDS, before, after, strict=True))
    once = softmax([logits[0] + 1, *logits[1:]])
    odds = (once[0] / once[1]) / (before[0] / before[1])
    yield Answer(
        right,
        f"<p>With 3 added to each: {told}. Only differences count. Add 1 to the first alone and its odds "
        f"against the second grow {odds:.2f}-fold, which is e.</p>",
    )


# 2. A model's own distribution.


def _prompt_box() -> list[Component]:
    return [gr.Textbox(SURE, label="Prompt", max_lines=2, elem_id="lesson-prompt")]


def _look_model(context: LessonContext, text: str) -> str:
    target = capture(text).build(context.lm)
    top = top_tokens(target, context.lm, 6)
    rows = [(token(item.token), item.probability, probability(item.probability)) for item in top]
    return (
        bars(rows, "achieved", 1, "Most probable next tokens")
        + f"<p class='dpx-note'>These six hold {sum(item.probability for item in top):.0%} of the probability; "
        f"{context.lm.vocab_size - 6:,} other tokens share the rest. Entropy: {target.entropy_bits:.2f} bits, as "
        f"uncertain as a fair choice of {2**target.entropy_bits:,.1f} tokens.</p>"
    )


def _answer_model(context: LessonContext, text: str) -> Generator[str | Answer]:
    bits = [capture(prompt).build(context.lm).entropy_bits for prompt in (SURE, UNSURE)]
    rows = [(f"“{escape(prompt)}”", b, f"{b:.2f} bits") for prompt, b in zip((SURE, UNSURE), bits, strict=True)]
    yield Answer(2 if abs(bits[0] - bits[1]) < 0.1 else highest(bits), bars(rows, "achieved", label="Entropies"))


# 3. KL.


def _share_slider() -> list[Component]:
    return [gr.Slider(0.001, 0.999, 0.2, step=0.001, label="q's probability of “yes”", elem_id="lesson-share")]


def _look_kl(context: LessonContext, share: float) -> str:
    p, q = (0.5, 0.5), (share, 1 - share)
    rows = [("KL(p‖q)", kl_nats(p, q), quantity(kl_nats(p, q), "kl", 3))]
    rows += [("KL(q‖p)", kl_nats(q, p), quantity(kl_nats(q, p), "kl", 3))]
    pair = "".join(
        bars([(f"{name}, “{word}”", share, f"{share:.3f}")], role, 1, f"{name} of {word}")
        for i, word in enumerate(("yes", "no"))
        for name, role, share in (("p", "target", p[i]), ("q", "achieved", q[i]))
    )
    return f"<div class='dpx-pair'>{pair}</div>" + bars(rows, "restart", 3.5, "Divergences")


def _answer_kl(context: LessonContext, share: float) -> Generator[str | Answer]:
    found = [kl_nats((0.5, 0.5), (q, 1 - q)) for q in FORGOTTEN]
    rows = [(f"q = {q:g}", kl, quantity(kl, "kl")) for q, kl in zip(FORGOTTEN, found, strict=True)]
    steps = [after - before for before, after in pairwise(found)]
    right = 1 if min(steps) > 0.5 else 0 if found[-1] > found[0] else 2
    back = kl_nats((FORGOTTEN[-1], 1 - FORGOTTEN[-1]), (0.5, 0.5))
    yield Answer(
        right,
        bars(rows, "achieved", label="KL as q forgets a token")
        + f"<p>The other way round, KL(q‖p) ends at {quantity(back, 'kl')}: the two directions punish different "
        "mistakes. dpexplore minimises KL(p‖q): whatever the target wants must not be forgotten.</p>",
    )


# 4. Searching for a prompt.


def _middle_slider() -> list[Component]:
    return [gr.Slider(5, 12, MIDDLE_BITS, step=0.5, label="The middle target (bits)", elem_id="lesson-middle")]


def _three_bits(context: LessonContext, middle: float) -> tuple[float, float, float]:
    return LOW_BITS, middle, min(HIGH_BITS, math.log2(context.lm.vocab_size) - 0.5)


def _look_search(context: LessonContext, middle: float) -> str:
    rows = [(f"{b:g} bits", b, f"≈ {2**b:,.0f} tokens") for b in _three_bits(context, middle)]
    return bars(rows, "target", math.log2(context.lm.vocab_size), "Entropies of the three targets")


def _answer_search(context: LessonContext, middle: float) -> Generator[str | Answer]:
    bits = _three_bits(context, middle)
    targets = [entropy(bits=b, seed=0).build(context.lm) for b in bits]
    found = yield from say_directly(context, targets, "One free vector for each of three targets")
    kls = [result.kl_nats for result in found]
    rows = [(f"{b:g} bits", kl, quantity(kl, "kl")) for b, kl in zip(bits, kls, strict=True)]
    yield Answer(
        highest(kls),
        bars(rows, "achieved", label="KL that is left")
        + "<p>KL(p‖q) that is left. The paper found this hill by long searches, on every model it tried: very sharp "
        "and very flat targets are easy, the ones between are hard. Why? It could be the Transformer, or the prompt. "
        "Or the very last layers.</p>",
    )


# 5. The head alone.


def _entropy_slider() -> list[Component]:
    return [gr.Slider(0, 15, 4, step=0.5, label="Entropy of the target (bits)", elem_id="lesson-bits")]


def _look_head(context: LessonContext, bits: float) -> str:
    floor = context.floor_nats(entropy(bits=bits, seed=0).build(context.lm))
    return (
        f"<p class='dpx-floor' data-floor='{floor:.6f}'>At {bits:g} bits no prompt brings this model closer than "
        f"<b>{quantity(floor, 'kl')}</b>.</p>"
        f"<p class='dpx-note'>{context.lm.vocab_size:,} logits are made from {context.lm.hidden_size:,} numbers: "
        "logits = A·u + b, where u is the hidden vector after the final norm, which also bounds how long u is. So most "
        "lists of logits cannot occur, whatever the prompt.</p>"
    )


def _answer_head(context: LessonContext, bits: float) -> Generator[str | Answer]:
    asked, found = _three_bits(context, MIDDLE_BITS), []
    for number, b in enumerate(asked):
        yield progress_bar(f"The floor at {b:g} bits", number / len(asked))
        found.append(context.floor_nats(entropy(bits=b, seed=0).build(context.lm)))
    rows = [(f"{b:g} bits", floor, quantity(floor, "kl")) for b, floor in zip(asked, found, strict=True)]
    yield Answer(
        highest(found),
        bars(rows, "floor", label="Certified floors")
        + "<p>The same hill, and no Transformer was run: these numbers need only the last two layers. Compare them "
        "with what was left over in lesson 4: that much of it no prompt could have removed.</p>",
    )


# 6. Which tokens go together.


def _shuffle_controls() -> list[Component]:
    return [
        gr.Textbox(UNSURE, label="Prompt", max_lines=2, elem_id="lesson-said"),
        gr.Slider(1, 9, 1, step=1, label="Shuffle number", elem_id="lesson-shuffle"),
    ]


def _look_shuffle(context: LessonContext, text: str, seed: float) -> str:
    said = capture(text)
    columns = []
    for title, recipe in (("as the model says it", said), ("shuffled", said.shuffle(seed=int(seed)))):
        top = top_tokens(recipe.build(context.lm), context.lm, 4)
        rows = [(token(item.token), item.probability, probability(item.probability)) for item in top]
        columns.append(f"<div><p class='dpx-note'>{title}</p>{bars(rows, 'target', label=title)}</div>")
    return f"<div class='dpx-columns'>{''.join(columns)}</div>"


def _answer_shuffle(context: LessonContext, text: str, seed: float) -> Generator[str | Answer]:
    said, found = capture(text), []
    for title, recipe in (("as it is", said), ("shuffled", said.shuffle(seed=int(seed)))):
        yield progress_bar(f"The floor of the target {title}", len(found) / 2)
        found.append(context.floor_nats(recipe.build(context.lm)))
    rows = [
        (name, floor, quantity(floor, "kl"))
        for name, floor in zip(("as the model says it", "shuffled"), found, strict=True)
    ]
    yield Answer(
        1 if found[1] - found[0] > 0.05 else 0,
        bars(rows, "floor", label="Certified floors")
        + "<p>The probabilities are the same, so is the entropy; only who gets which has changed. The head gives "
        "similar tokens similar logits, because it makes all of them from the same few numbers. It can raise words "
        "that belong together; it cannot raise an arbitrary hundred and leave their neighbours alone.</p>",
    )


# 7. What can never come first.


def _word_box() -> list[Component]:
    return [gr.Textbox(NEVER, label="A word", max_lines=1, elem_id="lesson-word")]


def _look_never(context: LessonContext, text: str) -> str:
    """Where the word stands after an ordinary prompt."""
    word = _checked(context, text)
    ids: list[int] = []
    for spelling in (word,) if word[0].isspace() else (f" {word}", word):
        with suppress(InputError):
            ids.append(token_id(context.lm, spelling))
    said = capture(UNSURE).build(context.lm).probs
    places = "".join(
        f"<p>After “{UNSURE}”, {token(context.lm.token_text(i))} stands at place "
        f"<b>{int((said > said[i]).sum()) + 1:,}</b> of {len(said):,}.</p>"
        for i in ids or [token_id(context.lm, word)]  # which says why it is none
    )
    return places + "<p class='dpx-note'>That is after one prompt. What about all the others?</p>"


def _checked(context: LessonContext, text: str) -> str:
    if not text.strip():
        raise InputError("Type a word, such as “the”.")
    if context.app.rules:
        context.app.rules.check_text("The word", text)
    return text


def _answer_never(context: LessonContext, text: str) -> Generator[str | Answer]:
    yield progress_bar("Looking for a prompt, or for a proof that there is none", None)
    found = answers(context.lm, _checked(context, text))
    if any(one.can is None for one in found) and not any(one.can for one in found):
        raise InputError("Whether it can come first was not proved in the time given; try another word.")
    yield Answer(
        0 if any(one.can for one in found) else 1,
        answer_html(found)
        + "<p>Each word has a row in the table A, and the word comes first where its row points farthest along u. "
        "A row that lies in the midst of the others points farthest nowhere.</p>",
    )


LESSONS = (
    Lesson(
        "softmax",
        "From logits to probabilities",
        "A model gives each token a number, its <b>logit</b>. <b>Softmax</b> turns the numbers into probabilities: "
        "each is e to the power of its logit, divided by the sum of all. Move the three logits and watch.",
        _logit_sliders,
        _look_softmax,
        "If 3 is added to all three logits, what do the probabilities do?",
        ("They stay the same", "The largest one grows", "They become more equal"),
        _answer_softmax,
        "A distribution is a list of logit <b>differences</b>.",
        Notes(
            5,
            "Say why only differences between logits matter, and what adding 1 to one of them does to its odds.",
            "“The largest one grows”: adding to everything feels like turning up the volume.",
            "e³ multiplies every numerator and the denominator alike, so it cancels. Let pupils find logits that make "
            "the three words equally likely, then ask for a second way.",
        ),
    ),
    Lesson(
        "model",
        "A prompt is a question, the answer a distribution",
        "After every prompt the model gives one probability to each token of its vocabulary. How spread out they are "
        "is the <b>entropy</b>, in bits. Write prompts of your own.",
        _prompt_box,
        _look_model,
        "Which prompt leaves the model less sure, that is, gives the higher entropy?",
        (f"“{SURE}”", f"“{UNSURE}”", "About the same"),
        _answer_model,
        "You choose the prompt; the model chooses the distribution. Can it be turned round?",
        Notes(
            8,
            "Read entropy as the number of equally likely choices, and see that the prompt decides it.",
            "Most get it right for these two prompts. Ask for a prompt below 0.1 bits and one above 10: much harder.",
            "The model never says one word: it weighs all of them. So far the prompt came first. What if we start from "
            "the distribution?",
        ),
    ),
    Lesson(
        "kl",
        "How far apart are two distributions?",
        "<b>KL(p‖q)</b> measures how badly q stands in for a target p: the average of log p/q, weighted by p. It is 0 "
        "only when both are equal. Move q.",
        _share_slider,
        _look_kl,
        "q's probability of “yes” goes to 0, while p wants one half. What does KL(p‖q) do?",
        ("It grows towards a limit", "It grows without limit", "It falls"),
        _answer_kl,
        "KL is a distance with a direction: forgetting what the target wants is the costly mistake.",
        Notes(
            6,
            "Say which mistake KL(p‖q) punishes, and why it has no upper limit.",
            "“It grows towards a limit”, because a probability cannot go below 0.",
            "log(p/q) has no limit as q goes to 0. Move q to 0.001 and read both directions: one is patient, the other "
            "is not.",
        ),
    ),
    Lesson(
        "search",
        "Turning it round: search for the prompt",
        "Choose a distribution, then find the prompt that makes the model say it. Here are three targets over "
        "arbitrary tokens: a sharp one, one in the middle, and a nearly flat one. The prompt is one free vector in "
        "place of a word, computed so that the model's last layers come as close as they can.",
        _middle_slider,
        _look_search,
        "Which target will the model stay farthest away from?",
        ("The sharp one", "The one in the middle", "The nearly flat one"),
        _answer_search,
        "Hardness is a hill over entropy.",
        Notes(
            8,
            "State what is searched for and what is measured, and that difficulty is not monotone in entropy.",
            "“The nearly flat one”: more tokens to satisfy sounds harder.",
            "Collect explanations before going on: too few numbers in the prompt? the network? The next "
            "lesson tests one of them without running the network at all.",
        ),
    ),
    Lesson(
        "head",
        "The last two layers alone",
        "Whatever the Transformer does, it ends in one vector u of fixed length; a table A makes all logits from it. "
        "What that step cannot do, no prompt can. The <b>certified floor</b> is the least KL left. Move the entropy.",
        _entropy_slider,
        _look_head,
        "No search this time: at which of these entropies is the floor itself highest?",
        (f"{LOW_BITS:g} bits", f"{MIDDLE_BITS:g} bits", f"{HIGH_BITS:g} bits"),
        _answer_head,
        "Much of the hill belongs to the softmax head, not to the Transformer.",
        Notes(
            10,
            "Explain why a certified floor holds for every prompt there is, of any length.",
            "Many expect floor 0: “with a long enough prompt anything goes”.",
            "Count: one vector of some hundred numbers has to set tens of thousands of logits. A proof needs no "
            "search, and no search can beat it.",
        ),
    ),
    Lesson(
        "together",
        "Which tokens go together",
        "Take what the model really says after a prompt: that it can say. Now deal the same probabilities out to other "
        "tokens at random. Choose a prompt and a shuffle.",
        _shuffle_controls,
        _look_shuffle,
        "The entropy is the same as before. What about the floor?",
        ("It stays at 0", "It rises well above 0"),
        _answer_shuffle,
        "What limits a model is not how spread out a distribution is, but whether its tokens belong together. Go to "
        "<b>Explore</b> and try to prove it wrong.",
        Notes(
            8,
            "Separate entropy from arrangement: the same probabilities can be free or out of reach.",
            "“It stays at 0”, since nothing but the order has changed.",
            "Similar words have similar rows in the table A, so they rise together. Ask for a target of two words that "
            "never go together, then look at its floor: two are easy, a hundred are not.",
        ),
    ),
    Lesson(
        "never",
        "Which word can it never say first?",
        "A model weighs every word of its vocabulary after every prompt. Is there a prompt for each of them that makes "
        "it the likeliest? Type words and see where they stand.",
        _word_box,
        _look_never,
        "Can some prompt, of any length, make this word the likeliest?",
        ("Some prompt can", "No prompt ever can"),
        _answer_never,
        "An unlikely word is not an impossible one: “never” takes a proof.",
        Notes(
            6,
            "Tell a word that is unlikely from one that is impossible, and say what a proof of “never” rests on.",
            "“Some prompt can”: one could simply ask the model to repeat the word.",
            "Repeating is what the Transformer does; which word wins is decided by the table A alone. Let pupils hunt "
            "for another word that can never come first: <b>Explore</b> lists them all.",
        ),
    ),
)
