"""`python -m dpexplore`: the command line."""

import sys

from dpexplore.cli import main

if __name__ == "__main__":
    sys.exit(main())
