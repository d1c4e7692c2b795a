"""The command line with every result committed at once: what the tests of killed drivers start.

python -m tests.sweep_driver SPEC STORE
"""

from __future__ import annotations

import sys

from dpexplore.cli import main
from dpexplore.experiments import worker

if __name__ == "__main__":
    worker.FLUSH_SECONDS = 0.0
    sys.exit(main(["sweep", sys.argv[1], "--store", sys.argv[2], "--device", "cpu", "--rows", "3", "--json"]))
