"""A run's settings as options of the command line, generated from their one description (`tuning.knobs`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from dpexplore.tuning.config import TuneConfig
from dpexplore.tuning.knobs import KNOBS, Knob


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes `**settings` one option for each setting of a run; those left out are None."""
    own = inspect.signature(command, eval_str=True)
    parameters = [each for each in own.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    parameters += [_option(knob, hint) for knob, hint in _described()]
    command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def _described() -> list[tuple[Knob, Any]]:
    hints = get_type_hints(TuneConfig)
    return [(knob, hints[name]) for name, knob in KNOBS.items()]


def _option(knob: Knob, hint: Any) -> inspect.Parameter:
    annotation = Annotated[
        _parsed_as(hint), typer.Option(help=_help(knob), show_default=_papers(knob), rich_help_panel=knob.group)
    ]
    return inspect.Parameter(knob.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _parsed_as(hint: Any) -> Any:
    """How an option of a setting's type is read; choices stay text, for `TuneConfig` to check."""
    kinds = (
        {get_origin(kind) or kind for kind in (get_args(hint) or (hint,))} if get_origin(hint) is not Literal else {str}
    )
    if get_origin(hint) is tuple:
        return list[str] | None
    for kind in (str, bool, int, float):  # text first: a norm budget is a number or such as 1x
        if kind in kinds:
            return kind | None
    return str | None


def _help(knob: Knob) -> str:
    if knob.choices:
        return f"{knob.text} One of {', '.join(knob.choices)}."
    return f"{knob.text} Repeat the option for more." if knob.name in ("allow", "forbid") else knob.text


def _papers(knob: Knob) -> str | bool:
    """The paper's value, if the setting has one."""
    value = getattr(TuneConfig(), knob.name)
    return False if value is None or value == () else f"paper: {value}"
