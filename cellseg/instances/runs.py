"""Connected pieces of a label image as runs: stretches of pixels along a row that belong to one cell.

There are as many runs as cells are high, twenty times fewer than pixels, so what is asked of whole cells (which pixels
hang together, their boxes, their centres) is asked of runs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cellseg.core import Labels

Index = NDArray[np.intp]


class Runs(NamedTuple):
    """Stretches of pixels that lie in one piece: ``labels[row, left:right]``; all arrays int ``(R,)``."""

    piece: Index
    row: Index
    left: Index
    right: Index


class Boxes(NamedTuple):
    """Bounding boxes of pieces, ``[top, bottom)`` by ``[left, right)``; all arrays int ``(P,)``."""

    top: Index
    bottom: Index
    left: Index
    right: Index


def find_runs(labels: Labels) -> Runs:
    """List the runs of all pieces of a label image.

    Parameters
    ----------
    labels : ndarray of int, shape (H, W)
        Instance image, 0 is background.

    Returns
    -------
    Runs
        From top to bottom, then left to right. A piece is an 8-connected set of pixels of one id; pieces are
        numbered from 0 without gaps, in no order that means anything.
    """
    flat, width = labels.ravel(), labels.shape[1]
    if flat.size == 0:
        return Runs(*np.zeros((4, 0), np.intp))
    ends_here = np.empty(flat.size, np.bool_)
    np.not_equal(flat[1:], flat[:-1], out=ends_here[:-1])
    ends_here[width - 1 :: width] = True
    ends = np.flatnonzero(ends_here) + 1
    starts = np.append(0, ends[:-1])
    kept = flat[starts] > 0
    starts, ends = starts[kept], ends[kept]
    row, left = np.divmod(starts, width)
    right = left + ends - starts
    return Runs(_pieces(row, left, right, flat[starts]), row, left, right)


def sort_runs(runs: Runs, number: Index) -> Runs:
    """Renumber pieces by ``number`` (int ``(P,)``) and sort the runs by it, within a piece from top to bottom."""
    piece = number[runs.piece]
    order = np.argsort(piece.astype(np.uint16) if number.size <= 65536 else piece, kind="stable")
    return Runs(*(values[order] for values in (piece, *runs[1:])))


def boxes(runs: Runs) -> Boxes:
    """Bounding boxes of the pieces of at least one run, in the order of their numbers."""
    count = int(runs.piece.max()) + 1
    largest = np.iinfo(np.intp).max
    top, left = np.full(count, largest), np.full(count, largest)
    bottom, right = np.zeros(count, np.intp), np.zeros(count, np.intp)
    np.minimum.at(top, runs.piece, runs.row)
    np.maximum.at(bottom, runs.piece, runs.row + 1)
    np.minimum.at(left, runs.piece, runs.left)
    np.maximum.at(right, runs.piece, runs.right)
    return Boxes(top, bottom, left, right)


def centres(runs: Runs, box: Boxes) -> tuple[Index, Index]:
    """Find the pixel of each piece that is nearest its median row and median column.

    Parameters
    ----------
    runs : Runs
        Sorted by piece.
    box : Boxes
        Their bounding boxes.

    Returns
    -------
    rows, columns : ndarray of int, shape (P,)
        Of an even number of pixels the upper middle one is the median; of equally near pixels the topmost is taken.
    """
    length = runs.right - runs.left
    cumulated = np.cumsum(length)
    first = np.flatnonzero(np.diff(runs.piece, prepend=-1))
    before = cumulated[first] - length[first]
    middle = before + np.diff(np.append(before, cumulated[-1])) // 2
    row = runs.row[np.searchsorted(cumulated, middle, side="right")]
    # Pixels in each column of each piece, the pieces one after another: runs opened less runs closed so far.
    slots = box.right - box.left + 1
    slot = np.cumsum(slots) - slots - box.left
    opened = np.bincount(slot[runs.piece] + runs.left, minlength=slots.sum())
    closed = np.bincount(slot[runs.piece] + runs.right, minlength=slots.sum())
    in_columns = np.cumsum(np.cumsum(opened - closed))
    column = np.searchsorted(in_columns, middle, side="right") - slot
    nearest = np.clip(column[runs.piece], runs.left, runs.right - 1)
    squared = (runs.row - row[runs.piece]) ** 2 + (nearest - column[runs.piece]) ** 2
    best = np.minimum.reduceat(squared * squared.size + np.arange(squared.size), first) % squared.size
    return runs.row[best], nearest[best]


def pixels(first: Index, length: Index) -> Index:
    """Flat indices of all pixels of runs that begin at the flat indices ``first``, one run after another."""
    ends = np.cumsum(length)
    return np.repeat(first - ends + length, length) + np.arange(ends[-1] if ends.size else 0)


def _pieces(row: Index, left: Index, right: Index, ids: NDArray[np.integer]) -> Index:
    """Give each run a piece: runs of one id that touch in neighbouring rows, corners included, hang together."""
    lower, upper = _touching(row, left, right)
    same = ids[lower] == ids[upper]
    lower, upper = lower[same], upper[same]
    root = np.arange(row.size)
    root[lower] = upper  # one of the runs above; a run without any is a root
    while not np.array_equal(above := root[root], root):
        root = above
    apart = root[lower] != root[upper]  # arms that meet further down
    if apart.any():
        pairs = (root[lower[apart]], root[upper[apart]])
        graph = sparse.coo_array((np.ones(pairs[0].size, np.int8), pairs), shape=(row.size, row.size))
        root = np.asarray(sparse.csgraph.connected_components(graph, directed=False)[1], np.intp)[root]
    present = np.zeros(row.size, np.intp)
    present[root] = 1
    return np.asarray((np.cumsum(present) - 1)[root], np.intp)


def _touching(row: Index, left: Index, right: Index) -> tuple[Index, Index]:
    """Pairs of runs in neighbouring rows that share a column or meet at a corner: the lower one, the upper one."""
    pitch = int(right.max(initial=0)) + 2
    start, end = row * pitch + left, row * pitch + right
    first = np.searchsorted(end, start - pitch, side="left")
    count = np.searchsorted(start, end - pitch, side="right") - first
    return np.repeat(np.arange(row.size), count), pixels(first, count)
