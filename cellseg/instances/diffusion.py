"""Directions toward the centre of every cell, by diffusing heat inside all cells at once.

Cells are packed side by side on shelves, the longest first, so that one filter serves many cells, nothing leaks
between touching ones, small ones finish early, and a shelf stays in the processor's cache. It gives up exactness where
it costs most: the heat is not run to its steady state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellseg.core import Labels
from cellseg.instances.runs import Boxes, Index, Runs, boxes, centres, find_runs, pixels, sort_runs

_SHELF_PIXELS, _SHELF_WIDTH = 60_000, 320
"""Pixels of a shelf, so that the arrays of one step stay in cache, and the least width of one."""
_SIZES = 6
"""Cells are as many steps diffused as the next larger of this many sizes an octave needs: few sizes fill the shelves,
and still the steps of a cell depend on itself alone."""
_SOURCE = {"float32": 2.0**100, "float64": 2.0**900}
"""What a source gives at each step: heat fades exponentially along thin cells, and so it has far to fade."""
_LEAST_FLOAT32 = 2.0**-120
"""Where less arrives digits are lost, and the shelf is diffused in float64, three times as slowly."""


class _Shelf(NamedTuple):
    """Pieces [first, last) side by side, the size of the shelf with a free pixel around each, diffusion steps."""

    first: int
    last: int
    height: int
    width: int
    steps: int


def directions(labels: Labels, out: NDArray[np.float32]) -> None:
    """Find at every pixel of a cell the direction in which the heat of its centre rises.

    Parameters
    ----------
    labels : ndarray of int32, shape (H, W)
        Instance image, 0 is background. Pieces of one id that do not touch get one centre each.
    out : ndarray of float32, shape (2, H, W), contiguous
        Written at the pixels of cells: unit vectors (dy, dx), 0 where the heat has no slope (a centre, a cell of one
        pixel).

    Notes
    -----
    Stringer et al., Nature Methods 2021: heat enters at the pixel nearest the median position, spreads by a
    3 x 3 mean and is absorbed outside the cell. It runs for at least as many steps as the cell's box is high plus
    wide; twice as many changed no score of the round trip.
    """
    runs = find_runs(labels)
    if runs.row.size == 0:
        return
    box = boxes(runs)
    order = np.lexsort((box.top - box.bottom, -_steps(box)))
    rank = np.empty_like(order)
    rank[order] = np.arange(rank.size)
    runs = sort_runs(runs, rank)
    box = Boxes(*(side[order] for side in box))
    centre = centres(runs, box)
    flat = out.reshape(2, -1)
    for shelf in _shelves(box):
        at, into, source = _place(shelf, runs, box, centre, labels.shape[1])
        slopes = _slopes(at, source, shelf)
        flat[0, into], flat[1, into] = slopes[0], slopes[1]


def _steps(box: Boxes) -> Index:
    """Count the steps of diffusion that each box needs."""
    longest = (box.bottom - box.top + box.right - box.left).astype(np.float64)
    return np.asarray(np.ceil(2 ** (np.ceil(_SIZES * np.log2(longest)) / _SIZES)), np.intp)


def _shelves(box: Boxes) -> Iterator[_Shelf]:
    """Fill shelves with the boxes in order, each as wide as its first box and the size of the cache suggest."""
    heights, widths, steps = box.bottom - box.top, box.right - box.left, _steps(box)
    ends, alike = np.cumsum(widths + 1), np.append(np.flatnonzero(np.diff(steps)) + 1, steps.size)
    first = 0
    while first < ends.size:
        height = int(heights[first]) + 2
        room = max(_SHELF_WIDTH, _SHELF_PIXELS // height)
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + room, side="right")))
        last = min(last, int(alike[np.searchsorted(alike, first, side="right")]))
        yield _Shelf(first, last, height, int(ends[last - 1]) - before + 1, int(steps[first]))
        first = last


def _place(
    shelf: _Shelf, runs: Runs, box: Boxes, centre: tuple[Index, Index], image_width: int
) -> tuple[Index, Index, Index]:
    """Give the flat indices of a shelf's pixels on the shelf and in the image, and of its sources."""
    own = slice(shelf.first, shelf.last)
    begin, end = np.searchsorted(runs.piece, (shelf.first, shelf.last))
    piece, row, left, right = (values[begin:end] for values in runs)
    widths = box.right[own] - box.left[own]
    shift = np.cumsum(widths + 1) - widths - box.left[own] + (1 - box.top[own]) * shelf.width
    source = centre[0][own] * shelf.width + centre[1][own] + shift
    at = pixels(row * shelf.width + left + shift[piece - shelf.first], right - left)
    return at, pixels(row * image_width + left, right - left), source


def _slopes(at: Index, source: Index, shelf: _Shelf) -> NDArray[np.floating]:
    """Give the unit vectors (dy, dx) uphill at the flat indices ``at``, shape (2, N); 0 where there is no slope."""
    inside = np.zeros((shelf.height, shelf.width), np.float32)
    inside.ravel()[at] = 1
    heat = np.zeros_like(inside)
    _diffuse(heat, inside, source, shelf.steps)
    if heat.ravel()[at].min() < _LEAST_FLOAT32:
        heat = _diffuse_through(inside.astype(np.float64), source, shelf.steps)
    flat, width = heat.ravel(), shelf.width
    slopes = np.stack([flat[at + width] - flat[at - width], flat[at + 1] - flat[at - 1]])
    largest = np.abs(slopes).max(axis=0)
    slopes /= np.where(largest > 0, largest, 1)  # squares of very small or large numbers do not fit
    norm = np.sqrt((slopes * slopes).sum(axis=0))
    return np.asarray(slopes / np.where(norm > 0, norm, 1))


def _diffuse_through(inside: NDArray[np.floating], source: Index, steps: int) -> NDArray[np.floating]:
    """Diffuse for ``steps`` steps, and again until heat has reached every pixel of every cell or fades to nothing."""
    import cv2

    heat = np.zeros_like(inside)
    wanted, before, reached = cv2.countNonZero(inside), -1, 0
    while before < reached < wanted:
        _diffuse(heat, inside, source, steps)
        before, reached = reached, cv2.countNonZero(heat)
    return heat


def _diffuse(heat: NDArray[np.floating], inside: NDArray[np.floating], source: Index, steps: int) -> None:
    """Let heat enter at the sources and spread by a 3 x 3 mean ``steps`` times, in place; nothing is left outside."""
    import cv2

    flat, third = heat.ravel(), np.full(3, 1 / 3, heat.dtype)
    given = heat.dtype.type(_SOURCE[heat.dtype.name])
    for _ in range(steps):
        flat[source] += given
        cv2.sepFilter2D(heat, -1, third, third, dst=heat, borderType=cv2.BORDER_CONSTANT)
        np.multiply(heat, inside, out=heat)
