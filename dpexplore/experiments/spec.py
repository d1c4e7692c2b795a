"""A sweep's spec: YAML in, problems out. Specs for every figure of the paper ship beside this module."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from dpexplore.errors import InputError
from dpexplore.experiments.problems import ModelFacts, Problem
from dpexplore.experiments.spec_file import TEXT_SETTINGS, SpecFile, parse_spec
from dpexplore.experiments.yaml_text import Plain, scalar
from dpexplore.targets import parse_recipe
from dpexplore.targets.recipe import literal
from dpexplore.tuning import TuneConfig

SHIPPED = Path(__file__).parent / "specs"
SIZES = ("paper", "small")
MOST_PROBLEMS = 1_000_000

Label = str | int | float

_QUOTED = re.compile(r""" "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' """, re.VERBOSE)


class Varied(NamedTuple):
    """One value that a spec varies."""

    label: Label
    """What it is called in the results: a number where all values of its axis are numbers."""
    written: str
    """Its text, which takes the place of `$name`."""


@dataclass(frozen=True)
class Group:
    """Targets of one kind, over the product of what is varied."""

    name: str
    recipe: str
    """Recipe text with `$name` where a varied value goes; empty for pos_counts."""
    over: dict[str, Any] = field(default_factory=dict)
    """Name -> list, {from, to, step} or {count}; the first one varies slowest. `to: max` is log2(vocab)."""
    kinds: tuple[str, ...] = ("tune",)
    tune: dict[str, Any] = field(default_factory=dict)
    """Fields of `TuneConfig`; a text may hold `$name` too."""
    restarts: int = 5
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """One sweep, of one size."""

    name: str
    figure: str
    """Which figure it is for (`dpexplore.experiments.figures`)."""
    title: str
    size: str
    groups: tuple[Group, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Every model it tunes, in order."""
        return tuple(dict.fromkeys(model for group in self.groups for model in group.models))

    @property
    def sources(self) -> tuple[str, ...]:
        """The models that its groups vary as `source`, in order."""
        listed = (group.over["source"] for group in self.groups if isinstance(group.over.get("source"), list))
        return tuple(dict.fromkeys(str(source) for sources in listed for source in sources))

    def problems(self, model: ModelFacts) -> Iterator[tuple[Problem, str, dict[str, Label]]]:
        """The problems of one model, each with its group's name and its labels.

        A `source` that is the model itself is left out: what a model says itself is not migrated.
        """
        for group in self.groups:
            if model.name not in group.models:
                continue
            for values in _product(group, model.vocab_size):
                labels = {name: value.label for name, value in values.items()}
                if labels.get("source") == model.name:
                    continue
                recipe = str(parse_recipe(_fill_recipe(group.recipe, values))) if group.recipe else ""
                for kind in group.kinds:
                    if kind != "tune":
                        yield Problem(kind, model, recipe), group.name, labels  # type: ignore[arg-type]
                        continue
                    config = _config(group, values)
                    for restart in range(group.restarts):
                        yield Problem.tune(model, recipe, config, restart), group.name, labels


def known_specs() -> dict[str, str]:
    """Name of each shipped spec -> its title."""
    return {path.stem: _read(path).title for path in sorted(SHIPPED.glob("*.yaml"), key=_order)}


def load_spec(name: str, size: str | None = None) -> Spec:
    """The spec in a YAML file, or a shipped one by name: `fig1`, `fig1-small`, `my.yaml`.

    size: paper or small; None takes the name's ending, else `small`. InputError names the field that is wrong.
    """
    path = Path(name)
    stem, ending = name, None
    if not path.is_file():
        for known in SIZES:
            if path.stem.endswith(f"-{known}"):
                stem, ending = path.stem.removesuffix(f"-{known}"), known
        path = SHIPPED / f"{Path(stem).stem}.yaml"
        if not path.is_file():
            raise InputError(
                f"There is no spec {name!r}; use a YAML file, or one of {', '.join(known_specs())}, "
                "with -small or -paper after it."
            )
    spec = _read(path)
    size = size or ending or "small"
    if size not in spec.sizes:
        raise InputError(f"The spec {path.name} has no size {size!r}; it has {', '.join(spec.sizes)}.")
    return Spec(f"{path.stem}-{size}", spec.figure or path.stem, spec.title, size, _groups(spec, size))


def _order(path: Path) -> tuple[int, str]:
    digits = "".join(filter(str.isdigit, path.stem))
    return (int(digits) if digits else 10_000, path.stem)


def _read(path: Path) -> SpecFile:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InputError(f"The spec {path.name} cannot be read: {why}.") from error
    return parse_spec(f"The spec {path.name}", text)


def _groups(spec: SpecFile, size: str) -> tuple[Group, ...]:
    """The groups of one size, with what stands beside them as their defaults."""
    shared = spec.sizes[size]
    groups = []
    for name, own in shared.groups.items():
        merged = shared.fields() | own.fields()
        merged["tune"] = {**shared.tune, **own.tune}
        groups.append(Group(name, **merged))
    return tuple(groups)


def _config(group: Group, values: dict[str, Varied]) -> TuneConfig:
    fields = {name: _setting(name, value, values) for name, value in group.tune.items()}
    preset = fields.pop("preset", None)
    return TuneConfig.preset(preset, **fields) if preset else TuneConfig.from_dict(fields)


def _setting(name: str, value: Any, values: dict[str, Varied]) -> Any:
    """A field of `TuneConfig`: text where it takes text, else what YAML 1.2 makes of it, a `$name` filled in."""
    if isinstance(value, list):
        read = [scalar(item) for item in value]
        return [item if isinstance(item, int) and not isinstance(item, bool) else str(raw)
                for item, raw in zip(read, value, strict=True)]  # fmt: skip
    if not isinstance(value, str):
        return value
    filled = _fill(value, values) if "$" in value else value
    if name in TEXT_SETTINGS:
        return None if isinstance(value, Plain) and scalar(value) is None else str(filled)
    return scalar(Plain(filled)) if isinstance(value, Plain) or "$" in value else filled


def _fill(text: str, values: dict[str, Varied]) -> str:
    try:
        return Template(text).substitute({name: value.written for name, value in values.items()})
    except (KeyError, ValueError) as error:
        raise InputError(f"`{text}` uses {error}, which `over` does not vary.") from error


def _fill_recipe(recipe: str, values: dict[str, Varied]) -> str:
    """The recipe with every `$name` filled in; within quotes the value is escaped, so that it stays one text."""

    def within_quotes(match: re.Match[str]) -> str:
        quote = match[0][0]
        inside = {name: Varied(value.label, _escaped(value.written, quote)) for name, value in values.items()}
        return _fill(match[0], inside) if "$" in match[0] else match[0]

    parts: list[str] = []
    at = 0
    for match in _QUOTED.finditer(recipe):
        parts += [_fill(recipe[at : match.start()], values), within_quotes(match)]
        at = match.end()
    return "".join([*parts, _fill(recipe[at:], values)])


def _escaped(text: str, quote: str) -> str:
    inside = literal(text)[1:-1]
    return inside if quote == '"' else inside.replace('\\"', '"').replace("'", "\\'")


def _product(group: Group, vocab_size: int) -> Iterator[dict[str, Varied]]:
    axes = {name: _values(group, name, spread, vocab_size) for name, spread in group.over.items()}
    size = math.prod(map(len, axes.values())) * group.restarts
    if size > MOST_PROBLEMS:
        raise InputError(f"The group {group.name!r} has {size:,} problems; use at most {MOST_PROBLEMS:,}.")
    for chosen in itertools.product(*axes.values()):
        yield {
            name: each
            if isinstance(each, Varied)
            else Varied(each, f"{each:g}" if isinstance(each, float) else str(each))
            for name, each in zip(axes, chosen, strict=True)
        }


def _values(group: Group, name: str, spread: Any, vocab_size: int) -> Sequence[Varied | int | float]:
    """A list as it is; {count} from 0; {from, to, step} with both ends, free of rounding's drift."""
    if isinstance(spread, list) and spread:
        return _listed(group, name, spread)
    if isinstance(spread, dict):
        given = {key: scalar(value) for key, value in spread.items()}
        count = given.get("count")
        if set(given) == {"count"} and isinstance(count, int | float) and float(count).is_integer() and count > 0:
            return range(int(count))  # not yet counted out: it may be far too many
        if set(given) == {"from", "to", "step"}:
            low, step = given["from"], given["step"]
            high = math.log2(vocab_size) if given["to"] == "max" else given["to"]
            numbers = [value for value in (low, high, step) if isinstance(value, int | float) and math.isfinite(value)]
            if len(numbers) == 3 and step > 0 and high >= low:
                count = math.floor((high - low) / step + 1e-9) + 1
                if count > MOST_PROBLEMS:
                    raise InputError(f"`{name}` has {count:,} values; use at most {MOST_PROBLEMS:,} problems.")
                return [round(low + number * step, 9) for number in range(count)]
    raise InputError(
        f"`{name}` varies over {str(spread)[:60]!r}; write a list of values, {{count: 5}} or "
        "{from: 0, to: max, step: 0.05}."
    )


def _listed(group: Group, name: str, values: list[Any]) -> list[Varied]:
    """Listed values: numbers if all of them are, unless a recipe takes them as text."""
    if any(isinstance(value, list | dict) for value in values):
        raise InputError(f"`{name}` holds a list or a table; it varies over texts and numbers.")
    read = [scalar(value) for value in values]
    as_text = any(re.search(rf"\$(?:{name}\b|{{{name}}})", match[0]) for match in _QUOTED.finditer(group.recipe))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in read)
    if numbers and not as_text:
        return [Varied(number, str(raw)) for number, raw in zip(read, values, strict=True)]
    return [Varied(str(value), str(value)) for value in values]
