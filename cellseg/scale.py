"""The scale at which an image is shown to a network: by the size of its cells, told or found out.

Where nobody told it, the scale is taken at which what is found depends least on scale: shown too large cells fall
to pieces, shown too small they melt together, differently at every scale, while at the right one the cells found
are those found a little finer and a little coarser too. So the instances themselves tell, without labels and for
every representation. Of a large image only the centre is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from cellseg.core import Image, Labels
from cellseg.metrics import match

ZOOM_LIMITS = (0.1, 4.0)
"""Images are never shrunk below a tenth or magnified beyond four times."""

SAME_SCALE = 0.02
"""Zooms nearer to 1 than this leave the pixels alone."""

ZOOMS = tuple(2.0 ** (step / 2) for step in range(-5, 5))
"""Zooms tried, a factor of √2 apart; the outer two only as neighbours."""
DOUBT = 20
"""Cells that are taken to disagree between two zooms beside those that do, where many images choose together: without
them a few blobs, each a clump of cells shown too coarse, agree more easily than a hundred cells. One image alone, which
may hold five cells, is not doubted."""

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


def stable_zoom(
    image: Image, segment_at: Callable[[Image, float], Labels], prior: Sequence[float] | None = None
) -> float | None:
    """Find the zoom whose instances agree best with those at the neighbouring zooms.

    Parameters
    ----------
    image : ndarray of float32, shape (H, W, 3)
        Normalised.
    segment_at : callable
        ``segment_at(image, zoom)`` returns labels of the image shown at a zoom, at that size.
    prior : sequence of float, optional
        What other images of the same kind say (:func:`scale_prior`); it counts the less, the surer this one is alone.

    Returns
    -------
    float or None
        One of :data:`ZOOMS` but the outer two: the largest mean of the two F1 at IoU 0.5 against its neighbours,
        the finer zoom where two are equal. None where no two neighbouring zooms agree on a single cell.
    """
    alone = _stability(image, segment_at, doubt=0)
    if prior is None or not alone.any():
        return _best(alone)
    return _best(alone + 2 * (1 - alone.max()) * np.asarray(prior))  # who is sure alone asks no one


def scale_prior(images: Iterable[Image], segment_at: Callable[[Image, float], Labels]) -> list[float]:
    """Return how well the cells of images agree between neighbouring zooms, lowered by :data:`DOUBT`, on average.

    Returns
    -------
    list of float
        For each of :data:`ZOOMS` but the outer two; a prior for other images of the same kind.
    """
    return [float(v) for v in np.mean([_stability(image, segment_at, doubt=DOUBT) for image in images], axis=0)]


def stable_zooms(images: Iterable[Image], segment_at: Callable[[Image, float], Labels]) -> list[float | None]:
    """Find the zooms of images of one kind, where what all of them say steadies what each says alone.

    Parameters
    ----------
    images : iterable of float32 (H, W, 3)
        Normalised; taken one by one.
    segment_at : callable
        As for :func:`stable_zoom`.

    Returns
    -------
    list of float or None
        For each image the zoom at which its own agreement with the neighbouring zooms, lowered by :data:`DOUBT`, plus
        its mean over all images is largest. None where no cell is found in any image.
    """
    alone = [_stability(image, segment_at, doubt=DOUBT) for image in images]
    together = np.mean(alone, axis=0) if alone else np.zeros(0)
    return [_best(one + together) for one in alone]


def _stability(
    image: Image, segment_at: Callable[[Image, float], Labels], *, doubt: int
) -> NDArray[np.float64]:
    """Return the mean agreement with both neighbours, of each zoom of :data:`ZOOMS` but the outer two."""
    pairs = [_agreement(image, coarse, fine, segment_at, doubt) for coarse, fine in pairwise(ZOOMS)]
    return np.array([(below + above) / 2 for below, above in pairwise(pairs)])


def _best(stability: NDArray[np.float64]) -> float | None:
    finest_first = stability[::-1]
    best = int(np.argmax(finest_first))
    return ZOOMS[-2 - best] if finest_first[best] > 0 else None


def _agreement(
    image: Image, coarse: float, fine: float, segment_at: Callable[[Image, float], Labels], doubt: int
) -> float:
    """Return the F1 at IoU 0.5 between two zooms, as if ``doubt`` cells more were found at one of them only."""
    rows, columns = (_middle(side, int(WINDOW / fine)) for side in image.shape[:2])
    part = image[rows, columns]
    if min(part.shape[:2]) * coarse < LEAST_SIDE:
        return 0.0
    labels_fine = segment_at(part, fine)
    labels_coarse = resize_labels(segment_at(part, coarse), (labels_fine.shape[0], labels_fine.shape[1]))
    found = match(labels_fine, labels_coarse, thresholds=(0.5,))[0]
    return 2 * found.tp / max(2 * found.tp + found.fp + found.fn + doubt, 1)


def _middle(side: int, length: int) -> slice:
    start = max(0, (side - length) // 2)
    return slice(start, min(side, start + length))
