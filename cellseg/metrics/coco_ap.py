"""LIVECell's COCO scores: average precision of ranked masks and the average false-negative ratio.

Masks, IoU and the precision-recall curves are pycocotools'; the greedy matching of COCOeval is done here image by
image on the few pairs that overlap by half, with the same result, because COCOeval tries every pair at every
threshold in Python (minutes for an image of 3,000 cells) and keeps every IoU matrix in memory. True cells keep
their overlaps. Predictions come as label images, in which cells cannot overlap, so of two true cells that share
most of their pixels at most one can be found. Given up: several categories, crowd regions, boxes and keypoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.core import CellsegError, Labels
from cellseg.labels import instance_areas

MAX_DETECTIONS = (100, 500, 2000)
"""Detections an image that count, the highest scores first; the scores reported here use the last."""

AREA_RANGES = {"all": (0, 1e5**2), "small": (0, 18**2), "medium": (18**2, 31**2), "large": (31**2, 1e5**2)}
"""Areas in pixels, both ends included."""

IOU_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""pycocotools' own thresholds; the ninth is one ulp below 0.9."""

_AP50, _AP75 = 0, 5

Mask = Mapping[str, Any]
"""A compressed COCO run-length encoding: ``size`` (height, width) and ``counts`` (bytes)."""


@dataclass(frozen=True)
class CocoTruth:
    """The true cells of one image, overlaps kept.

    Attributes
    ----------
    height, width : int
        Size of the image in pixels.
    masks : sequence of Mask
        One run-length encoding a cell, of that size; they may overlap.
    areas : float64 (n,)
        Area of each cell by which it is small, medium or large; LIVECell's own are the shoelace areas of its file.
    """

    height: int
    width: int
    masks: Sequence[Mask]
    areas: NDArray[np.float64]


@dataclass(frozen=True)
class CocoScores:
    """LIVECell's scores of a set of images, as fractions; NaN where there is no true cell to find.

    Attributes
    ----------
    ap, ap50, ap75 : float
        Average precision over IoU .50:.05:.95, at .50 and at .75.
    ap_small, ap_medium, ap_large : float
        Over IoU .50:.05:.95 for true cells of up to 324, 324-961 and at least 961 pixels.
    afnr : float
        Average false-negative ratio: the mean over IoU .50:.05:.95 of 1 - recall.
    n_images, n_annotations, n_predictions : int
        What was scored; detections beyond 2,000 an image are counted here and nowhere else.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    afnr: float
    n_images: int
    n_annotations: int
    n_predictions: int


def livecell_ap(
    truths: Iterable[CocoTruth], predictions: Iterable[tuple[Labels, NDArray[np.float64] | None]]
) -> CocoScores:
    """Score label images against annotated cells by LIVECell's use of COCOeval.

    LIVECell's evaluation (sartorius-research/LIVECell, code/coco_evaluation.py) runs COCOeval on masks of one
    category with ``maxDets = [100, 500, 2000]`` and area limits 18² and 31², and reports what 2,000 detections an
    image give. Average precision is the mean of the interpolated precision at 101 recalls. The false-negative ratio
    at one IoU is 1 - recall, where recall is the share of all true cells, of any area and over all images together,
    matched by any of the 2,000 highest-scored detections of their image: no other cut is made on the score.

    Parameters
    ----------
    truths : iterable of CocoTruth
        The annotated images. COCOeval orders images by id; the order matters only to equal scores.
    predictions : iterable of (Labels, float64 (n,) or None)
        For each image in the same order an int32 ``(H, W)`` label image, all background if nothing was found, and
        the score of each cell in order of ascending id. With None every cell scores 1: detections are then ranked
        by the order of images and ids, and average precision says little more than precision times recall.
        Both iterables are read one image at a time.

    Returns
    -------
    CocoScores
        Scores in [0, 1]. Without any detection all precisions are 0 and ``afnr`` is 1 (LIVECell's script says NaN).

    Raises
    ------
    CellsegError
        If a label image differs in size from its truth or its scores are not one finite number a cell.
    ValueError
        If the iterables differ in length.
    """
    ranges = list(AREA_RANGES.values())
    entries: list[list[dict[str, Any] | None]] = [[] for _ in ranges]
    n_annotations = n_predictions = 0
    for truth, (labels, scores) in zip(truths, predictions, strict=True):
        found = _detections(truth, labels, scores)
        for per_range, entry in zip(entries, _score_image(truth, *found, ranges), strict=True):
            per_range.append(entry)
        n_annotations += len(truth.masks)
        n_predictions += len(instance_areas(labels)[0])
    precision, recall = _accumulate(entries)
    return CocoScores(
        ap=_mean(precision[..., 0]),
        ap50=_mean(precision[_AP50, :, 0]),
        ap75=_mean(precision[_AP75, :, 0]),
        ap_small=_mean(precision[..., 1]),
        ap_medium=_mean(precision[..., 2]),
        ap_large=_mean(precision[..., 3]),
        afnr=1 - _mean(recall[:, 0]),
        n_images=len(entries[0]),
        n_annotations=n_annotations,
        n_predictions=n_predictions,
    )


def encode_labels(labels: Labels) -> list[Mask]:
    """Encode each cell of a label image as COCO does, without making a mask of each.

    Parameters
    ----------
    labels : ndarray of int32, shape (H, W)
        Label image; ids need not be consecutive.

    Returns
    -------
    list of Mask
        In order of ascending id; a cell in several pieces is one mask.
    """
    from pycocotools import mask as coco_mask

    height, width = labels.shape
    flat = np.ascontiguousarray(labels.T).ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] - 1)) if flat.size else np.zeros(0, np.intp)
    ends, ids = np.append(starts[1:], flat.size), flat[starts]
    cells = np.flatnonzero(ids)
    order = cells[np.argsort(ids[cells], kind="stable")]
    edges = np.stack([starts[order], ends[order]], axis=1)
    splits = np.flatnonzero(np.diff(ids[order])) + 1
    runs = []
    for part in np.split(edges, splits) if order.size else []:
        counts = np.diff(part.ravel(), prepend=0).tolist()
        if part[-1, 1] < flat.size:
            counts.append(flat.size - int(part[-1, 1]))
        runs.append({"size": [height, width], "counts": counts})
    encoded: list[Mask] = coco_mask.frPyObjects(runs, height, width) if runs else []
    return encoded


def _detections(
    truth: CocoTruth, labels: Labels, scores: NDArray[np.float64] | None
) -> tuple[list[Mask], NDArray[np.float64], NDArray[np.float64]]:
    """Masks, areas and scores of the detections that count, highest score first, equal scores by ascending id."""
    if labels.shape != (truth.height, truth.width):
        raise CellsegError(f"labels are {labels.shape} but the truth is {(truth.height, truth.width)}")
    areas = instance_areas(labels)[1].astype(np.float64)
    scores = np.ones(len(areas)) if scores is None else np.asarray(scores, np.float64)
    if scores.shape != areas.shape or not np.isfinite(scores).all():
        raise CellsegError(
            f"wanted one finite score for each of {len(areas)} cells, got scores of shape {scores.shape}"
        )
    order = np.argsort(-scores, kind="stable")[: MAX_DETECTIONS[-1]]
    masks = encode_labels(labels)
    return [masks[index] for index in order], areas[order], scores[order]


def _score_image(
    truth: CocoTruth,
    masks: list[Mask],
    areas: NDArray[np.float64],
    scores: NDArray[np.float64],
    ranges: Sequence[tuple[float, float]],
) -> list[dict[str, Any] | None]:
    """Return what COCOeval.evaluateImg finds out about one image in each range of areas."""
    from pycocotools import mask as coco_mask

    if not truth.masks and not masks:
        return [None for _ in ranges]
    iou = np.zeros((len(masks), len(truth.masks)))
    if iou.size:
        iou = coco_mask.iou(masks, list(truth.masks), [0] * len(truth.masks))
    entries: list[dict[str, Any] | None] = []
    for low, high in ranges:
        ignored = (truth.areas < low) | (truth.areas > high)
        matched, skipped = _match(iou, ignored)
        outside = (areas < low) | (areas > high)
        entries.append(
            {
                "dtScores": scores,
                "dtMatches": matched,
                "dtIgnore": skipped | (~matched & outside),
                "gtIgnore": ignored.astype(np.int64),
            }
        )
    return entries


def _match(iou: NDArray[np.float64], ignored: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match as COCOeval: each detection in turn takes the free true cell of highest IoU, ignored ones last.

    Returns for each threshold and detection, bool (T, D), whether it has a match, and whether that one is ignored.
    """
    matched = np.zeros((len(IOU_THRESHOLDS), len(iou)), np.bool_)
    skipped = np.zeros_like(matched)
    ranked = np.argsort(ignored, kind="stable")
    pairs: dict[int, list[tuple[int, float]]] = {}
    rows, columns = np.nonzero(iou[:, ranked] >= IOU_THRESHOLDS[0])
    for row, cell in zip(rows.tolist(), ranked[columns].tolist(), strict=True):
        pairs.setdefault(row, []).append((cell, float(iou[row, cell])))
    for level, threshold in enumerate(IOU_THRESHOLDS):
        taken: set[int] = set()
        for row, candidates in pairs.items():
            best, chosen = threshold, -1
            for cell, overlap in candidates:
                if chosen >= 0 and ignored[cell] and not ignored[chosen]:
                    break
                if cell not in taken and overlap >= best:
                    best, chosen = overlap, cell
            if chosen >= 0:
                taken.add(chosen)
                matched[level, row], skipped[level, row] = True, ignored[chosen]
    return matched, skipped


def _accumulate(entries: list[list[dict[str, Any] | None]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Let COCOeval make the curves at the most detections: precision (T, R, A), recall (T, A); -1 where undefined."""
    from pycocotools.cocoeval import COCOeval

    coco = COCOeval(iouType="segm")
    coco.params.imgIds = list(range(len(entries[0])))
    coco.params.catIds, coco.params.useCats = [1], 0
    coco.params.maxDets = list(MAX_DETECTIONS)
    coco.params.areaRng, coco.params.areaRngLbl = [list(limits) for limits in AREA_RANGES.values()], list(AREA_RANGES)
    coco._paramsEval = coco.params
    coco.evalImgs = [entry for per_range in entries for entry in per_range]
    with redirect_stdout(StringIO()):
        coco.accumulate()
    return coco.eval["precision"][:, :, 0, :, -1], coco.eval["recall"][:, 0, :, -1]


def _mean(values: NDArray[np.float64]) -> float:
    """Mean over the defined values as COCOeval.summarize takes it; NaN where none is."""
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else math.nan
