"""Other figures people ask of the same overlap: AJI, SEG, Dice, and which kinds of error were made."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cellseg.metrics.overlap import Overlap


@dataclass(frozen=True)
class Errors:
    """How many cells were missed, invented, split or merged.

    Attributes
    ----------
    misses, splits : int
        True cells that meet no prediction, and more than one.
    spurious, merges : int
        Predictions that meet no true cell, and more than one.
    """

    misses: int
    spurious: int
    splits: int
    merges: int


def aji(table: Overlap) -> float:
    """Return the aggregated Jaccard index, NaN when both images are empty.

    Every true cell takes the prediction of largest IoU, which several may share; the index is the sum of the
    intersections over the sum of the unions, with the areas of true cells and predictions that found no partner
    in the denominator. A tie goes to the prediction of smaller id.

    Notes
    -----
    Source: Kumar et al., IEEE Transactions on Medical Imaging 36(7), 2017, algorithm 1.
    """
    order = np.lexsort((table.pair_pred, -table.iou, table.pair_true))
    _, first = np.unique(table.pair_true[order], return_index=True)
    best = order[first]
    alone_true = np.delete(table.area_true, table.pair_true[best])
    alone_pred = np.delete(table.area_pred, table.pair_pred[best])
    denominator = int(table.union[best].sum() + alone_true.sum() + alone_pred.sum())
    return int(table.intersection[best].sum()) / denominator if denominator else math.nan


def seg(table: Overlap) -> float:
    """Return SEG: mean over true cells of the IoU with the prediction that covers more than half of it, else 0.

    NaN without true cells. False positives cost nothing.

    Notes
    -----
    Source: Cell Tracking Challenge, Maška et al., Bioinformatics 30(11), 2014; |R ∩ S| > |R| / 2.
    """
    covered = 2 * table.intersection > table.area_true[table.pair_true]
    return float(table.iou[covered].sum()) / table.n_true if table.n_true else math.nan


def foreground_dice(table: Overlap) -> float:
    """Return 2 |T ∩ P| / (|T| + |P|) of the two foregrounds, NaN when both are empty (Dice, Ecology 26, 1945)."""
    total = int(table.area_true.sum() + table.area_pred.sum())
    return 2 * int(table.intersection.sum()) / total if total else math.nan


def count_errors(table: Overlap) -> Errors:
    """Count missed, spurious, split and merged cells, from the pairs of IoU > 0.1.

    Notes
    -----
    Source: Caicedo et al., Cytometry Part A 95(9), 2019, and its evaluation code: a split is a true cell with
    more than one such partner, a merge a prediction with more than one. Their missed cells are those without a
    partner at a higher IoU; here all four kinds use the same pairs.
    """
    meets = 10 * table.intersection > table.union
    partners_true = np.bincount(table.pair_true[meets], minlength=table.n_true)
    partners_pred = np.bincount(table.pair_pred[meets], minlength=table.n_pred)
    return Errors(
        misses=int((partners_true == 0).sum()),
        spurious=int((partners_pred == 0).sum()),
        splits=int((partners_true > 1).sum()),
        merges=int((partners_pred > 1).sum()),
    )
