"""A PNG of images with true and predicted outlines: rows are images, columns are runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.config import read_run
from cellseg.core import CellsegError
from cellseg.datasets.index import select
from cellseg.files import atomic_path
from cellseg.images import normalize, read_image, read_labels
from cellseg.outputs.overlays import PRED_COLOUR, TRUE_COLOUR, draw_outlines


def write_picture(rows: Sequence[Mapping[str, NDArray[np.float32]]], path: str | Path, title: str) -> None:
    """Write panels as a PNG, one row an image; the keys of the first row head the columns.

    Parameters
    ----------
    rows : sequence of mapping
        Panel title to RGB image.
    path : str or Path
        PNG file.
    title : str
        Heading, for example what the images are.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = list(rows[0])
    figure, axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(3.2 * len(columns), 2.7 * len(rows) + 0.5),
        squeeze=False,
        layout="constrained",
    )
    for line, row in zip(axes, rows, strict=True):
        for axis, name in zip(line, columns, strict=True):
            axis.imshow(np.clip(row[name], 0, 1), interpolation="nearest")
            axis.set_axis_off()
            if row is rows[0]:
                axis.set_title(name, fontsize=10)
    figure.suptitle(title, fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def write_picture_of_runs(
    runs: Sequence[Path], path: str | Path, evaluation: str | None = None, images: int = 3
) -> None:
    """Draw images of an evaluation set with true outlines and those of each run, and write a PNG.

    Parameters
    ----------
    runs : sequence of Path
        Run folders with predictions, the teacher first.
    path : str or Path
        PNG file.
    evaluation : str, optional
        Name of the set; the first of the last run's configuration unless given.
    images : int
        How many, spread evenly over the set.

    Raises
    ------
    CellsegError
        If the last run has no such set, or an image or prediction cannot be read.
    """
    sets = read_run(runs[-1] / "config.json").data.evaluate
    chosen = next((known for known in sets if evaluation in (None, known.name)), None)
    if chosen is None:
        raise CellsegError(f"{runs[-1]}: no evaluation set '{evaluation or ''}' in its configuration")
    records = [record for record in select(chosen) if record.labels is not None]
    if not records:
        raise CellsegError(f"{chosen.index}: no image of evaluation set '{chosen.name}' has labels to draw")
    rows = []
    for record in records[:: max(1, len(records) // images)][:images]:
        image = normalize(read_image(record.image))
        row = {"image": image}
        if record.labels is not None:
            row["truth"] = draw_outlines(image, read_labels(record.labels), TRUE_COLOUR)
        for run in runs:
            labels = read_labels(run / "predictions" / chosen.name / f"{record.id}.tif")
            row[run.resolve().parent.name] = draw_outlines(image, labels, PRED_COLOUR)
        rows.append(row)
    synthetic = " (synthetic images)" if records[0].dataset.startswith("synthetic") else ""
    write_picture(rows, path, f"{chosen.name}{synthetic}")
