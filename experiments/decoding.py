"""What makes pixels a cell? ``python experiments/decoding.py``: F1 of the shipped teacher over the rules of decoding.

On validation images of DSB2018 and LIVECell, prepared by ``make experiments``; no test image is looked at. Writes
``results/decoding.md``, on which the default of ``predict.min_size`` rests, and the rule that the teacher carries.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import cellseg
from cellseg.config import PredictConfig, Selection
from cellseg.core import CellsegError
from cellseg.datasets.index import select
from cellseg.files import write_text
from cellseg.images import read_image, read_labels
from cellseg.metrics import match
from cellseg.progress import track

SETS = ("dsb2018", "livecell")
PLAIN = {"foreground": 0.5, "min_score": 0.0}
SIZES = [PredictConfig(min_size=size, **PLAIN) for size in (1, 10, 20, 30, 45, 60, 90)]
RULES = [PredictConfig(foreground=p, min_score=s) for p in (0.5, 0.45, 0.38, 0.3) for s in (0.0, 0.7, 0.75, 0.8)]
RESULT = Path(__file__).resolve().parent / "results" / "decoding.md"
HEAD = """# What makes pixels a cell?

Mean F1@.5 of the shipped teacher in default settings but those named, on validation images. Made by
`python experiments/decoding.py`.

## How small may a cell be?

Over `predict.min_size`: cells of fewer pixels are dropped, counted where a typical cell has 24 pixels across.
Foreground from a probability of .5, no least score. The default, 30, was chosen at one scale an image for all sizes;
here every size finds its own scale, and 60 is a little ahead.

"""
SECOND = """
## How sure must the network be?

Over `predict.foreground`, the probability above which a pixel may belong to a cell, and `predict.min_score`: cells of
a lower mean probability are dropped. The shipped teacher carries .38 and .7, the best on DSB2018, and hands them on to
its students.

"""


def main() -> None:
    """Score every rule on every set and write the tables."""
    sizes = table([f"{one.min_size}" for one in SIZES], SIZES)
    rules = table([f"{one.foreground:g}, {one.min_score:g}" for one in RULES], RULES)
    write_text(RESULT, HEAD + sizes + SECOND + rules)
    print(RESULT)


def table(heads: Sequence[str], settings: Sequence[PredictConfig]) -> str:
    """Score some settings; a row a setting, a column a set."""
    scores = [score(name, settings) for name in SETS]
    lines = [f"| | {' | '.join(f'{name} val, {len(one)} images' for name, one in zip(SETS, scores, strict=True))} |"]
    lines += [f"|---|{'--:|' * len(SETS)}"]
    for place, head in enumerate(heads):
        lines.append(f"| {head} | {' | '.join(f'{one[:, place].mean():.3f}' for one in scores)} |")
    return "\n".join(lines) + "\n"


def score(name: str, settings: Sequence[PredictConfig]) -> np.ndarray:
    """Return F1 at IoU 0.5, a row an image of the validation split, a column a setting; 1 where there is nothing."""
    records = select(Selection(index=f"data/prepared/{name}/index.csv", split="val"))
    start = cellseg.load("teacher")
    rows = []
    for record in track(records, name, total=len(records)):
        if record.labels is None:
            continue
        image, truth = read_image(record.image), read_labels(record.labels)
        found = (replace(start, settings=one).segment(image) for one in settings)
        rows.append([match(truth, labels, thresholds=(0.5,))[0].f1 for labels in found])
    return np.nan_to_num(np.array(rows), nan=1.0)


if __name__ == "__main__":
    try:
        main()
    except CellsegError as error:
        sys.exit(f"error: {error}")
