"""Targets over whole strings: `strings({"{1}": 1, "{2}": 1}, request="…")` (Forcing Diffuse Distributions, §3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpexplore.checks import check_flag, check_number, check_text
from dpexplore.errors import InputError
from dpexplore.models.chat import chat_text, end_of_answer, has_chat
from dpexplore.models.pieces import encode_behind
from dpexplore.targets.capture import prompt_ids
from dpexplore.targets.outcome_tree import OutcomeTree, PrefixClash, check_tree_size
from dpexplore.targets.recipe import BuildContext, Load, Provenance, Recipe, RecordedPrompt, literal
from dpexplore.targets.target import Target

if TYPE_CHECKING:
    from dpexplore.models.language_model import LanguageModel

MAX_OUTCOMES = 5000
"""Most outcomes of a target: a tree of them is scored in one pass, and more would not fit beside a model."""
OTHER = "(anything else)"
_EXAMPLE = '`strings({"{1}": 1, "{2}": 1}, request="Give me a number.")`'


@dataclass(frozen=True, eq=False)
class StringTarget(Target):
    """A distribution over whole strings after a request; `probs` is `(outcomes + 1,)`, the last one for all else."""

    strings: Strings = field(kw_only=True)
    """What was asked for."""
    tree: OutcomeTree = field(kw_only=True)
    """The outcomes with their ends, behind the response's prefixes."""
    request_ids: list[int] = field(kw_only=True)
    """The request alone as the model reads it, in its chat template if it has one; BOS included."""
    end_ids: frozenset[int] = field(kw_only=True)
    """Tokens that end an answer; empty where a closing mark does."""

    @property
    def weights(self) -> Tensor:
        """`(outcomes,)` float64, sums to 1; 0 for outcomes that are valid but not asked for."""
        return self.probs[:-1]

    @property
    def outcomes(self) -> tuple[str, ...]:
        return self.strings.texts

    def label(self, index: int, lm: LanguageModel) -> str:
        return OTHER if index == len(self.outcomes) else self.outcomes[index]


@dataclass(frozen=True)
class Strings(Recipe):
    """Outcomes with weights after a request. Frozen and comparable, as every recipe."""

    outcomes: tuple[tuple[str, float], ...]
    """Text and weight, 0 or more, not all 0; weight 0 names an outcome that is valid but never trained on."""
    request: str = ""
    """What the user says; in the chat template where the model has one, plain otherwise."""
    response: tuple[str, ...] = ("",)
    """What the answer begins with. It is given, not predicted; with several, the loss is their mean."""
    eos: bool = True
    """Whether an outcome ends with the end of the answer; if not, the outcomes themselves must be prefix-free."""

    def __post_init__(self) -> None:
        if not self.outcomes:
            raise InputError(f"`strings` needs at least one outcome, as in {_EXAMPLE}.")
        if len(self.outcomes) > MAX_OUTCOMES:
            raise InputError(f"There are {len(self.outcomes):,} outcomes; use at most {MAX_OUTCOMES:,}.")
        checked: dict[str, float] = {}
        for text, weight in self.outcomes:
            if not check_text("outcome", text):
                raise InputError("An outcome is empty; every outcome has at least one character.")
            if text in checked:
                raise InputError(f"The outcome {text!r} is given twice; each outcome takes one weight.")
            checked[text] = check_number(
                "weight", weight, f"a number 0 or more for the outcome {text[:40]!r}", lambda w: w >= 0
            )
        if not any(checked.values()):
            raise InputError("All weights are 0; at least one outcome needs a weight above 0.")
        object.__setattr__(self, "outcomes", tuple(checked.items()))
        check_text("request", self.request)
        for prefix in self.response:
            check_text("response", prefix)
        if not self.response or len(set(self.response)) < len(self.response):
            raise InputError("`response` is one text, or a list of different ones, that the answer begins with.")
        check_flag("eos", self.eos)

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(text for text, _ in self.outcomes)

    def __str__(self) -> str:
        table = ", ".join(f"{literal(text)}: {literal(weight)}" for text, weight in self.outcomes)
        response = self.response[0] if len(self.response) == 1 else self.response
        end = "" if self.eos else ", eos=False"
        return f"strings({{{table}}}, request={literal(self.request)}, response={literal(response)}{end})"

    def probabilities(self, context: BuildContext) -> tuple[Tensor, Provenance]:
        raise InputError("Transforms act on single tokens; a target over strings takes none.")

    def build(
        self, lm: LanguageModel, *, load: Load | None = None, recorded: Mapping[str, RecordedPrompt] | None = None
    ) -> StringTarget:
        """The target for a model: its outcomes as tokens.

        InputError if two outcomes clash (one's tokens are the beginning of the other's), naming both and the cure, if
        the model has no token that ends an answer, or if a sequence is longer than the model accepts.
        """
        lm.check_tunable()  # outcomes are scored behind embeddings
        request_ids, opening, end = _frame(lm, self)
        known = BuildContext(lm, load, recorded or {}).recorded_ids(self, lm)
        changed = {} if known in (None, request_ids) else {"prompt_changed": True}
        request_ids = known or request_ids
        prefixes = [encode_behind(lm, opening, prefix) for prefix in self.response]
        before = opening + self.response[0]
        outcomes = [encode_behind(lm, before, text) + end for text in self.texts]
        longest = len(request_ids) + max(map(len, prefixes)) + max(map(len, outcomes))
        if lm.max_positions is not None and longest > lm.max_positions:
            raise InputError(
                f"The request with its longest outcome has {longest:,} tokens; {lm.name} accepts {lm.max_positions:,}."
            )
        check_tree_size(outcomes, prefixes)
        try:
            tree = OutcomeTree.of(outcomes, prefixes)
        except PrefixClash as clash:
            raise InputError(_clash_sentence(self.texts[clash.short], self.texts[clash.long], self.eos)) from None
        weights = torch.tensor([weight for _, weight in self.outcomes], dtype=torch.float64)
        weights = weights / weights.max()  # before the sum, which could overflow
        provenance: dict[str, Any] = {
            "kind": "strings",
            "model": lm.name,
            "chat": has_chat(lm),
            "identity": lm.identity,
            "request_tokens": len(request_ids),
            "prompt_ids": request_ids,
            **changed,
            "nodes": len(tree.inputs),
            "end": lm.decode(end) if end else None,
        }
        return StringTarget(
            torch.cat([weights / weights.sum(), torch.zeros(1, dtype=torch.float64)]),
            str(self),
            provenance,
            strings=self,
            tree=tree,
            request_ids=request_ids,
            end_ids=frozenset(end),
        )


def strings(
    outcomes: Mapping[str, float] | Sequence[str],
    request: str = "",
    response: str | Sequence[str] = "",
    eos: bool = True,
) -> Strings:
    """A distribution over whole strings, in proportion to their weights; a list of strings means equal weights.

    `request` is what the user says, `response` what the answer begins with (one text, or several of which each is as
    likely). `eos` adds the end of the answer to every outcome, which makes any set prefix-free.
    """
    if isinstance(outcomes, Mapping):
        pairs = tuple(outcomes.items())
    elif isinstance(outcomes, list | tuple):
        pairs = tuple((text, 1.0) for text in outcomes)
    else:
        raise InputError(f"`outcomes` is neither a table nor a list; write it as in {_EXAMPLE}.")
    prefixes = (
        (response,) if isinstance(response, str) else tuple(response) if isinstance(response, list | tuple) else ()
    )
    return Strings(pairs, request, prefixes, eos)


def _frame(lm: LanguageModel, asked: Strings) -> tuple[list[int], str, list[int]]:
    """Ids of the request, the text that stands before an answer, and the ids that end one."""
    if not has_chat(lm):
        if not asked.request:
            raise InputError(f"{lm.name} has no chat template, so the request cannot be empty; write a text.")
        end = [lm.tokenizer.eos_token_id] if asked.eos else []
        if end == [None]:
            raise InputError(f"{lm.name} has no end-of-sequence token; use a closing mark and eos=False.")
        return lm.encode(asked.request), asked.request, end  # type: ignore[return-value]
    ids = prompt_ids(lm, asked.request, chat=True)
    return ids, chat_text(lm, asked.request), [end_of_answer(lm, asked.request)] if asked.eos else []


def _clash_sentence(short: str, long: str, eos: bool) -> str:
    if eos:
        return f"The outcomes {short[:60]!r} and {long[:60]!r} are the same tokens; leave one of them out."
    return (
        f"The outcomes clash: {short[:60]!r} is the beginning of {long[:60]!r}, so the one cannot be told from the "
        "other; end them with the end-of-sequence token (eos=True) or with a closing mark, as in '{1}' and '{10}'."
    )
