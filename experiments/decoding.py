"""How small may a cell be? ``python experiments/decoding.py``: F1 of the shipped teacher over ``predict.min_size``.

On validation images of DSB2018 and LIVECell, prepared by ``make experiments``; no test image is looked at. Writes
``results/decoding.md``, on which the default rests.
"""

from __future__ import annotations

import sys
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
SIZES = (1, 10, 20, 30, 45, 60, 90)
RESULT = Path(__file__).resolve().parent / "results" / "decoding.md"
HEAD = """# How small may a cell be?

Mean F1@.5 of the shipped teacher in default settings, over `predict.min_size`: cells of fewer pixels are dropped,
counted where a typical cell has 24 pixels across. Validation images; the default, 30, was chosen here. Made by
`python experiments/decoding.py`.

"""


def main() -> None:
    """Score every size on every set and write the table."""
    lines = [f"| set | images | {' | '.join(map(str, SIZES))} |", f"|---|--:|{'--:|' * len(SIZES)}"]
    for name in SETS:
        scores = score(name)
        lines.append(f"| {name} val | {len(scores)} | {' | '.join(f'{mean:.3f}' for mean in scores.mean(0))} |")
    write_text(RESULT, HEAD + "\n".join(lines) + "\n")
    print(RESULT)


def score(name: str) -> np.ndarray:
    """Return F1 at IoU 0.5, a row an image of the validation split, a column a size; 1 where there is nothing."""
    records = select(Selection(index=f"data/prepared/{name}/index.csv", split="val"))
    start = cellseg.load("teacher")
    models = [replace(start, settings=PredictConfig(min_size=size)) for size in SIZES]
    rows = []
    for record in track(records, name, total=len(records)):
        if record.labels is None:
            continue
        image, truth = start.prepare(read_image(record.image), None, None), read_labels(record.labels)
        rows.append([match(truth, model.segment_normalized(*image), thresholds=(0.5,))[0].f1 for model in models])
    return np.nan_to_num(np.array(rows), nan=1.0)


if __name__ == "__main__":
    try:
        main()
    except CellsegError as error:
        sys.exit(f"error: {error}")
