"""Read a label image as bands of rows, so that a slide is scored without ever being whole in memory.

Small images are read whole and sliced; large ones are read by window (see :mod:`cellseg.slides.windows`). What this
gives up: a large PNG, BMP, or TIFF whose one compressed strip holds the whole image can only be decoded whole, which
is said in a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellseg.core import Labels
from cellseg.images import read_labels, read_size
from cellseg.slides.windows import has_windows, read_label_window

LARGE_PIXELS = 64_000_000
"""Images of at least this many pixels are read in bands: 256 MB of labels."""

BAND_ROWS = 512
"""Rows read in one go: tiles of 16, 32, …, 512 px are decoded once, larger ones more than once."""


@dataclass(frozen=True)
class LabelFile:
    """A label image in a file: its size, and its rows from top to bottom.

    Attributes
    ----------
    path : Path
        The file.
    shape : (height, width)
        Size in pixels.
    labels : int32 (H, W) or None
        The image where it is in memory; None where it is read in bands.
    """

    path: Path
    shape: tuple[int, int]
    labels: Labels | None = None

    def bands(self, rows: int = BAND_ROWS) -> Iterator[Labels]:
        """Yield the rows from top to bottom, int32 ``(rows, W)``, the last band as high as is left.

        Raises
        ------
        CellsegError
            As :func:`cellseg.images.read_labels`, at the band where the file is damaged.
        """
        height, width = self.shape
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            if self.labels is not None:
                yield self.labels[top:bottom]
                continue
            band = np.empty((bottom - top, width), np.int32)
            for start in range(top, bottom, BAND_ROWS):
                stop = min(start + BAND_ROWS, bottom)
                band[start - top : stop - top] = read_label_window(self.path, slice(start, stop), slice(0, width))
            yield band
            del band  # else it stays in memory while the next is read


def open_labels(path: str | Path) -> LabelFile:
    """Open a label image: read it if it is small, and only its size if it is large and can be read in bands.

    Parameters
    ----------
    path : str or Path
        As :func:`cellseg.images.read_labels`.

    Returns
    -------
    LabelFile
        Its ``bands`` hold what :func:`cellseg.images.read_labels` returns.

    Raises
    ------
    CellsegError
        As :func:`cellseg.images.read_labels`.

    Warns
    -----
    UserWarning
        If an image of 64 million pixels or more has to be decoded whole.
    """
    path = Path(path)
    height, width = (0, 0) if path.suffix.lower() == ".npy" else read_size(path)
    if height * width >= LARGE_PIXELS:
        if has_windows(path):
            return LabelFile(path, (height, width))
        warnings.warn(
            f"{path}: cannot be read in parts, so all of it is in memory ({4 * height * width / 1e6:.0f} MB); "
            "a tiled TIFF needs less",
            stacklevel=2,
        )
    labels = read_labels(path)
    return LabelFile(path, (labels.shape[0], labels.shape[1]), labels)
