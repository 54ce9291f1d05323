"""One-to-one matching of true and predicted cells at an IoU threshold, in exact arithmetic.

``overlap → IoU → pairs with IoU ≥ t → one-to-one → TP, FP, FN``. Above IoU 0.5 pairs are unique by
themselves; at exactly 0.5 two predictions may claim one cell and one of them is kept; below 0.5 a maximum
matching is found, by count and then by summed IoU.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import numpy as np

from cellseg.core import CellsegError, Counts
from cellseg.metrics.overlap import IntArray, Overlap

THRESHOLDS: tuple[float, ...] = tuple(i / 20 for i in range(10, 20))
"""IoU 0.50, 0.55, …, 0.95 as i/20; ``np.arange(.5, 1, .05)`` is off in 8 of these 10 values."""


def count_matches(table: Overlap, thresholds: Iterable[float] = THRESHOLDS) -> tuple[Counts, ...]:
    """Count matches of an overlap table at each threshold; see :func:`cellseg.metrics.match`."""
    iou = table.iou
    counts = []
    for exact in map(exact_threshold, thresholds):
        pairs = matched_pairs(table, exact)
        tp = pairs.size
        counts.append(Counts(float(exact), tp, table.n_pred - tp, table.n_true - tp, float(iou[pairs].sum())))
    return tuple(counts)


def exact_threshold(threshold: float | Fraction) -> Fraction:
    """Return the fraction a threshold stands for, that of smallest error with a denominator of at most a million.

    Raises
    ------
    CellsegError
        If the threshold is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise CellsegError(f"an IoU threshold must lie in (0, 1], but {threshold} was given")
    return Fraction(threshold).limit_denominator(1_000_000)


def matched_pairs(table: Overlap, threshold: float | Fraction) -> IntArray:
    """Choose a maximum one-to-one set of the pairs with IoU ≥ threshold.

    Parameters
    ----------
    table : Overlap
        Overlapping pairs.
    threshold : float or Fraction in (0, 1]
        Read as in :func:`exact_threshold`.

    Returns
    -------
    int64 (n,)
        Ascending positions in ``table.intersection``: as many pairs as possible, and among such sets one of
        largest summed IoU.
    """
    exact = exact_threshold(threshold)
    pairs = np.flatnonzero(exact.denominator * table.intersection >= exact.numerator * table.union)
    if 2 * exact.numerator > exact.denominator:
        return pairs
    true, pred = table.pair_true[pairs], table.pair_pred[pairs]
    alone = (np.bincount(true, minlength=table.n_true)[true] == 1) & (
        np.bincount(pred, minlength=table.n_pred)[pred] == 1
    )
    contested = pairs[~alone]
    if not contested.size:
        return pairs
    return np.sort(np.concatenate([pairs[alone], _assign(table, contested)]))


def _assign(table: Overlap, pairs: IntArray) -> IntArray:
    """Solve the contested pairs as a sparse assignment in which every true cell may also stay alone.

    A pair weighs 1 + IoU / 2n beyond staying alone, n being the number of true cells, so that no sum of IoU
    outweighs one more pair.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    true, row = np.unique(table.pair_true[pairs], return_inverse=True)
    pred, column = np.unique(table.pair_pred[pairs], return_inverse=True)
    alone = np.arange(true.size)
    weights = np.concatenate([2 + table.iou[pairs] / (2 * true.size), np.ones(true.size)])
    rows, columns = np.concatenate([row, alone]), np.concatenate([column, pred.size + alone])
    graph = coo_array((weights, (rows, columns)), shape=(true.size, pred.size + true.size)).tocsr()
    chosen_row, chosen_column = min_weight_full_bipartite_matching(graph, maximize=True)
    paired = chosen_column < pred.size
    chosen = chosen_row[paired] * pred.size + chosen_column[paired]
    return pairs[np.isin(row * pred.size + column, chosen)]
