"""What training keeps of an image: pixels, encoded labels, and how far the labels may be believed.

Labels come in three kinds (:data:`cellseg.core.LabelKind`). A foreground mask says nothing about which pixels
belong together, so only the foreground term may see it. Partial labels say nothing about what lies outside the
labelled cells, which may be more cells; only a thin ring around a labelled cell is known not to be that cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cellseg.config import ModelConfig
from cellseg.core import Image, LabelKind, Labels, Record
from cellseg.datasets.samples import load_sample
from cellseg.instances import representation

Half = NDArray[np.float16]

PARTIAL_RING = 3
"""Width of the background that is known around a partly labelled image's cells, in pixels at the network's scale."""


@dataclass(frozen=True)
class Prepared:
    """An image at the network's scale with its targets.

    Attributes
    ----------
    image : float16 (H, W, 1) or (H, W, 3)
        Normalised; one channel where all three are alike.
    target : float16 (K, H, W) or None
        Encoded labels; None where there are none.
    known : bool (H, W) or None
        Pixels about which the labels say something; None where they do everywhere.
    weight : tuple of float
        Weight of the foreground term and of the terms that only instances can tell, at the known pixels.
    """

    image: Half
    target: Half | None = None
    known: NDArray[np.bool_] | None = None
    weight: tuple[float, float] = (1.0, 1.0)

    @property
    def n_bytes(self) -> int:
        """Memory of the arrays."""
        return sum(array.nbytes for array in (self.image, self.target, self.known) if array is not None)


def prepare_whole(record: Record, config: ModelConfig, diameter: float | None, *, labelled: bool) -> Prepared:
    """Read an image and encode its labels; see :func:`combine`."""
    sample = load_sample(record, config, diameter, with_labels=labelled)
    return combine(sample.image, sample.labels, record.label_kind, config, labelled=labelled)


def combine(image: Image, labels: Labels | None, kind: LabelKind, config: ModelConfig, *, labelled: bool) -> Prepared:
    """Encode labels as their kind allows and put them beside their image.

    Parameters
    ----------
    image : float32 (H, W, 3)
        Normalised, at the network's scale.
    labels : int32 (H, W) or None
        At the same scale.
    kind : LabelKind
        What they mean.
    config : ModelConfig
        Names the representation.
    labelled : bool
        Whether labels are wanted. An image without any then weighs nothing: it must not teach background.

    Returns
    -------
    Prepared
        Weights (1, 1) for instances and where no labels are wanted, (1, 0) for a foreground mask, (1, 1) near the
        cells of partial labels and 0 elsewhere, and (0, 0) where labels are wanted and missing.
    """
    alike = np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 0], image[..., 2])
    half = (image[..., :1] if alike else image).astype(np.float16)
    if labels is None:
        return Prepared(half, weight=(0.0, 0.0) if labelled else (1.0, 1.0))
    module = representation(config.representation)
    if kind == "foreground":
        return Prepared(half, module.encode_foreground(labels > 0).astype(np.float16), weight=(1.0, 0.0))
    known = near_cells(labels) if kind == "partial" else None
    return Prepared(half, module.encode(labels).astype(np.float16), known)


def near_cells(labels: Labels, ring: int = PARTIAL_RING) -> NDArray[np.bool_]:
    """Mark the cells of ``(H, W)`` and the pixels within a distance of ``ring`` pixels of one."""
    outside = (labels == 0).astype(np.uint8)
    if outside.all():
        return np.zeros(labels.shape, np.bool_)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance <= ring, np.bool_)
