"""Go through the cells of a label image without a full-size mask of any, and without the whole of a slide in memory.

An array in memory is gone through as it is. Anything else that has a shape and gives the pixels of a rectangle, such
as a zarr array or a :class:`FilePixels`, is read twice: in bands of rows for the cells' bounding boxes, then in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cellseg.images import read_image
from cellseg.labels import instance_areas
from cellseg.slides.blocks import Region
from cellseg.slides.pyramids import has_regions, is_zarr, read_region, read_slide, slide_size
from cellseg.slides.windows import is_slide

BAND_ROWS = 512
"""Rows read at once to find the bounding boxes."""

BLOCK = 2048
"""Side in pixels of the squares by which cells are grouped. A cell belongs to the square that holds the upper left
corner of its bounding box."""


class Pixels(Protocol):
    """Pixels ``(H, W)`` or ``(H, W, C)`` that are read by rectangle: an array, a zarr array, a :class:`FilePixels`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and, where there are several, channels."""

    def __getitem__(self, place: tuple[slice, slice], /) -> Any:
        """Return the pixels of some rows and columns."""


@dataclass(frozen=True)
class FilePixels:
    """The pixels of a file or OME-Zarr that :func:`cellseg.slides.pyramids.has_regions` takes, read by rectangle.

    Attributes
    ----------
    path : Path
        The file.
    shape : tuple of int
        Its height and width.
    """

    path: Path
    shape: tuple[int, ...]

    def __getitem__(self, place: tuple[slice, slice], /) -> NDArray[Any]:
        """Return raw values of rows and columns inside the image."""
        rows, columns = place
        return read_region(self.path, Region(rows.start, columns.start, rows.stop, columns.stop))


def open_pixels(path: str | Path) -> Pixels:
    """Read an image as raw values, or give those of a slide by rectangle; raises CellsegError as ``read_image``."""
    height, width = slide_size(path)
    if is_slide(height, width) and has_regions(path):
        return FilePixels(Path(path), (height, width))
    return read_slide(path) if is_zarr(path) else read_image(path)


@dataclass(frozen=True)
class CellBlock:
    """Some cells and the pixels in which all of them lie.

    Attributes
    ----------
    top, left : int
        Place of the pixels in the image.
    labels : int (h, w)
        Label image; may hold parts of cells that are not of the block.
    ids : int64 (N,)
        The cells, ascending.
    boxes : int64 (N, 4)
        Their bounding boxes in the image: top, left, bottom, right, the last two beyond the cell.
    """

    top: int
    left: int
    labels: NDArray[Any]
    ids: NDArray[np.int64]
    boxes: NDArray[np.int64]

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the pixels in the image."""
        height, width = self.labels.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def cell_blocks(labels: Pixels) -> Iterator[CellBlock]:
    """Group the cells of a label image so that every cell is whole in exactly one block.

    Parameters
    ----------
    labels : Pixels (H, W)
        Label image of integers, 0 background; ids may be sparse.

    Yields
    ------
    CellBlock
        Those with cells, row by row. An array in memory is one block; other pixels are read as far as the cells of
        one square reach, so memory is that of a square and its largest cell.
    """
    ids, boxes = find_boxes(labels)
    if not len(ids):
        return
    if isinstance(labels, np.ndarray):
        yield CellBlock(0, 0, labels, ids, boxes)
        return
    squares, member = np.unique(boxes[:, :2] // BLOCK, axis=0, return_inverse=True)
    for square in range(len(squares)):
        here = member.ravel() == square
        (top, left), (bottom, right) = boxes[here, :2].min(axis=0).tolist(), boxes[here, 2:].max(axis=0).tolist()
        window = np.asarray(labels[top:bottom, left:right])
        yield CellBlock(top, left, window, ids[here], boxes[here])


def find_boxes(labels: Pixels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the ids ``(N,)``, ascending, and bounding boxes ``(N, 4)`` (top, left, bottom, right) of the cells."""
    if isinstance(labels, np.ndarray):
        return _boxes_of(labels, 0)
    height, width = labels.shape[:2]
    tops = range(0, height, BAND_ROWS)
    bands = [_boxes_of(np.asarray(labels[top : min(top + BAND_ROWS, height), 0:width]), top) for top in tops]
    ids, boxes = (np.concatenate(parts) for parts in zip(*bands, strict=True))
    if not len(ids):
        return ids, boxes
    order = np.argsort(ids, kind="stable")
    ids, boxes = ids[order], boxes[order]
    first = np.flatnonzero(np.diff(ids, prepend=-1))
    corners = np.minimum.reduceat(boxes[:, :2], first), np.maximum.reduceat(boxes[:, 2:], first)
    return ids[first], np.concatenate(corners, axis=1)


def with_small_ids(labels: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the ids, ascending, and labels int ``(H, W)`` whose ids are in the same order and fit into a list.

    They are the labels given, unless the largest id exceeds four times the number of pixels: SciPy's and
    scikit-image's functions take memory for every id up to the largest.
    """
    ids = instance_areas(labels)[0]
    if len(ids) and int(ids[-1]) > 4 * labels.size:
        return ids, np.searchsorted(np.append(0, ids), labels).astype(np.int32)
    return ids, labels


def _boxes_of(labels: NDArray[Any], top: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from scipy.ndimage import find_objects

    ids, small = with_small_ids(labels)
    found = [box for box in find_objects(small) if box is not None] if len(ids) else []
    boxes = [(rows.start + top, columns.start, rows.stop + top, columns.stop) for rows, columns in found]
    return ids, np.array(boxes, np.int64).reshape(-1, 4)
