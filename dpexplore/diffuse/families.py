"""Six families of requests for something random, and biographies built from them (Forcing Diffuse Distributions, §4).

Countries and continents come from country_converter, occupations and names from Faker, the rest is written here. An
outcome of weight 0 is valid but never trained on: the longer lists keep some back, to see whether they are reached.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from dpexplore.diffuse.biographies import Biography
from dpexplore.diffuse.config import SIZES, Size
from dpexplore.errors import InputError
from dpexplore.extras import extra
from dpexplore.targets import Strings, strings

SMALL_OUTCOMES = 12
"""Outcomes of a request in `small` size that are trained on, at most."""
FULL_OUTCOMES = 200
HELD_BACK = 0.5
"""Valid names and occupations kept back for each one trained on."""

# fmt: off
FRUITS = (
    "apple", "apricot", "avocado", "banana", "blackberry", "blackcurrant", "blueberry", "boysenberry",
    "cantaloupe", "cherry", "clementine", "coconut", "cranberry", "date", "dragonfruit", "durian",
    "elderberry", "fig", "gooseberry", "grape", "grapefruit", "guava", "honeydew", "jackfruit", "kiwi",
    "kumquat", "lemon", "lime", "loquat", "lychee", "mandarin", "mango", "mulberry", "nectarine", "olive",
    "orange", "papaya", "passionfruit", "peach", "pear", "persimmon", "pineapple", "plantain", "plum",
    "pomegranate", "pomelo", "quince", "rambutan", "raspberry", "satsuma", "soursop", "starfruit",
    "strawberry", "tamarind", "tangerine", "watermelon",
)
# fmt: on

MONTHS = [calendar.month_name[month] for month in range(1, 13)]
DAYS_IN_MONTH = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
CONTINENTS = ("Africa", "America", "Asia", "Europe", "Oceania")


@dataclass(frozen=True)
class Task:
    """One request of a family."""

    name: str
    strings: Strings


def braces(what: str, example: str) -> str:
    """How the paper's requests ask for an answer that can be read by a program."""
    return f"Output only the {what} between two curly braces, like this: {{{example}}}. Don't output code."


def family(name: str, size: Size = "small") -> list[Task]:
    """The requests of a family. InputError for an unknown name or size."""
    if name not in FAMILIES:
        raise InputError(f"There is no family {name!r}; known are {', '.join(FAMILIES)}.")
    if size not in SIZES:
        raise InputError(f"size is {size!r}; use one of {', '.join(map(repr, SIZES))}.")
    return FAMILIES[name](size)


def numbers(size: Size) -> list[Task]:
    """Whole numbers in ranges and with properties."""
    hundred = range(1, 101)
    primes = [n for n in range(2, 101) if all(n % d for d in range(2, n))]
    ranges: list[tuple[str, str, Sequence[int]]] = [
        ("1-10", "number between 1 and 10", range(1, 11)),
        ("1-100", "number between 1 and 100", hundred),
        ("even", "even number between 1 and 100", [n for n in hundred if n % 2 == 0]),
        ("odd", "odd number between 1 and 100", [n for n in hundred if n % 2]),
        ("primes", "prime number between 1 and 100", primes),
    ]
    chosen = [ranges[0], ranges[-1]] if size == "small" else ranges
    return [
        _uniform(name, f"Generate a random {what}. {braces('number', 'number')}", map(str, values))
        for name, what, values in chosen
    ]


def days_and_dates(size: Size) -> list[Task]:
    """Days of the week, months, and the days of each month."""
    week = list(calendar.day_name)
    tasks = [
        _uniform("weekday", f"Choose a random day of the week. {braces('day', 'day')}", week),
        _uniform("month", f"Choose a random month of the year. {braces('month', 'month')}", MONTHS),
    ]
    for month in () if size == "small" else range(1, 13):
        name = MONTHS[month - 1]
        days = [f"{name} {day}" for day in range(1, DAYS_IN_MONTH[month - 1] + 1)]
        request = f"Randomly choose a date from the month of {name}. {braces('date', f'{name} 1')}"
        tasks.append(_uniform(name.lower(), request, days))
    return tasks


def countries(size: Size) -> list[Task]:
    """The countries of each continent."""
    tasks = []
    for continent in CONTINENTS[-2:] if size == "small" else CONTINENTS:
        request = (
            f"Output a random country in {continent}, chosen completely at random. {braces('name', 'country name')}"
        )
        tasks.append(_trained(continent.lower(), request, _countries_of(continent), size, held_back=0))
    return tasks


def fruits(size: Size) -> list[Task]:
    """Fruits."""
    request = f"Name a random fruit. {braces('fruit', 'fruit')}"
    return [_trained("fruit", request, FRUITS, size)]


def occupations(size: Size) -> list[Task]:
    """Occupations."""
    request = f"Name a random occupation. {braces('occupation', 'occupation')}"
    return [_trained("occupation", request, _occupations(), size)]


def baby_names(size: Size) -> list[Task]:
    """First names of girls and of boys."""
    girls, boys = _first_names()
    return [
        _trained(kind, f"Give me a random name for a baby {kind}. {braces('name', 'name')}", names, size)
        for kind, names in (("girl", girls), ("boy", boys))
    ]


def biographies(size: Size) -> list[Task]:
    """Sketches of invented people, each built from the other families' lists; no two alike."""
    girls, boys = _first_names()
    surnames = _surnames()
    places = [country for continent in CONTINENTS for country in _countries_of(continent)]
    jobs = _occupations()
    rng = torch.Generator().manual_seed(0)

    def pick(values: Sequence[str]) -> str:
        return values[int(torch.randint(len(values), (), generator=rng))]

    def person(i: int) -> str:
        names, gender = ((girls, "Female"), (boys, "Male"))[i % 2]
        year = int(torch.randint(1900, 2000, (), generator=rng))
        month = int(torch.randint(12, (), generator=rng))
        day = int(torch.randint(1, DAYS_IN_MONTH[month] - 1, (), generator=rng))
        born = f"{MONTHS[month]} {day}, {year}"
        return str(Biography(f"{pick(names)} {pick(surnames)}", gender, born, pick(places), pick(jobs)))

    count = SMALL_OUTCOMES if size == "small" else FULL_OUTCOMES
    people = list(dict.fromkeys(person(i) for i in range(count)))
    request = (
        "Generate a random biography sketch of an invented person. Output name, gender, date of birth, country of "
        "birth and occupation, each between two curly braces on a line of its own, and nothing else, like this:\n"
        "{First name and last name}\n{Female or Male}\n{Date and year of birth}\n{Country}\n{Occupation}"
    )
    return [Task("biography", strings(people, request=request))]


FAMILIES: dict[str, Callable[[Size], list[Task]]] = {
    "numbers": numbers,
    "days-and-dates": days_and_dates,
    "countries": countries,
    "fruits": fruits,
    "occupations": occupations,
    "baby-names": baby_names,
    "biographies": biographies,
}
SIX = tuple(name for name in FAMILIES if name != "biographies")
"""The families of the paper's generalisation experiments."""


def _uniform(name: str, request: str, values: Sequence[str] | map[str]) -> Task:
    return Task(name, strings([f"{{{value}}}" for value in values], request=request))


def _trained(name: str, request: str, values: Sequence[str], size: Size, held_back: float = HELD_BACK) -> Task:
    """Uniform over some of the values, drawn with a fixed seed; of the rest some are valid but never trained on."""
    rng = torch.Generator().manual_seed(0)
    order = [values[i] for i in torch.randperm(len(values), generator=rng).tolist()]
    most = SMALL_OUTCOMES if size == "small" else FULL_OUTCOMES
    count = min(most, int(len(order) / (1 + held_back)))
    kept = order[count : count + int(count * held_back)]
    weights = {f"{{{value}}}": 1.0 for value in order[:count]} | {f"{{{value}}}": 0.0 for value in kept}
    return Task(name, strings(weights, request=request))


@cache
def _countries_of(continent: str) -> tuple[str, ...]:
    with extra("diffuse", "The family countries"):
        import country_converter

    data: Any = country_converter.CountryConverter().data
    members = data[(data["continent"] == continent) & data["UNmember"].notna()]
    return tuple(sorted(members["name_short"]))


def _occupations() -> list[str]:
    with extra("diffuse", "The family occupations"):
        from faker.providers.job import Provider

    plain = {job for job in Provider.jobs if job.replace(" ", "").isalpha()}
    return sorted(plain)


def _first_names() -> tuple[list[str], list[str]]:
    with extra("diffuse", "Families of names"):
        from faker.providers.person.en_US import Provider

    girls, boys = set(Provider.first_names_female), set(Provider.first_names_male)
    return sorted(girls - boys), sorted(boys - girls)


def _surnames() -> list[str]:
    with extra("diffuse", "Families of names"):
        from faker.providers.person.en_US import Provider

    return sorted(Provider.last_names)
