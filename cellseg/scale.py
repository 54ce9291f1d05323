"""The scale at which an image is shown to a network: by the size of its cells, told or found out.

Where nobody told it, the scale is taken at which what is found depends least on scale: shown too large cells fall
to pieces, shown too small they melt together, differently at every scale, while at the right one the cells found
are those found a little finer and a little coarser too. So the instances themselves tell, without labels and for
every representation. Of a large image only the centre is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np

from cellseg.core import Image, Labels
from cellseg.metrics import match

ZOOM_LIMITS = (0.1, 4.0)
"""Images are never shrunk below a tenth or magnified beyond four times."""

SAME_SCALE = 0.02
"""Zooms nearer to 1 than this leave the pixels alone."""

ZOOMS = tuple(2.0 ** (step / 2) for step in range(-5, 5))
"""Zooms tried, a factor of √2 apart; the outer two only as neighbours."""
WINDOW = 512
"""Largest side in pixels, at the finer of two zooms, of the part that is compared."""
LEAST_SIDE = 32
"""Images are not shown smaller than this many pixels."""


def zoom_for(diameter: float | None, reference_diameter: float) -> float:
    """Return the factor that brings cells of a diameter to the reference, within :data:`ZOOM_LIMITS`."""
    if not diameter:
        return 1.0
    return float(np.clip(reference_diameter / diameter, *ZOOM_LIMITS))


def resize_image(image: Image, zoom: float) -> Image:
    """Scale an image ``(H, W, C)``, averaging areas when shrinking."""
    if abs(zoom - 1) < SAME_SCALE:
        return image
    height, width = (max(1, round(side * zoom)) for side in image.shape[:2])
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=method)
    return np.asarray(resized, np.float32).reshape(height, width, image.shape[2])


def resize_labels(labels: Labels, shape: tuple[int, int]) -> Labels:
    """Scale labels to ``(height, width)`` by the nearest pixel; ids are never mixed."""
    if labels.shape == shape:
        return labels
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp) for new, old in zip(shape, labels.shape, strict=True)
    )
    return np.ascontiguousarray(labels[rows[:, None], columns])


def stable_zoom(image: Image, segment_at: Callable[[Image, float], Labels]) -> float | None:
    """Find the zoom whose instances agree best with those at the neighbouring zooms.

    Parameters
    ----------
    image : ndarray of float32, shape (H, W, 3)
        Normalised.
    segment_at : callable
        ``segment_at(image, zoom)`` returns labels of the image shown at a zoom, at that size.

    Returns
    -------
    float or None
        One of :data:`ZOOMS` but the outer two: the largest mean of the two F1 at IoU 0.5 against its neighbours,
        the finer zoom where two are equal. None where no two neighbouring zooms agree on a single cell.
    """
    agreements = [_agreement(image, coarse, fine, segment_at) for coarse, fine in pairwise(ZOOMS)]
    means = [(below + above) / 2 for below, above in pairwise(agreements)]
    best = int(np.argmax(means[::-1]))
    return ZOOMS[-2 - best] if means[::-1][best] > 0 else None


def _agreement(image: Image, coarse: float, fine: float, segment_at: Callable[[Image, float], Labels]) -> float:
    rows, columns = (_middle(side, int(WINDOW / fine)) for side in image.shape[:2])
    part = image[rows, columns]
    if min(part.shape[:2]) * coarse < LEAST_SIDE:
        return 0.0
    labels_fine = segment_at(part, fine)
    labels_coarse = resize_labels(segment_at(part, coarse), (labels_fine.shape[0], labels_fine.shape[1]))
    f1 = match(labels_fine, labels_coarse, thresholds=(0.5,))[0].f1
    return 0.0 if np.isnan(f1) else f1


def _middle(side: int, length: int) -> slice:
    start = max(0, (side - length) // 2)
    return slice(start, min(side, start + length))
