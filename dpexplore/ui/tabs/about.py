"""About: what this is, where it comes from, and the words it uses, for someone who has just arrived."""

from __future__ import annotations

from html import escape

import dpexplore
from dpexplore.ui.components.widgets import view

PAPER = "https://arxiv.org/abs/2505.12244"

QUESTION = (
    "A language model answers every prompt with a probability for each token of its vocabulary. "
    "<b>Which of these distributions can it produce at all?</b> Pick one as a target, and dpexplore searches for the "
    "prompt whose answer comes closest, shows the search as it runs, and computes beside it a limit that no prompt "
    "can pass."
)
FIRST_STEPS = (
    "Open <b>Explore</b> and press one of the examples. If the words below are new to you, begin with <b>Lessons</b>: "
    "seven short steps, no mathematics beyond a logarithm. <b>Strings</b> asks for whole answers, not one token; "
    "<b>Compare</b> puts runs side by side; <b>Experiments</b> repeats the paper’s figures."
)
WORDS = [
    ("target p", "The distribution over the next token that you ask for; one probability for each token."),
    ("achieved q", "The distribution that the model gives after the prompt found so far."),
    (
        "KL(p‖q)",
        "The distance from p to q: how many nats (or bits) of surprise q costs a reader who expects p. "
        "0 means equal. It is not symmetric.",
    ),
    (
        "entropy",
        "How spread out a distribution is. 7 bits are as uncertain as a fair choice among 2⁷ = 128 tokens. "
        "1 bit = 0.69 nats.",
    ),
    ("hard prompt", "Tokens of the vocabulary: something that can be typed."),
    ("soft prompt", "Free vectors in the place of tokens: more room to search, nothing to type. Hybrid mixes both."),
    ("restart", "One search from one random beginning; the best of several is the result."),
    (
        "certified floor",
        "A proven bound: below it no prompt, of any length, can bring this model, because its last two layers, the "
        "final norm and the unembedding, do not let it.",
    ),
    ("head optimum", "The best that those last layers can do, as far as it was found: an estimate, above the floor."),
    ("recipe", "The line of text that rebuilds a target anywhere, such as <code>entropy(bits=7, seed=0)</code>."),
    ("capsule", "A run's record as JSON, from which anyone can replay it."),
]


def build_about() -> None:
    words = "".join(f"<dt>{escape(word)}</dt><dd>{meaning}</dd>" for word, meaning in WORDS)
    view(
        "<article class='dpx-card dpx-prose' id='about'><h2>What a model can and cannot say</h2>"
        f"<p>{QUESTION}</p><p>{FIRST_STEPS}</p>"
        f"<h3>Words</h3><dl>{words}</dl>"
        "<h3>Source</h3><p>An implementation of <i>Distribution Prompting: Understanding the Expressivity of Language "
        "Models Through the Next-Token Distributions They Can Produce</i> (Wang, Zhu, Shi), "
        f"<a href='{PAPER}' target='_blank' rel='noopener'>arXiv 2505.12244</a>. The certified floor is this "
        "project's own answer to the question that the paper's last section leaves open.</p>"
        f"<p class='dpx-note'>dpexplore {escape(dpexplore.__version__)}, MIT licence. The default model is "
        "SmolLM2-135M-Instruct by Hugging Face, Apache-2.0.</p></article>"
    )
