"""Where the files that travel with the code are: in a wheel inside the package, in a checkout beside it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

_PACKAGE = Path(str(files("dpexplore")))

ASSETS = _PACKAGE / "assets" if (_PACKAGE / "assets").is_dir() else _PACKAGE.parent / "assets"
CHECKOUT = ASSETS.parent
"""The project's top in a checkout; the package itself where it was installed from a wheel."""
SPACEFILE = CHECKOUT / "Spacefile" if (CHECKOUT / "Spacefile").is_file() else ASSETS / "Spacefile"
