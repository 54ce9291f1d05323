"""How much every cell of one label image overlaps every cell of another: the sparse table all metrics start from.

Read row after row, runs in which both ids are constant are far fewer than pixels, so the table is a sum of run
lengths, collected in bands of rows: a 10,000² pair needs some tens of megabytes beyond the arrays, and a slide
can be fed band by band and never be whole in memory. Counts are exact integers. What is given up: volumes,
only ``(H, W)`` is taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cellseg.core import CellsegError

IntArray = NDArray[np.int64]

BAND_PIXELS = 1 << 19
"""Pixels looked at in one go, which bounds the memory beyond the arrays."""

HELD_PAIRS = 1 << 21
"""Pairs collected before those of equal ids are added up, which bounds the memory of a slide."""

DIRECT_IDS = 1 << 17
"""Ids below this index the sparse matrix of a band directly; larger ones are compacted first."""


@dataclass(frozen=True)
class Overlap:
    """The cells of two label images and every pair of them that shares a pixel.

    Attributes
    ----------
    ids_true, ids_pred : int64 (n,), (m,)
        Ids of the cells, ascending; background (0) is not among them.
    area_true, area_pred : int64 (n,), (m,)
        Their areas in pixels.
    pair_true, pair_pred : int64 (k,)
        Positions in ``ids_true`` and ``ids_pred`` of the cells of each overlapping pair, in row-major order.
    intersection : int64 (k,)
        Shared pixels of each pair, at least 1.
    """

    ids_true: IntArray
    ids_pred: IntArray
    area_true: IntArray
    area_pred: IntArray
    pair_true: IntArray
    pair_pred: IntArray
    intersection: IntArray

    @property
    def n_true(self) -> int:
        """Number of true cells."""
        return self.ids_true.size

    @property
    def n_pred(self) -> int:
        """Number of predicted cells."""
        return self.ids_pred.size

    @property
    def union(self) -> IntArray:
        """Pixels in either cell of each pair, int64 (k,)."""
        return self.area_true[self.pair_true] + self.area_pred[self.pair_pred] - self.intersection

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each pair, float64 (k,) in (0, 1]."""
        return self.intersection / self.union

    def without(self, drop_true: IntArray, drop_pred: IntArray) -> Overlap:
        """Return the table as if the cells with these ids had been erased (ids not present are ignored)."""
        keep_true = ~np.isin(self.ids_true, drop_true)
        keep_pred = ~np.isin(self.ids_pred, drop_pred)
        new_true, new_pred = np.cumsum(keep_true) - 1, np.cumsum(keep_pred) - 1
        keep = keep_true[self.pair_true] & keep_pred[self.pair_pred]
        return Overlap(
            self.ids_true[keep_true],
            self.ids_pred[keep_pred],
            self.area_true[keep_true],
            self.area_pred[keep_pred],
            new_true[self.pair_true[keep]],
            new_pred[self.pair_pred[keep]],
            self.intersection[keep],
        )


def overlap(labels_true: ArrayLike, labels_pred: ArrayLike) -> Overlap:
    """Count the shared pixels of every pair of cells of two label images.

    Parameters
    ----------
    labels_true, labels_pred : int or bool (H, W)
        Label images: 0 is background, every other id one cell, in as many pieces as it likes. Ids need not
        be consecutive and may be anything an int64 holds; arrays may be strided or memory-mapped. Floats are
        taken when every value is a whole number.

    Returns
    -------
    Overlap
        Cells, areas and overlapping pairs.

    Raises
    ------
    CellsegError
        If the shapes differ or either array is not a label image (RGB, negative ids, fractions, NaN); the
        message names both shapes and dtypes.

    Examples
    --------
    >>> table = overlap([[1, 1, 0], [0, 7, 7]], [[2, 2, 2], [0, 0, 2]])
    >>> table.ids_true.tolist(), table.area_pred.tolist(), table.intersection.tolist()
    ([1, 7], [4], [2, 1])
    """
    return overlap_bands([(labels_true, labels_pred)])


def overlap_bands(bands: Iterable[tuple[ArrayLike, ArrayLike]]) -> Overlap:
    """Count the shared pixels of every pair of cells of two label images that come as bands of rows.

    Parameters
    ----------
    bands : iterable of (labels_true, labels_pred)
        The same rows of both images, int or bool ``(h, W)``, in any order and of any heights; none is kept.

    Returns
    -------
    Overlap
        Equal to :func:`overlap` of the whole images, of which only a band need be in memory.

    Raises
    ------
    CellsegError
        As :func:`overlap`.

    Examples
    --------
    >>> overlap_bands([([[1, 1]], [[2, 2]]), ([[1, 0]], [[2, 2]])]).intersection.tolist()
    [3]
    """
    parts: list[tuple[IntArray, IntArray, IntArray]] = []
    held, limit = 0, HELD_PAIRS
    for labels_true, labels_pred in bands:
        true, pred = np.asarray(labels_true), np.asarray(labels_pred)
        _check(true, pred)
        height, width = true.shape
        rows = max(1, BAND_PIXELS // max(1, width))
        for top in range(0, height if width else 0, rows):
            parts.append(_sum_pairs(*_runs(true[top : top + rows], pred[top : top + rows], (true, pred))))
            held += parts[-1][2].size
            if held > limit:
                parts = [_sum_pairs(*_join(parts))]
                held = parts[0][2].size
                limit = max(HELD_PAIRS, 2 * held)
    return _table(*_join(parts))


def _join(parts: list[tuple[IntArray, IntArray, IntArray]]) -> tuple[IntArray, IntArray, IntArray]:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        empty = np.zeros(0, np.int64)
        return empty, empty, empty
    ids_true, ids_pred, pixels = map(np.concatenate, zip(*parts, strict=True))
    return ids_true, ids_pred, pixels


def _describe(true: NDArray[Any], pred: NDArray[Any]) -> str:
    return f"labels_true is {true.shape} {true.dtype}, labels_pred is {pred.shape} {pred.dtype}"


def _check(true: NDArray[Any], pred: NDArray[Any]) -> None:
    for array in (true, pred):
        if array.ndim != 2 or array.dtype.kind not in "biuf":
            raise CellsegError(f"wanted two label images (H, W) of whole numbers, but {_describe(true, pred)}")
    if true.shape != pred.shape:
        raise CellsegError(f"wanted two label images of one shape, but {_describe(true, pred)}")


def _runs(
    true: NDArray[Any], pred: NDArray[Any], whole: tuple[NDArray[Any], NDArray[Any]]
) -> tuple[IntArray, IntArray, IntArray]:
    """Return the true id, predicted id and length of every run of a band that is not background in both."""
    true, pred = np.ascontiguousarray(true).reshape(-1), np.ascontiguousarray(pred).reshape(-1)
    starts_here = np.empty(true.size, np.bool_)
    starts_here[0] = True
    np.not_equal(true[1:], true[:-1], out=starts_here[1:])
    starts_here[1:] |= pred[1:] != pred[:-1]
    starts = np.flatnonzero(starts_here)
    lengths = np.diff(starts, append=true.size)
    ids_true, ids_pred = _whole_ids(true[starts], whole), _whole_ids(pred[starts], whole)
    cells = np.flatnonzero(ids_true | ids_pred)
    return ids_true[cells], ids_pred[cells], lengths[cells]


def _whole_ids(values: NDArray[Any], whole: tuple[NDArray[Any], NDArray[Any]]) -> IntArray:
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise CellsegError(f"label ids must be whole numbers, not fractions, NaN or infinity: {_describe(*whole)}")
    ids = values.astype(np.int64)
    if ids.size and int(ids.min()) < 0:
        raise CellsegError(f"label ids must lie between 0 and 2^63 - 1, but found {ids.min()}: {_describe(*whole)}")
    return ids


def _sum_pairs(ids_true: IntArray, ids_pred: IntArray, pixels: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Add up the pixels of equal (true id, predicted id) pairs; pairs come back in ascending order."""
    from scipy.sparse import coo_array

    if not pixels.size:
        return ids_true, ids_pred, pixels
    names_true, index_true = _compact(ids_true)
    names_pred, index_pred = _compact(ids_pred)
    shape = (int(index_true.max()) + 1, int(index_pred.max()) + 1)
    table = coo_array((pixels, (index_true, index_pred)), shape=shape).tocsr()
    table.sort_indices()
    index = np.repeat(np.arange(shape[0], dtype=np.int64), np.diff(table.indptr))
    columns = table.indices.astype(np.int64)
    summed_true = index if names_true is None else names_true[index]
    summed_pred = columns if names_pred is None else names_pred[columns]
    return summed_true, summed_pred, table.data


def _compact(ids: IntArray) -> tuple[IntArray | None, IntArray]:
    """Return the distinct ids and each one's position among them, or None and the ids where these are small."""
    if int(ids.max()) < DIRECT_IDS:
        return None, ids
    return np.unique(ids, return_inverse=True)


def _table(ids_true: IntArray, ids_pred: IntArray, pixels: IntArray) -> Overlap:
    names_true, index_true = np.unique(ids_true, return_inverse=True)
    names_pred, index_pred = np.unique(ids_pred, return_inverse=True)
    area_true = np.bincount(index_true, pixels, names_true.size).astype(np.int64)
    area_pred = np.bincount(index_pred, pixels, names_pred.size).astype(np.int64)
    first_true = int(names_true.size > 0 and names_true[0] == 0)
    first_pred = int(names_pred.size > 0 and names_pred[0] == 0)
    both = np.flatnonzero((ids_true > 0) & (ids_pred > 0))
    pair_true, pair_pred, shared = _sum_pairs(
        index_true[both] - first_true, index_pred[both] - first_pred, pixels[both]
    )
    return Overlap(
        names_true[first_true:],
        names_pred[first_pred:],
        area_true[first_true:],
        area_pred[first_pred:],
        pair_true,
        pair_pred,
        shared,
    )
