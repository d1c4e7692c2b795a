"""Make the part-of-speech table that ships in `assets/`: `python -m dpexplore.targets.make_pos_table`.

It holds the words of the default model's vocabulary (35 s on one core); `--model NAME`, several
times, takes the words of other models.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dpexplore.models import DEFAULT_MODEL, load_model
from dpexplore.targets.by_pos import word_ids
from dpexplore.targets.pos_table import SHIPPED_TABLE, write_table
from dpexplore.targets.pos_tagger import chosen_pipeline, load_tagger


def main() -> None:
    """Tag the words of the vocabularies asked for and write the table."""
    options = argparse.ArgumentParser(prog="python -m dpexplore.targets.make_pos_table", description=__doc__)
    options.add_argument("--model", action="append", help="a model whose vocabulary's words to tag")
    options.add_argument("--out", type=Path, default=SHIPPED_TABLE)
    chosen = options.parse_args()
    words = {word for name in chosen.model or [DEFAULT_MODEL] for word in word_ids(load_model(name))}
    tagger = load_tagger(chosen_pipeline()[0])
    write_table(chosen.out, tagger.tag(sorted(words)), tagger.key)
    print(f"{len(words):,} words by {tagger.key} -> {chosen.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
