"""The nouns every other module speaks: records, samples, counts and the one user-facing error.

Axis legend, used without repeating it elsewhere: coordinates are ``(y, x)``, sizes ``(height, width)``,
vectors ``(dy, dx)``. NumPy images are channels last ``(H, W, 3)``, torch tensors ``(B, C, H, W)``.
Labels are int32 in memory; 0 is background and every positive id is one cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
"""A normalised image, float32 ``(H, W, 3)``; most values lie in [0, 1]."""

Labels = NDArray[np.int32]
"""An instance image, int32 ``(H, W)``."""

LabelKind = Literal["instances", "partial", "foreground", ""]
"""What a label file means: one id for every cell; one id for some of the cells, so that background says nothing;
a foreground mask that does not tell cells apart; or (empty) there is no label file. Only the first is ever truth to
score against."""


class CellsegError(ValueError):
    """An expected failure whose message is one clear line for the user.

    The message says what was wanted, what came, where, and what to do. The command line prints it
    without a traceback and exits with status 1.
    """


@dataclass(frozen=True)
class Record:
    """One row of an index: where an image lies and what is known about it.

    Attributes
    ----------
    id : str
        Unique within its index; names the prediction ``<id>.tif``.
    image : Path
        Absolute path of the image file.
    labels : Path or None
        Absolute path of the label file; None for an unlabelled image.
    dataset, split, group : str
        Data set name; ``train``, ``val``, ``test`` or ``unlabelled``; cell line or modality.
    height, width : int
        Image size in pixels.
    n_instances : int or None
        Number of labelled cells; None where that is not known.
    label_kind : {"instances", "partial", "foreground", ""}
        What the label file means.
    diameter : float or None
        Median cell diameter in pixels (that of the disk of equal area); None where not known.
    well : str
        Culture well, the unit by which LIVECell must be split; empty where the set has none.
    """

    id: str
    image: Path
    labels: Path | None
    dataset: str
    split: str
    group: str
    height: int
    width: int
    n_instances: int | None
    label_kind: LabelKind
    diameter: float | None
    well: str = ""

    @property
    def has_labels(self) -> bool:
        """Whether a label file of any kind belongs to the image."""
        return self.labels is not None


@dataclass(frozen=True)
class Sample:
    """An image in memory, normalised and at a chosen scale, with its labels where it has any.

    Attributes
    ----------
    record : Record
        Where it came from.
    image : float32 (H, W, 3)
        Normalised image.
    labels : int32 (H, W) or None
        Labels at the same scale; None for an unlabelled image.
    zoom : float
        Size of this image relative to the file (0.5 = half as many pixels a side).
    """

    record: Record
    image: Image
    labels: Labels | None
    zoom: float = 1.0


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


@dataclass(frozen=True)
class Counts:
    """Matched and unmatched cells at one IoU threshold; adds up over images, tiles and processes.

    Attributes
    ----------
    threshold : float
        IoU at or above which a pair counts as matched.
    tp, fp, fn : int
        Matched pairs, unmatched predictions, unmatched true cells.
    iou_sum : float
        Sum of the IoU of the matched pairs.

    Notes
    -----
    Every ratio is NaN at 0/0; the rule of the folder says what becomes of it.
    """

    threshold: float
    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou_sum: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        """Pool two counts of the same threshold; raises ValueError when the thresholds differ."""
        if self.threshold != other.threshold:
            raise ValueError(f"cannot add counts at IoU {self.threshold} and {other.threshold}")
        return Counts(
            self.threshold,
            self.tp + other.tp,
            self.fp + other.fp,
            self.fn + other.fn,
            self.iou_sum + other.iou_sum,
        )

    @property
    def n_true(self) -> int:
        """Number of true cells."""
        return self.tp + self.fn

    @property
    def n_pred(self) -> int:
        """Number of predicted cells."""
        return self.tp + self.fp

    @property
    def precision(self) -> float:
        """TP / (TP + FP)."""
        return _ratio(self.tp, self.n_pred)

    @property
    def recall(self) -> float:
        """TP / (TP + FN)."""
        return _ratio(self.tp, self.n_true)

    @property
    def f1(self) -> float:
        """Instance F1 = 2 TP / (2 TP + FP + FN), the detection quality RQ of panoptic quality."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def ap(self) -> float:
        """TP / (TP + FP + FN), called average precision by StarDist, Cellpose and DSB2018."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of the matched pairs (Kirillov et al., CVPR 2019)."""
        return _ratio(self.iou_sum, self.tp)

    @property
    def rq(self) -> float:
        """Recognition quality, equal to F1 (Kirillov et al., CVPR 2019)."""
        return self.f1

    @property
    def pq(self) -> float:
        """Panoptic quality SQ · RQ = sum of matched IoU / (TP + FP/2 + FN/2) (Kirillov et al., CVPR 2019)."""
        return _ratio(self.iou_sum, self.tp + self.fp / 2 + self.fn / 2)
