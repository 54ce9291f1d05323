"""The scale at which an image is shown to a network: by the size of its cells, told or found out.

Where nobody told it, the scale is taken at which what is found depends least on scale: shown too large cells fall
to pieces, shown too small they melt together, differently at every scale, while at the right one the cells found
are those found a little finer and a little coarser too. So the instances themselves tell, without labels and for
every representation. Of a large image only a few parts that hold something are looked at. An image whose cells are
found again about as it is, is not shown at scales far from that; this gives up the finest of several good scales,
which takes longest to segment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from cellseg.core import Image, Labels
from cellseg.metrics import match
from cellseg.slides.blocks import Region

ZOOM_LIMITS = (0.1, 4.0)
"""Images are never shrunk below a tenth or magnified beyond four times."""

SAME_SCALE = 0.02
"""Zooms nearer to 1 than this leave the pixels alone."""

ZOOMS = tuple(2.0 ** (step / 2) for step in range(-5, 5))
"""Zooms tried, a factor of √2 apart; the outer two only as neighbours."""
NEAR, SURE = range(3, 6), 0.95
"""Which of :data:`ZOOMS` but the outer two are tried first (1 and its neighbours), and the agreement that is enough."""
DOUBT = 20
"""Cells that are taken to disagree between two zooms beside those that do, where many images choose together: without
them a few blobs, each a clump of cells shown too coarse, agree more easily than a hundred cells. One image alone, which
may hold five cells, is not doubted."""

WINDOW = 512
"""Largest side in pixels, at the finer of two zooms, of the part that is compared."""
LOOK_SIDE = 2048
"""Largest side in pixels of an image whose middle is enough: at the coarsest zoom tried, all of it is compared."""
LOOKS = 5
"""Parts of larger images that are looked at."""
_PROBE, _PROBES = 256, 8
"""Side of the probes that tell where a large image holds something, and how many there are in a row at most."""
LEAST_SIDE = 32
"""Images are not shown smaller than this many pixels."""


def zoom_for(diameter: float | None, reference_diameter: float) -> float:
    """Return the factor that brings cells of a diameter to the reference, within :data:`ZOOM_LIMITS`."""
    if not diameter:
        return 1.0
    return float(np.clip(reference_diameter / diameter, *ZOOM_LIMITS))


def zoomed_shape(shape: tuple[int, int], zoom: float) -> tuple[int, int]:
    """Return the size at which :func:`resize_image` shows an image; that of the image for zooms next to 1."""
    if abs(zoom - 1) < SAME_SCALE:
        return shape
    return max(1, round(shape[0] * zoom)), max(1, round(shape[1] * zoom))


def middle_of(shape: tuple[int, int], zoom: float, side: int) -> Region:
    """Return the middle of an image of a shape, at most ``side`` pixels high and wide once shown at a zoom."""
    length = max(1, int(side / zoom))
    top, left = (max(0, (whole - length) // 2) for whole in shape)
    return Region(top, left, min(shape[0], top + length), min(shape[1], left + length))


def resize_image(image: Image, zoom: float) -> Image:
    """Scale an image ``(H, W, C)``, averaging areas when shrinking."""
    height, width = zoomed_shape((image.shape[0], image.shape[1]), zoom)
    if abs(zoom - 1) < SAME_SCALE:
        return image
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=method)
    return np.asarray(resized, np.float32).reshape(height, width, image.shape[2])


def resize_labels(labels: Labels, shape: tuple[int, int]) -> Labels:
    """Scale labels to ``(height, width)`` by the nearest pixel; ids are never mixed."""
    old = (labels.shape[0], labels.shape[1])
    return resize_part(labels, Region.whole(old), old, Region.whole(shape), shape)


def resize_part(
    labels: Labels, region: Region, shape: tuple[int, int], new_region: Region, new_shape: tuple[int, int]
) -> Labels:
    """Scale a part of a label image as :func:`resize_labels` scales all of it.

    Parameters
    ----------
    labels : int32 (h, w)
        The part.
    region, shape
        Where it lies, and the size of the whole.
    new_region, new_shape
        The part wanted, which the one given covers, and the new size of the whole.
    """
    if shape == new_shape and region == new_region:
        return labels
    rows, columns = (
        ((np.arange(part.start, part.stop) + 0.5) * old / new).astype(np.intp)
        for part, old, new in zip((new_region.rows, new_region.columns), shape, new_shape, strict=True)
    )
    return np.ascontiguousarray(labels[rows[:, None] - region.top, columns - region.left])


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
        the finer zoom where two are equal; one of :data:`NEAR` if its mean is at least :data:`SURE`, unless others
        have a say. None where no two neighbouring zooms agree on a single cell.
    """
    if prior is None:
        return _best(_stability(image, segment_at, doubt=0, enough=SURE))
    alone = _stability(image, segment_at, doubt=0)
    if not alone.any():
        return None
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
    image: Image, segment_at: Callable[[Image, float], Labels], *, doubt: int, enough: float = np.inf
) -> NDArray[np.float64]:
    """Return the mean agreement with both neighbours, of each zoom of :data:`ZOOMS` but the outer two.

    Where one of :data:`NEAR` has ``enough``, the others are not tried and have 0.
    """
    shown: dict[tuple[int, ...], Labels] = {}

    def show(rows: slice, columns: slice, step: int) -> Labels:
        key = rows.start, rows.stop, columns.start, columns.stop, step
        if key not in shown:
            shown[key] = segment_at(image[rows, columns], ZOOMS[step])
        return shown[key]

    pair = cache(lambda coarse: _agreement((image.shape[0], image.shape[1]), coarse, show, doubt))
    stability = np.zeros(len(ZOOMS) - 2)
    for steps in (NEAR, range(stability.size)):
        for step in steps:
            stability[step] = (pair(step) + pair(step + 1)) / 2
        if stability.max() >= enough:
            break
    return stability


def _best(stability: NDArray[np.float64]) -> float | None:
    finest_first = stability[::-1]
    best = int(np.argmax(finest_first))
    return ZOOMS[-2 - best] if finest_first[best] > 0 else None


def looks(shape: tuple[int, int], read: Callable[[Region], Image]) -> list[Region]:
    """Choose the parts of an image whose scale tells that of the whole.

    Parameters
    ----------
    shape : (height, width)
        Of the image in pixels.
    read : callable
        Returns the normalised pixels of a region.

    Returns
    -------
    list of Region
        All of an image without a side above :data:`LOOK_SIDE`; else up to :data:`LOOKS` parts of that size around those
        probes, of a regular grid of at most 8 × 8, whose values vary most, the first of equals in reading order.
    """
    if max(shape) <= LOOK_SIDE:
        return [Region.whole(shape)]
    places = [np.linspace(0, side, min(_PROBES, -(-2 * side // LOOK_SIDE)) + 2)[1:-1] for side in shape]
    centres = [(int(row), int(column)) for row in places[0] for column in places[1]]
    spread = [float(read(_around(centre, _PROBE, shape)).std(axis=(0, 1)).max()) for centre in centres]
    liveliest = np.argsort(-np.array(spread), kind="stable")[:LOOKS]
    return [_around(centres[index], LOOK_SIDE, shape) for index in liveliest]


def _around(centre: tuple[int, int], length: int, shape: tuple[int, int]) -> Region:
    """Return the region of a length around a pixel, moved inside the image, cut off only where that is smaller."""
    (top, height), (left, width) = (
        (max(0, min(place - length // 2, side - length)), min(length, side))
        for place, side in zip(centre, shape, strict=True)
    )
    return Region(top, left, top + height, left + width)


def _agreement(shape: tuple[int, int], coarse: int, show: Callable[[slice, slice, int], Labels], doubt: int) -> float:
    """Return the F1 at IoU 0.5 between a step of zoom and the next, as if ``doubt`` cells more were found at one only.

    ``show(rows, columns, step)`` segments a part of the image at ``ZOOMS[step]``.
    """
    part = middle_of(shape, ZOOMS[coarse + 1], WINDOW)
    if min(part.shape) * ZOOMS[coarse] < LEAST_SIDE:
        return 0.0
    labels_fine = show(part.rows, part.columns, coarse + 1)
    labels_coarse = resize_labels(show(part.rows, part.columns, coarse), (labels_fine.shape[0], labels_fine.shape[1]))
    found = match(labels_fine, labels_coarse, thresholds=(0.5,))[0]
    return 2 * found.tp / max(2 * found.tp + found.fp + found.fn + doubt, 1)
