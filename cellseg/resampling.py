"""Resample any part of an image or of maps, giving exactly the values that resampling all of it would give there.

Library functions resize whole arrays: a part resized by itself is shifted by a fraction of a pixel wherever the
factor is no whole number. Here every output pixel is a weighted sum of input pixels, row weights and column weights
apart, so a part needs only the input that its pixels are made of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def axis_weights(old: int, new: int, part: slice, *, average: bool) -> tuple[sparse.csr_array[Any], slice]:
    """Make the weights that bring one axis from ``old`` to ``new`` pixels, for a part of the new ones.

    Parameters
    ----------
    old, new : int
        Length of the whole axis before and after.
    part : slice
        Start and stop of the new pixels wanted.
    average : bool
        Average the stretch of old pixels that a new one covers (for shrinking); else interpolate between the two
        old pixel centres nearest to the new one's, the outermost pixels repeated beyond the edge.

    Returns
    -------
    weights : sparse float32 (stop − start, stop' − start')
        Rows sum to 1.
    needed : slice
        Start' and stop' of the old pixels that they weigh.
    """
    index, ratio = np.arange(part.start, part.stop), old / new
    if average:
        begins, ends = index * ratio, np.minimum((index + 1) * ratio, old)
        first = np.floor(begins + 1e-9).astype(np.intp)
        places = first[:, None] + np.arange(int(np.ceil(ratio)) + 1)
        weight = np.minimum(places + 1, ends[:, None]) - np.maximum(places, begins[:, None])
        weight = np.where(places < old, np.maximum(weight, 0), 0)
        weight /= weight.sum(axis=1, keepdims=True)
    else:
        centre = np.clip((index + 0.5) * ratio - 0.5, 0, old - 1)
        first = np.floor(centre).astype(np.intp)
        places = first[:, None] + np.arange(2)
        weight = np.stack([1 - (centre - first), centre - first], axis=1)
    row, column = np.nonzero(weight)
    place = places[row, column]
    start, stop = int(place.min()), int(place.max()) + 1
    shape = (len(index), stop - start)
    matrix = sparse.csr_array((weight[row, column].astype(np.float32), (row, place - start)), shape=shape)
    return matrix, slice(start, stop)


def apply_weights(values: NDArray[np.float32], weights: sparse.csr_array[Any], axis: int) -> NDArray[np.float32]:
    """Apply the weights of :func:`axis_weights` along an axis of an array of float32."""
    moved = np.moveaxis(values, axis, 0)
    out = (weights @ moved.reshape(moved.shape[0], -1)).reshape(-1, *moved.shape[1:])
    return np.moveaxis(np.asarray(out, np.float32), 0, axis)
