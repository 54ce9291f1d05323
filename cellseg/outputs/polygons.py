"""Outlines of cells as polygons along the edges of their pixels, exact: filled again, they give the same pixels.

Coordinates are ``(x, y)`` in pixels, x to the right and y down, with the corner of the first pixel at (0, 0) and its
centre at (0.5, 0.5): the convention of QuPath and ImageJ for areas. Every ring is simple (no vertex twice) and holds
corners only, so the polygons are valid as GIS tools mean it: pixels that touch at a corner alone are two polygons
of one cell, and a hole may touch its outline in a point.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.outputs.cells import Pixels, cell_blocks

Ring = NDArray[np.int64]
"""Corners ``(x, y)`` of a closed line, int64 ``(N, 2)``; the first is not repeated. With y drawn downwards an outline
runs clockwise and a hole anticlockwise: the sum ``x₀y₁ − x₁y₀`` is positive for an outline, negative for a hole."""

Polygon = list[Ring]
"""An outline, then the holes in it."""

# What the four pixels around a corner are: 1 above left, 2 above right, 4 below left, 8 below right.
_LINES = np.array([0, 1, 1, 0, 1, 0, 2, 1, 1, 2, 0, 1, 0, 1, 1, 0])  # how many lines turn there: two at a diagonal
_FALLING = 9  # the diagonal from above left to below right


def cell_polygons(labels: Pixels) -> Iterator[tuple[int, list[Polygon]]]:
    """Trace the cells of a label image one by one.

    Parameters
    ----------
    labels : Pixels (H, W)
        Label image of integers, 0 background; ids may be sparse.

    Yields
    ------
    id : int
        Ascending for an array in memory; by blocks, and in them ascending, where the labels are read from a file.
    polygons : list of Polygon
        One for each piece of the cell that is connected by pixel edges; at least one. In pixels of the image.

    Notes
    -----
    Only the bounding box of one cell is looked at at a time, so a cell of a large image costs what it covers.
    """
    for block in cell_blocks(labels):
        corner = np.array([block.top, block.left] * 2)
        for label, box in zip(block.ids.tolist(), block.boxes, strict=True):
            top, left, bottom, right = (box - corner).tolist()
            polygons = trace(block.labels[top:bottom, left:right] == label)
            yield label, [[ring + box[1::-1] for ring in polygon] for polygon in polygons]


def trace(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Trace the outlines of a mask along pixel edges.

    Parameters
    ----------
    mask : bool (H, W)
        What is inside; nothing beyond its edges is.

    Returns
    -------
    list of Polygon
        One for each piece connected by pixel edges, in the order in which rows meet them; empty for an empty mask.

    Notes
    -----
    In a row of the grid the corners pair up from left to right into horizontal sides, in a column from top to bottom
    into vertical ones. Where two pixels touch at a corner alone, two lines meet. If those pixels belong to one piece,
    each line turns around the background (a hole touches the outline); otherwise around its pixel.
    """
    from scipy.ndimage import label

    pieces, _ = label(np.pad(mask, 1))
    xs, ys, across = _corners(pieces)
    polygons: dict[int, Polygon] = {}
    for line in _lines(across):
        ring = np.stack([xs[line], ys[line]], axis=1)
        x, y = ring[0]
        inside = pieces[y + 1, x + 1]  # the first side is a highest one and goes right
        if inside:
            polygons[int(inside)] = [ring]
        else:
            polygons[int(pieces[y, x + 1])].append(ring[::-1])
    return list(polygons.values())


def _corners(pieces: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], list[int]]:
    """List x and y of the corners by rows, each with the place of the corner at the other end of its vertical side.

    ``pieces`` are connected components with a border of background; the corner at place ``i`` has ``i ^ 1`` at the
    other end of its horizontal side.
    """
    inside = pieces > 0
    kinds = inside[:-1, :-1] + 2 * inside[:-1, 1:] + 4 * inside[1:, :-1] + 8 * inside[1:, 1:]
    ys, xs = np.nonzero(_LINES[kinds])
    kind = kinds[ys, xs]
    double = _LINES[kind] == 2
    falling = kind == _FALLING
    one_piece = np.where(falling, pieces[ys, xs] == pieces[ys + 1, xs + 1], pieces[ys, xs + 1] == pieces[ys + 1, xs])
    left_with_lower = falling == one_piece  # the line to the left goes on below
    times = np.where(double, 2, 1)
    xs, ys, left_with_lower = (np.repeat(values, times) for values in (xs, ys, left_with_lower))
    second = np.zeros(len(xs), np.bool_)
    second[np.cumsum(times)[double] - 1] = True  # of a double corner, the line that goes right
    order = np.lexsort((second ^ left_with_lower, ys, xs))
    across = np.empty(len(xs), np.int64)
    across[order[0::2]], across[order[1::2]] = order[1::2], order[0::2]
    return xs, ys, across.tolist()


def _lines(across: list[int]) -> Iterator[list[int]]:
    """Follow sides, horizontal and vertical in turn, to closed lines; each begins at its first corner, to the right."""
    seen = bytearray(len(across))
    for start in range(0, len(across), 2):
        line: list[int] = []
        place = start
        while not seen[place]:
            line += (place, place ^ 1)
            seen[place] = seen[place ^ 1] = 1
            place = across[place ^ 1]
        if line:
            yield line
