"""Every setting of a run, described once: the config checks by it, pages and help texts show it."""

from __future__ import annotations

from dataclasses import dataclass

from dpexplore.tuning.init.policy import POLICIES
from dpexplore.tuning.objectives.next_token import DIVERGENCES

METHODS = ("soft", "hard", "hybrid")
INITS = ("vocab", "lookup", "soft", "gaussian", "text")
SOFT_RULES = ("adamw", "lbfgs")
HARD_RULES = ("eq4", "gcg", "search")


@dataclass(frozen=True)
class Knob:
    """One field of `TuneConfig`; its value in the paper is `getattr(TuneConfig(), knob.name)`."""

    name: str
    text: str
    """What it does, in a sentence."""
    choices: tuple[str, ...] = ()
    """The accepted values of a choice."""
    low: int | None = None
    high: int | None = None
    """The range of a whole number."""
    optional: bool = False
    """Whether None, the knob's being off, is accepted."""
    rules: tuple[str, ...] = ()
    """The rules (`SOFT_RULES`, `HARD_RULES`) that it is a knob of; empty: of every run."""


_ALL = (
    Knob("method", "Soft tokens are free vectors, hard ones words of the vocabulary, hybrid is both.", METHODS),
    Knob("length", "Number of tuned tokens, where the slots do not say it.", low=1, high=100_000),
    Knob("slots", 'The prompt\'s slots in order, such as "Q:" soft*3 hard*2.', optional=True),
    Knob("restarts", "Independent beginnings; the result is the best of them.", low=1, high=1_000_000),
    Knob("steps", "Most steps of a restart: a loss with its gradient, and candidates if any.", low=1, high=10_000_000),
    Knob("seed", "The same seed gives the same prompt, another one another draw.", low=0, high=2**63 - 1),
    Knob("learning_rate", "AdamW's learning rate, constant.", rules=("adamw",)),
    Knob(
        "patience",
        "A restart ends after so many steps in a row without improvement.",
        low=1,
        high=10**12,
        optional=True,
    ),
    Knob(
        "init",
        "Where restarts begin: random vocabulary tokens; the same with a last hard token after which alone the model "
        "comes close to the target (its first use runs the vocabulary through the model once, a minute or two on a "
        "processor); the hard tokens nearest, by cosine, to a soft prompt tuned before, which takes a tenth of the "
        "evaluations; a Gaussian at the embeddings' mean and spread; or a text.",
        INITS,
    ),
    Knob("bos", "Put in front what the tokenizer itself puts in front of a text (nothing for GPT-2 and SmolLM2)."),
    Knob(
        "objective",
        "What is minimised: KL(p‖q), KL(q‖p) or Jensen-Shannon in nats, or total variation from 0 to 1.",
        DIVERGENCES,
    ),
    Knob("soft_rule", "How soft tokens move: AdamW, or limited-memory BFGS with a line search.", SOFT_RULES),
    Knob(
        "hard_rule",
        "How hard tokens are swapped: Eq. 4, Greedy Coordinate Gradient, or the search that betters it.",
        HARD_RULES,
    ),
    Knob("candidates", "Prompts scored in a step.", low=1, high=1_000_000, rules=("gcg", "search")),
    Knob(
        "top",
        "Candidates come from so many best-ranked tokens of a position.",
        low=1,
        high=10_000_000,
        rules=("gcg", "search"),
    ),
    Knob("memory", "Pairs of step and gradient change that L-BFGS remembers.", low=1, high=1000, rules=("lbfgs",)),
    Knob(
        "screen",
        "Random prompts scored to choose each restart's beginning; at most a twentieth of its evaluations.",
        low=1,
        high=1_000_000,
    ),
    Knob("init_text", "The text that restarts begin with, repeated or cut to the number of tokens.", optional=True),
    Knob(
        "policy",
        "What hard tokens may be: any, those that stand for text, printable text, printable ASCII, or words.",
        POLICIES,
    ),
    Knob("allow", "The only tokens that hard slots may hold, as texts or ids, in the policy's place."),
    Knob("forbid", "Tokens that hard slots may not hold, as texts or ids."),
    Knob("round_trip", "Search only prompts whose text encodes to the same tokens again."),
    Knob("chat", "Put the slots into the user's turn of the model's chat template."),
    Knob(
        "evaluations",
        "A restart ends after so many prompts scored, gradients and candidates counted alike.",
        low=1,
        high=10**12,
        optional=True,
    ),
    Knob("seconds", "The run ends after so many seconds, with its best so far.", low=1, high=10**9, optional=True),
)

KNOBS: dict[str, Knob] = {knob.name: knob for knob in _ALL}
