"""Every setting of a run, described once: `TuneConfig` checks by it, page and command line are built from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

TokenPolicy = Literal["any", "no_special", "printable", "ascii", "words"]
POLICIES: tuple[TokenPolicy, ...] = get_args(TokenPolicy)
Divergence = Literal["kl", "reverse_kl", "js", "tv"]
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)
METHODS = ("soft", "hard", "hybrid")
INITS = ("vocab", "lookup", "recover", "soft", "gaussian", "text")
SOFT_RULES = ("adamw", "lbfgs", "direct")
HARD_RULES = ("eq4", "gcg", "search")
EPOCHS = ("token", "sweep")


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
    """Whether None turns the knob off."""
    group: str = "Search"
    """The heading it stands under in the command line's help."""
    rules: tuple[str, ...] = ()
    """The rules (`SOFT_RULES`, `HARD_RULES`) that it is a knob of; empty: of every run."""


_ALL = (
    Knob(
        "method",
        "soft: tuned tokens are free vectors; hard: tokens of the vocabulary; hybrid: some of each.",
        METHODS,
        group="Prompt",
    ),
    Knob("length", "Number of tuned tokens, unless slots are given.", low=1, high=100_000, group="Prompt"),
    Knob("slots", 'The prompt\'s slots in order, such as "Q:" soft*3 hard*2.', optional=True, group="Prompt"),
    Knob("restarts", "Independent initialisations; the best one is the result.", low=1, high=1_000_000),
    Knob(
        "steps",
        "Most steps of a restart; a step is one loss with its gradient, and its candidates if any.",
        low=1,
        high=10_000_000,
    ),
    Knob(
        "seed",
        "Seeds the initialisations and the search: the same seed gives the same prompt.",
        low=0,
        high=2**63 - 1,
    ),
    Knob("learning_rate", "AdamW's learning rate, constant.", rules=("adamw",), group="Update rules"),
    Knob(
        "patience",
        "Steps in a row without improvement after which a restart ends.",
        low=1,
        high=10**12,
        optional=True,
    ),
    Knob(
        "init",
        "Where restarts start. vocab: random tokens; lookup: the same, with a last hard token after which the "
        "model already comes close to the target (the first use runs the whole vocabulary through the model, a "
        "minute or two on a CPU); recover: for a target captured from a prompt of this model, that prompt, found from "
        "its last token to its first with at most half of the evaluations (the first use for a number of tokens "
        "learns from random prompts, minutes on a CPU), and for other targets the same as lookup; soft: the hard "
        "tokens nearest, by cosine, to a soft prompt tuned first with a tenth of the evaluations; gaussian: the "
        "embeddings' mean and spread; text: init_text.",
        INITS,
        group="Initialisation",
    ),
    Knob(
        "bos",
        "Begin the prompt with what the tokenizer itself puts in front of a text (nothing for GPT-2 and SmolLM2).",
        group="Prompt",
    ),
    Knob(
        "objective",
        "What is minimised: KL(p‖q), KL(q‖p) or Jensen-Shannon in nats, or total variation from 0 to 1.",
        DIVERGENCES,
    ),
    Knob(
        "soft_rule",
        "How soft tokens move. adamw: the paper's; lbfgs: limited-memory BFGS with a line search; direct: solves the "
        "softmax head, puts its closest point into the last soft slot, and stops there if the model follows, else it "
        "continues by L-BFGS.",
        SOFT_RULES,
        group="Update rules",
    ),
    Knob(
        "norm_budget",
        "Longest a soft token may be: a number, or a multiple of the model's median token norm such as 1x.",
        optional=True,
        group="Update rules",
    ),
    Knob(
        "hard_rule",
        "How hard tokens are swapped: the paper's Eq. 4, Greedy Coordinate Gradient, or token search, which scores"
        " its candidates exactly.",
        HARD_RULES,
        group="Update rules",
    ),
    Knob(
        "epoch",
        "What steps and patience count under Eq. 4: single tokens swapped, or sweeps over all of them from left to "
        "right. The paper counts epochs and leaves open which; a sweep of 5 tokens has 5 times the patience.",
        EPOCHS,
        rules=("eq4",),
        group="Update rules",
    ),
    Knob(
        "strict",
        "Hybrid prompts move one slot a step, soft or hard, from left to right, as the paper says; off, all soft slots "
        "move at every step, which comes closer in as many steps.",
        rules=("adamw", "eq4"),
        group="Update rules",
    ),
    Knob(
        "candidates",
        "Prompts scored in each step.",
        low=1,
        high=1_000_000,
        rules=("gcg", "search"),
        group="Update rules",
    ),
    Knob(
        "top",
        "Candidates are drawn from this many best-ranked tokens of each position.",
        low=1,
        high=10_000_000,
        rules=("gcg", "search"),
        group="Update rules",
    ),
    Knob(
        "memory",
        "History of L-BFGS: pairs of step and change of gradient that it keeps.",
        low=1,
        high=1000,
        rules=("lbfgs", "direct"),
        group="Update rules",
    ),
    Knob(
        "screen",
        "Random prompts scored to choose each restart's initialisation; at most a twentieth of its evaluations.",
        low=1,
        high=1_000_000,
        group="Initialisation",
    ),
    Knob(
        "init_text",
        "The text to start from, repeated or cut to the number of tokens; needs init text.",
        optional=True,
        group="Initialisation",
    ),
    Knob(
        "policy",
        "Which tokens hard slots may hold: any, those that stand for text, printable text, printable ASCII, or words.",
        POLICIES,
        group="Hard tokens",
    ),
    Knob(
        "allow",
        "The only tokens that hard slots may hold, as texts or ids; replaces the policy.",
        group="Hard tokens",
    ),
    Knob("forbid", "Tokens that hard slots may not hold, as texts or ids.", group="Hard tokens"),
    Knob("round_trip", "Search only prompts whose text encodes to the same tokens again.", group="Hard tokens"),
    Knob("chat", "Put the slots into the user's turn of the model's chat template.", group="Prompt"),
    Knob(
        "evaluations",
        "Most prompts scored by a restart; gradients and candidates count alike.",
        low=1,
        high=10**12,
        optional=True,
    ),
    Knob(
        "seconds",
        "Most seconds a run may take; it ends with its best prompt so far.",
        low=1,
        high=10**9,
        optional=True,
    ),
)

KNOBS: dict[str, Knob] = {knob.name: knob for knob in _ALL}
