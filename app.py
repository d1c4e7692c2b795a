"""Builds and launches the demo: `python app.py`, then open the address it prints. The same as `dpexplore app`."""

from __future__ import annotations

import sys

from dpexplore.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
