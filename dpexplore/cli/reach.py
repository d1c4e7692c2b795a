"""`dpexplore reach`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpexplore.cli.common import (
    AcceptOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    check_writable,
    emit,
    load,
    progress,
    say,
)
from dpexplore.errors import InputError
from dpexplore.models.names import DEFAULT_MODEL

if TYPE_CHECKING:
    import dpexplore as dp

PROGRESS_SECONDS = 1.0


def reach(
    first: Annotated[str | None, typer.Option(help="A token, such as ' the': can it ever be the likeliest?")] = None,
    order: Annotated[
        str | None, typer.Option(help="Tokens separated by commas, such as ' the, a, an': can they be the likeliest?")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Decide for every token of the vocabulary.")] = False,
    model: ModelOption = DEFAULT_MODEL,
    out: Annotated[
        Path | None, typer.Option(help="With --all: keep one JSON line a token here, and resume from what is there.")
    ] = None,
    head: Annotated[
        Path | None, typer.Option(help="Write the softmax head to this .npz file, to check proofs against.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="Time for each token or order before it is left open.")
    ] = 60.0,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    accept_terms: AcceptOption = False,
) -> None:
    """Prove which words a model can or can never put first, whatever the prompt."""
    if sum([first is not None, order is not None, every]) != 1:
        raise InputError("Name one of --first, --order and --all.")
    if out is not None and not every:
        raise InputError("--out keeps the listing of --all; leave it out for one word or order.")
    check_writable(out)
    check_writable(head)
    from dpexplore.floor import reach as of_model
    from dpexplore.floor.whole_vocabulary import reach_all

    words = of_model.words_of(order) if order is not None else [first or ""]
    lm = load(model, device, dtype, accept_terms)
    if head is not None:
        of_model.save_head(lm, head)
    if every:
        _list(lm, reach_all(lm, out, seconds=seconds), as_json)
        return
    found = of_model.reach(lm, words, seconds=seconds)
    if as_json:
        emit(found.record())
        return
    say(found.sentence)


def _list(lm: dp.LanguageModel, records: Iterable[dict[str, Any]], as_json: bool) -> None:
    """Show each answer, or those that are not yes, then a summary."""
    began = shown = time.monotonic()
    unsayable: list[dict[str, Any]] = []
    undecided: list[int] = []
    total = 0
    for total, record in enumerate(records, 1):
        if as_json:
            emit(record)
        if record["can"] is False:
            unsayable.append(record)
        elif record["can"] is None:
            undecided += record["ids"]
        if time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            progress(f"{total:,} of {lm.vocab_size:,} tokens, {len(unsayable):,} of them can never come first")
    ids = [record["ids"][0] for record in unsayable]
    ordinary = set(lm.ordinary_ids.tolist()).intersection(ids)
    if as_json:
        emit(
            {
                "event": "summary",
                "tokens": total,
                "cannot": ids,
                "cannot_ordinary": sorted(ordinary),
                "undecided": undecided,
                "seconds": time.monotonic() - began,
            }
        )
        return
    for record in unsayable:
        above = ", ".join(map(repr, record["above"]))
        say(f"{record['ids'][0]:>7}  {record['first']!r}  always at or below one of {above}, …")
    say(
        f"{len(ids):,} of {total:,} tokens can never come first, {len(ordinary):,} of them ordinary text; "
        f"{len(undecided):,} undecided."
    )
