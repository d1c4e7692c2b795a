"""`dpexplore generalise`: what LoRA training on some families of requests does for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dpexplore.cli.common import (
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
from dpexplore.cli.diffuse import SizeOption
from dpexplore.diffuse.config import PRESETS, AdapterConfig
from dpexplore.errors import InputError
from dpexplore.files import append_line
from dpexplore.models.names import DEFAULT_MODEL

MODES = ("untuned", "leave-one-out", "leave-one-in")


def generalise(
    model: ModelOption = DEFAULT_MODEL,
    size: SizeOption = "small",
    families: Annotated[
        str | None, typer.Option(help="Families, separated by commas; default: the paper's six.")
    ] = None,
    modes: Annotated[str, typer.Option(help=f"Any of {', '.join(MODES)}.")] = "untuned,leave-one-out",
    preset: Annotated[str, typer.Option(help=f"{', '.join(PRESETS)}.")] = "fast",
    passes: Annotated[int, typer.Option(help="Most passes over the families trained on.")] = 12,
    seeds: Annotated[int, typer.Option(help="Trainings of each cell, with seeds 0, 1, …")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="File that keeps each cell; cells in it are not computed again.")
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Train on some families of requests and test on others; KL in nats with 95 % intervals over the requests.

    Every cell is printed as soon as it is computed; a run that was stopped continues from the cells in --out. Without
    --json the matrix follows, as a Markdown table.
    """
    from dpexplore.diffuse import generalise as matrix
    from dpexplore.diffuse.families import SIX, family
    from dpexplore.diffuse.matrix import cell_record, matrix_table, place_of, read_cells

    check_writable(out)
    config = AdapterConfig.preset(preset, passes=passes, early_stop=True)
    if not 1 <= seeds <= 1000:
        raise InputError(f"--seeds is {seeds}; give a whole number from 1 to 1,000.")
    chosen, wanted = (_listed(text) for text in (families or ",".join(SIX), modes))
    for mode in wanted:
        if mode not in MODES:
            raise InputError(f"--modes has {mode!r}; use {', '.join(MODES)}.")
    for name in chosen:
        family(name, size)  # type: ignore[arg-type]  # refuse now, not after the first training
    lm = load(model, device, dtype)
    settings = {"model": lm.identity, "size": size, "config": config.to_dict(), "seeds": seeds}
    wanted_cells = [record for record in read_cells(out, settings) if record["mode"] in wanted] if out else []
    records = [record for record in wanted_cells if {*record["trained"], record["tested"]} <= set(chosen)]
    for record in records:
        _show_cell(record, as_json)
    for cell in matrix.generalise(
        lm, size=size, families=chosen, modes=wanted, config=config, seeds=range(seeds),  # type: ignore[arg-type]
        known={place_of(record) for record in records}, progress=progress,
    ):  # fmt: skip
        records.append(cell_record(cell, settings))
        if out is not None:
            append_line(out, json.dumps(records[-1], ensure_ascii=False))
        _show_cell(records[-1], as_json)
    if not as_json:
        say(matrix_table(records))


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _show_cell(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit({name: value for name, value in record.items() if name != "settings"})
        return
    mean, low, high = record["kl_nats"]
    trained = ", ".join(record["trained"]) or "nothing"
    text = f"{record['mode']}: {record['tested']} after {trained}: KL {mean:.3f} nats ({low:.3f} to {high:.3f})"
    say(text)
