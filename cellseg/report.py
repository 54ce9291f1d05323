"""Pictures of results: what a person looks at before any number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellseg.core import Image, Labels
from cellseg.files import atomic_path
from cellseg.labels import outlines

TRUE_COLOUR = (0.0, 0.62, 0.45)
PRED_COLOUR = (0.9, 0.6, 0.0)
"""Green and orange of the Okabe-Ito palette, told apart by colour-blind readers."""


def draw_outlines(image: Image, labels: Labels, colour: tuple[float, float, float]) -> NDArray[np.float32]:
    """Return the image with the cells' outlines in one colour.

    Parameters
    ----------
    image : ndarray of float32, shape (H, W, 3)
        Normalised image.
    labels : ndarray of int32, shape (H, W)
        Cells to outline.
    colour : tuple of float
        Red, green and blue in [0, 1].
    """
    drawn = np.clip(image, 0, 1).astype(np.float32)
    drawn[outlines(labels)] = colour
    return drawn


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
