"""A sweep's spec: YAML in, problems out. Specs for every figure of the paper ship beside this module."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml

from dpexplore.errors import InputError
from dpexplore.experiments.problems import ModelFacts, Problem
from dpexplore.targets import parse_recipe
from dpexplore.tuning import TuneConfig

SHIPPED = Path(__file__).parent / "specs"
SIZES = ("paper", "small")
MOST_PROBLEMS = 1_000_000

Label = str | int | float


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

    def problems(self, model: ModelFacts) -> Iterator[tuple[Problem, str, dict[str, Label]]]:
        """The problems of one model, each with its group's name and its labels."""
        for group in self.groups:
            if model.name not in group.models:
                continue
            for labels in _product(group, model.vocab_size):
                recipe = str(parse_recipe(_fill(group.recipe, labels))) if group.recipe else ""
                for kind in group.kinds:
                    if kind != "tune":
                        yield Problem(kind, model, recipe), group.name, labels  # type: ignore[arg-type]
                        continue
                    config = _config(group, labels)
                    for restart in range(group.restarts):
                        yield Problem.tune(model, recipe, config, restart), group.name, labels


def known_specs() -> dict[str, str]:
    """Name of each shipped spec -> its title."""
    return {path.stem: _read(path)["title"] for path in sorted(SHIPPED.glob("*.yaml"), key=_order)}


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
                f"There is no spec {name!r}; a YAML file is accepted, or one of {', '.join(known_specs())}, "
                "with -small or -paper after it."
            )
    raw = _read(path)
    size = size or ending or "small"
    sizes = raw.get("sizes")
    if not isinstance(sizes, dict) or size not in sizes:
        has = ", ".join(sizes) if isinstance(sizes, dict) else "none"
        raise InputError(f"The spec {path.name} has no size {size!r}; it has {has}.")
    groups = _groups(path.name, sizes[size])
    return Spec(f"{path.stem}-{size}", str(raw.get("figure", path.stem)), str(raw["title"]), size, groups)


def _order(path: Path) -> tuple[int, str]:
    digits = "".join(filter(str.isdigit, path.stem))
    return (int(digits) if digits else 10_000, path.stem)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"The spec {path} cannot be read: {' '.join(str(error).split())[:200]}.") from error
    if not isinstance(raw, dict) or "title" not in raw or "sizes" not in raw:
        raise InputError(f"The spec {path.name} lacks `title` or `sizes`; both are needed.")
    return raw


def _groups(file: str, size: Any) -> tuple[Group, ...]:
    """The groups of one size, with what stands beside them as their defaults."""
    if not isinstance(size, dict) or not isinstance(size.get("groups"), dict) or not size["groups"]:
        raise InputError(f"Each size of the spec {file} needs `groups`: names, each with a `recipe`.")
    shared = {key: value for key, value in size.items() if key != "groups"}
    known = {each.name for each in dataclasses.fields(Group)} - {"name"}
    groups = []
    for name, own in size["groups"].items():
        merged = shared | (own if isinstance(own, dict) else {"recipe": own})
        merged["tune"] = {**shared.get("tune", {}), **merged.get("tune", {})}
        if unknown := sorted(set(merged) - known):
            raise InputError(f"The spec {file} has the unknown field {unknown[0]!r}; accepted are {sorted(known)}.")
        groups.append(_group(file, str(name), merged))
    return tuple(groups)


def _group(file: str, name: str, raw: dict[str, Any]) -> Group:
    models, kinds = raw.get("models", []), raw.get("kinds", ["tune"])
    for field_name, values in (("models", models), ("kinds", kinds)):
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise InputError(f"`{field_name}` of the spec {file} is {values!r}; a list of names is accepted.")
    restarts = raw.get("restarts", 5)
    if isinstance(restarts, bool) or not isinstance(restarts, int) or not 1 <= restarts <= 100_000:
        raise InputError(f"`restarts` of the spec {file} is {restarts!r}; a whole number from 1 is accepted.")
    for field_name in ("over", "tune"):
        if not isinstance(raw.get(field_name, {}), dict):
            raise InputError(f"`{field_name}` of the spec {file} is {raw[field_name]!r}; a table is accepted.")
    if unknown := sorted(set(kinds) - {"tune", "floor", "shape", "pos_counts"}):
        raise InputError(f"The spec {file} asks for {unknown[0]!r}; tune, floor, shape and pos_counts are accepted.")
    return Group(
        name,
        str(raw.get("recipe", "")),
        raw.get("over", {}),
        tuple(kinds),
        raw["tune"],
        restarts,
        tuple(models),
    )


def _config(group: Group, labels: dict[str, Label]) -> TuneConfig:
    fields = {key: _fill(value, labels) if isinstance(value, str) else value for key, value in group.tune.items()}
    for key, value in group.tune.items():  # a number stays a number: `length: $length`
        if isinstance(value, str) and value.startswith("$") and value[1:] in labels:
            fields[key] = labels[value[1:]]
    preset = fields.pop("preset", None)
    return TuneConfig.preset(preset, **fields) if preset else TuneConfig.from_dict(fields)


def _fill(text: str, labels: dict[str, Label]) -> str:
    try:
        return Template(text).substitute({key: f"{value:g}" if isinstance(value, float) else value
                                          for key, value in labels.items()})  # fmt: skip
    except (KeyError, ValueError) as error:
        raise InputError(f"`{text}` uses {error}, which `over` does not vary.") from error


def _product(group: Group, vocab_size: int) -> Iterator[dict[str, Label]]:
    axes = {name: _values(name, spread, vocab_size) for name, spread in group.over.items()}
    size = math.prod(map(len, axes.values())) * group.restarts
    if size > MOST_PROBLEMS:
        raise InputError(f"The group {group.name!r} has {size:,} problems; at most {MOST_PROBLEMS:,} are accepted.")
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _values(name: str, spread: Any, vocab_size: int) -> Sequence[Label]:
    """A list as it is; {count} from 0; {from, to, step} with both ends, free of rounding's drift."""
    if isinstance(spread, list) and spread:
        return spread
    if isinstance(spread, dict) and set(spread) == {"count"} and isinstance(spread["count"], int):
        return range(spread["count"])  # not yet counted out: it may be far too many
    if isinstance(spread, dict) and set(spread) == {"from", "to", "step"}:
        low, step = spread["from"], spread["step"]
        high = math.log2(vocab_size) if spread["to"] == "max" else spread["to"]
        if all(isinstance(value, int | float) for value in (low, high, step)) and step > 0 and high >= low:
            count = math.floor((high - low) / step + 1e-9) + 1
            if count > MOST_PROBLEMS:
                raise InputError(f"`{name}` has {count:,} values; at most {MOST_PROBLEMS:,} problems are accepted.")
            return [round(low + number * step, 9) for number in range(count)]
    raise InputError(
        f"`{name}` varies over {spread!r}; a list of values, {{count: 5}} or {{from: 0, to: max, step: 0.05}} "
        "is accepted."
    )
