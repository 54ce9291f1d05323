"""Match two label images by a rule: plain, or that of the NeurIPS 2022 cell segmentation challenge, result for result.

Source of the latter: ``baseline/compute_metric.py`` of github.com/JunMa11/NeurIPS-CellSeg (commit 3128e96). Where that
script has no result, because it fails or skips, ours is defined here and said.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cellseg.core import CellsegError, Counts
from cellseg.metrics.matching import THRESHOLDS, count_matches
from cellseg.metrics.overlap import IntArray, Overlap, overlap

Rule = Literal["plain", "neurips"]


def match(
    labels_true: ArrayLike, labels_pred: ArrayLike, thresholds: Iterable[float] = THRESHOLDS, rule: Rule = "plain"
) -> tuple[Counts, ...]:
    """Count matched and unmatched cells of one pair of label images at each IoU threshold.

    Parameters
    ----------
    labels_true, labels_pred : int or bool (H, W)
        Label images (see :func:`cellseg.metrics.overlap.overlap`).
    thresholds : iterable of float in (0, 1]
        A pair is a match at IoU ≥ threshold. Each is read as the nearest fraction with a denominator of at
        most a million, so 0.6 and 0.6000000000000001 both mean 3/5, and pixels are compared with it as integers.
    rule : {"plain", "neurips"}
        ``plain`` removes nothing; ``neurips`` is the challenge's (see :func:`match_neurips`).

    Returns
    -------
    tuple of Counts
        One for each threshold, in the order given.

    Raises
    ------
    CellsegError
        If the arrays are not label images of one shape, a threshold is outside (0, 1] or the rule is unknown.

    Examples
    --------
    >>> match([[1, 1, 0, 0]], [[0, 5, 5, 0]], (0.3, 0.5))
    (Counts(threshold=0.3, tp=1, fp=0, fn=0, iou_sum=0.3333333333333333), Counts(threshold=0.5, tp=0, fp=1, fn=1, iou_sum=0.0))
    """  # noqa: E501
    thresholds = tuple(thresholds)
    if rule == "neurips":
        return match_neurips(labels_true, labels_pred, thresholds)
    if rule != "plain":
        raise CellsegError(f"rule of a pair of label images must be 'plain' or 'neurips', not {rule!r}")
    return count_matches(overlap(labels_true, labels_pred), thresholds)


BORDER = 2
"""Outer rows and columns in pixels; a cell with one pixel there is not scored."""

LARGE_PIXELS = 25_000_000
"""Images of at least this many pixels are scored patch by patch."""

PATCH = 2000
"""Side of a patch in pixels."""


def match_neurips(
    labels_true: ArrayLike, labels_pred: ArrayLike, thresholds: Iterable[float] = THRESHOLDS
) -> tuple[Counts, ...]:
    """Count matches as the organisers of the NeurIPS 2022 challenge do.

    Every cell with a pixel in the outer 2 rows or columns is removed, from truth and prediction independently;
    the rest is matched one to one at IoU ≥ threshold. Images of 25,000,000 px or more are padded with zeros to
    patches of 2,000 px, border cells are removed **inside every patch**, and the counts of the patches added.

    Parameters
    ----------
    labels_true, labels_pred : int or bool (H, W)
        Label images (see :func:`cellseg.metrics.overlap.overlap`).
    thresholds : iterable of float in (0, 1]
        IoU thresholds; the challenge's is 0.5.

    Returns
    -------
    tuple of Counts
        One for each threshold; :func:`neurips_f1` makes the published figure of it.

    Notes
    -----
    The organisers' Hungarian cost −(IoU ≥ t) − IoU / (2 min(n, m)) maximises the number of pairs first, so TP is
    the size of a maximum matching, as here. Cells are removed from the overlap table, which is the same as
    erasing their pixels. ``fn`` is always true cells − TP: the script prints 0 for an empty prediction, but its
    recall, and so its F1, divides by the true count too. Predictions are not cast to the dtype of the truth,
    which makes the script fail on ids above 32,767. One oddity is kept: an image of at most 4 px a side without
    any background keeps its cell of smallest id.
    """
    true, pred = np.asarray(labels_true), np.asarray(labels_pred)
    if true.shape != pred.shape or true.ndim != 2 or true.size < LARGE_PIXELS:
        return count_matches(_inner(true, pred), thresholds)
    rows = band_rows(true.shape)
    bands = ((true[top : top + rows], pred[top : top + rows]) for top in range(0, true.shape[0], rows))
    return match_neurips_bands(bands, true.shape, thresholds)


def band_rows(shape: tuple[int, ...]) -> int:
    """Return how many rows at a time :func:`match_neurips_bands` wants of an image of a shape ``(H, W)``."""
    return PATCH if shape[0] * shape[1] >= LARGE_PIXELS else max(1, shape[0])


def match_neurips_bands(
    bands: Iterable[tuple[ArrayLike, ArrayLike]], shape: tuple[int, ...], thresholds: Iterable[float] = THRESHOLDS
) -> tuple[Counts, ...]:
    """Count matches as :func:`match_neurips` does, from bands of rows, of which one is in memory at a time.

    Parameters
    ----------
    bands : iterable of (labels_true, labels_pred)
        The same rows of both images from top to bottom, int or bool ``(h, W)``, :func:`band_rows` high but for
        the last.
    shape : (H, W)
        Of the whole image.
    thresholds : iterable of float in (0, 1]
        IoU thresholds.

    Raises
    ------
    CellsegError
        If a pair of bands are not label images of one shape.
    """
    thresholds = tuple(thresholds)
    empty = np.zeros((0, 0), np.int64)
    totals = count_matches(overlap(empty, empty), thresholds)
    padded = (PATCH, PATCH) if shape[0] * shape[1] >= LARGE_PIXELS else None
    for band in bands:
        for patch in _count_patches(np.asarray(band[0]), np.asarray(band[1]), padded, thresholds):
            totals = tuple(total + part for total, part in zip(totals, patch, strict=True))
        del band  # else it stays in memory while the next is read
    return totals


def _count_patches(
    true: NDArray[Any], pred: NDArray[Any], padded: tuple[int, int] | None, thresholds: tuple[float, ...]
) -> list[tuple[Counts, ...]]:
    """Count each patch of a band, or all of it where it is not cut into patches."""
    if padded is None:
        return [count_matches(_inner(true, pred), thresholds)]
    windows = [slice(left, left + padded[1]) for left in range(0, true.shape[1], padded[1])]
    return [count_matches(_inner(true[:, window], pred[:, window], padded), thresholds) for window in windows]


def neurips_f1(counts: Counts) -> float:
    """Return the challenge's F1 of one image: from precision and recall, rounded to 4 decimals, 0 without a match."""
    if counts.tp == 0:
        return 0.0
    return float(np.round(2 * (counts.precision * counts.recall) / (counts.precision + counts.recall), 4))


def _inner(true: NDArray[Any], pred: NDArray[Any], padded: tuple[int, int] | None = None) -> Overlap:
    table = overlap(true, pred)
    shape = true.shape if padded is None else padded
    return table.without(border_ids(true, shape), border_ids(pred, shape))


def border_ids(labels: NDArray[Any], padded: tuple[int, ...]) -> IntArray:
    """Return the ids with a pixel in the outer 2 rows or columns of ``labels`` padded with zeros to a shape.

    Parameters
    ----------
    labels : int (H, W)
        Label image, at the top left of the padded one.
    padded : (height, width)
        Shape whose border counts, at least ``(H, W)``.

    Returns
    -------
    int64 (n,)
        Ascending ids, without 0.
    """
    height, width = padded
    bands = (
        labels[:BORDER],
        labels[max(0, height - BORDER) :],
        labels[:, :BORDER],
        labels[:, max(0, width - BORDER) :],
    )
    ids = np.unique(np.concatenate([band.reshape(-1) for band in bands])).astype(np.int64)
    if ids.size and ids[0] != 0 and min(height, width) <= 2 * BORDER:
        ids = ids[1:]  # the script skips the first of the sorted ids, taking it for background
    return np.setdiff1d(ids, [0])
