"""Cells from the places where paths end: the pixels whose paths end at one sink are one cell.

A sink is seldom one pixel, and a long or noisy cell may have several. How far apart two of them may lie follows from
their own sizes, so that cells of three and of three hundred pixels may share an image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, spatial

_FRAGMENT = 0.5
"""A sink of less than this share of its neighbour's radius is taken for a fragment of the neighbour's cell."""
_MERGE_FRAGMENT, _MERGE_EQUAL = 0.8, 0.35
"""Two sinks are one cell when they are nearer than this share of the larger radius. Sinks alike in size are joined
more reluctantly: the centres of long cells lying side by side are only a cell's width apart."""

Index = NDArray[np.intp]


def group_ends(
    place: Index, count: NDArray[np.integer], shape: tuple[int, int], diameter: float | None, min_size: int
) -> NDArray[np.int32]:
    """Tell which cell each end of paths belongs to.

    Parameters
    ----------
    place : ndarray of int, shape (E,)
        Flat indices of the pixels at which paths end, ascending.
    count : ndarray of int, shape (E,)
        How many paths end at each.
    shape : tuple of int
        Height and width of the image.
    diameter : float, optional
        Typical cell diameter in pixels; bounds how far apart two sinks of one cell may lie. By default each sink's own
        number of paths decides.
    min_size : int
        Cells of fewer pixels get no number.

    Returns
    -------
    ndarray of int32, shape (E,)
        Number of the cell of each place, from 1 without gaps; 0 where the cell is too small.
    """
    import cv2

    if place.size == 0:
        return np.zeros(0, np.int32)
    occupied = np.zeros(shape, np.uint8)
    occupied.ravel()[place] = 1
    spot = cv2.connectedComponents(occupied, connectivity=8)[1].ravel()[place] - 1
    size = np.bincount(spot, count)
    rows, columns = np.divmod(place, shape[1])
    middle = np.stack([np.bincount(spot, count * at) / size for at in (rows, columns)], axis=1)
    radius = np.sqrt(size / np.pi)
    if diameter is not None:
        radius = np.minimum(radius, diameter / 2)
    pairs = _near(middle, radius)
    graph = sparse.coo_array((np.ones(len(pairs[0]), np.int8), pairs), shape=(size.size, size.size))
    cell = sparse.csgraph.connected_components(graph, directed=False)[1]
    kept = np.bincount(cell, size) >= max(min_size, 1)
    return np.asarray(np.where(kept, np.cumsum(kept), 0)[cell[spot]], np.int32)


def _near(middle: NDArray[np.float64], radius: NDArray[np.float64]) -> tuple[Index, Index]:
    """Pairs of sinks near enough to be one cell."""
    tree = spatial.cKDTree(middle)
    octave = np.floor(np.log2(radius)).astype(np.intp)
    found = []
    for size in np.unique(octave):  # a sink looks as far as its own size asks, not as far as the largest one's
        own = np.flatnonzero(octave == size)
        reach = _MERGE_FRAGMENT * float(radius[own].max())
        pairs = spatial.cKDTree(middle[own]).sparse_distance_matrix(tree, reach, output_type="ndarray")
        larger, smaller, apart = own[pairs["i"]], pairs["j"], pairs["v"]
        share = np.where(radius[smaller] < _FRAGMENT * radius[larger], _MERGE_FRAGMENT, _MERGE_EQUAL)
        near = (radius[smaller] <= radius[larger]) & (larger != smaller) & (apart < share * radius[larger])
        found.append((larger[near], smaller[near]))
    first, second = (np.concatenate(side) for side in zip(*found, strict=True))
    return first, second
