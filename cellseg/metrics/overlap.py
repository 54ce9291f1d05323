"""How much every cell of one label image overlaps every cell of another: the sparse table all metrics start from.

Read row after row, runs in which both ids are constant are far fewer than pixels, so the table is a sum of run
lengths, collected in bands of rows: a 10,000² pair needs some tens of megabytes beyond the arrays, and a slide
can be fed band by band and never be whole in memory. Counts are exact integers. What is given up: volumes,
only ``(H, W)`` is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cellseg.core import CellsegError

IntArray = NDArray[np.int64]

BAND_PIXELS = 1 << 16
"""Pixels looked at in one go: what is made of them stays in the processor's cache and in memory already mapped."""

HELD_RUNS = 1 << 13
"""Runs collected before those of equal ids are added up, few for the same reason."""

HELD_PAIRS = 1 << 21
"""Pairs collected before those of equal ids are added up, which bounds the memory of a slide."""

DIRECT_IDS = 1 << 17
"""Ids below this index a table directly; larger ones are compacted first."""

DENSE_PAIRS = 1 << 17
"""Tables of at most this many (true id, predicted id) pairs are added up densely: at most 1 MB."""


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
    for part in _partial_sums(bands):
        parts.append(part)
        held += part[2].size
        if held > limit:
            parts = [_sum_pairs(*_join(parts))]
            held = parts[0][2].size
            limit = max(HELD_PAIRS, 2 * held)
    return _table(*(parts[0] if len(parts) == 1 else _sum_pairs(*_join(parts))))


def _partial_sums(bands: Iterable[tuple[ArrayLike, ArrayLike]]) -> Iterator[tuple[IntArray, IntArray, IntArray]]:
    """Yield the summed pairs of some thousand runs at a time."""
    runs: list[tuple[IntArray, IntArray, IntArray]] = []
    held = 0
    for labels_true, labels_pred in bands:
        true, pred = np.asarray(labels_true), np.asarray(labels_pred)
        _check(true, pred)
        height, width = true.shape
        rows = max(1, BAND_PIXELS // max(1, width))
        for top in range(0, height if width else 0, rows):
            runs.append(_runs(true[top : top + rows], pred[top : top + rows], (true, pred)))
            held += runs[-1][2].size
            if held >= HELD_RUNS:
                yield _sum_pairs(*_join(runs))
                runs, held = [], 0
    if runs:
        yield _sum_pairs(*_join(runs))


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
    starts_here = np.zeros(-(-true.size // 8) * 8, np.bool_)
    starts_here[0] = True
    changes = starts_here[1 : true.size]
    np.not_equal(true[1:], true[:-1], out=changes)
    changes |= pred[1:] != pred[:-1]
    starts = _positions(starts_here)
    lengths = np.diff(starts, append=true.size)
    ids_true, ids_pred = _whole_ids(true.take(starts), whole), _whole_ids(pred.take(starts), whole)
    cells = np.flatnonzero((ids_true | ids_pred) != 0)
    return ids_true.take(cells), ids_pred.take(cells), lengths.take(cells)


def _positions(mask: NDArray[np.bool_]) -> IntArray:
    """Return ``np.flatnonzero(mask)`` of a multiple of 8 elements, faster where few are set."""
    eights = np.flatnonzero(mask.view(np.uint64) != 0)
    inside = np.flatnonzero(mask.view(np.uint64).take(eights).view(np.bool_))
    eights -= np.arange(eights.size)
    return inside + 8 * eights.take(inside >> 3)


def _whole_ids(values: NDArray[Any], whole: tuple[NDArray[Any], NDArray[Any]]) -> IntArray:
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise CellsegError(f"label ids must be whole numbers, not fractions, NaN or infinity: {_describe(*whole)}")
    ids = values.astype(np.int64)
    if ids.size and int(ids.min()) < 0:
        raise CellsegError(f"label ids must lie between 0 and 2^63 - 1, but found {ids.min()}: {_describe(*whole)}")
    return ids


def _sum_pairs(ids_true: IntArray, ids_pred: IntArray, pixels: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Add up the pixels of equal (true id, predicted id) pairs; pairs come back in ascending order."""
    if not pixels.size:
        return ids_true, ids_pred, pixels
    if max(int(ids_true.max()), int(ids_pred.max())) < DIRECT_IDS:
        return _sum_direct(ids_true, ids_pred, pixels)
    names_true, index_true = _cells(ids_true)
    names_pred, index_pred = _cells(ids_pred)
    rows, columns, summed = _sum_direct(index_true, index_pred, pixels)
    return names_true[rows], names_pred[columns], summed


def _sum_direct(ids_true: IntArray, ids_pred: IntArray, pixels: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Do the work of :func:`_sum_pairs` for ids small enough to index a table."""
    shape = (int(ids_true.max()) + 1, int(ids_pred.max()) + 1)
    if shape[0] * shape[1] <= DENSE_PAIRS:
        dense = np.bincount(ids_true * shape[1] + ids_pred, pixels)
        pairs = np.flatnonzero(dense != 0)
        return *np.divmod(pairs, shape[1]), dense[pairs].astype(np.int64)
    from scipy.sparse import coo_array

    table = coo_array((pixels, (ids_true, ids_pred)), shape=shape).tocsr()
    table.sort_indices()
    rows = np.repeat(np.arange(shape[0], dtype=np.int64), np.diff(table.indptr))
    return rows, table.indices.astype(np.int64), table.data


def _cells(ids: IntArray) -> tuple[IntArray, IntArray]:
    """Return the distinct ids, ascending, and each one's position among them."""
    if not ids.size or int(ids.max()) >= DIRECT_IDS:
        return np.unique(ids, return_inverse=True)
    present = np.bincount(ids) > 0
    return np.flatnonzero(present), (np.cumsum(present) - 1).take(ids)


def _table(ids_true: IntArray, ids_pred: IntArray, pixels: IntArray) -> Overlap:
    """Make the table of summed pairs, in ascending order, those with background included."""
    names_true, index_true = _cells(ids_true)
    names_pred, index_pred = _cells(ids_pred)
    area_true = np.bincount(index_true, pixels, names_true.size).astype(np.int64)
    area_pred = np.bincount(index_pred, pixels, names_pred.size).astype(np.int64)
    first_true = int(names_true.size > 0 and names_true[0] == 0)
    first_pred = int(names_pred.size > 0 and names_pred[0] == 0)
    both = np.flatnonzero((ids_true > 0) & (ids_pred > 0))
    return Overlap(
        names_true[first_true:],
        names_pred[first_pred:],
        area_true[first_true:],
        area_pred[first_pred:],
        index_true[both] - first_true,
        index_pred[both] - first_pred,
        pixels[both],
    )
