"""One image shown to a network in several ways: flipped, and a little finer and coarser.

What a network finds in all of them is likely there; what it finds in one only is likely not. Pseudo-labels, the
label-free criteria and the choice of images to annotate all rest on this. Views are compared as decoded instances,
so every representation will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellseg.core import Image, Labels
from cellseg.instances import representation
from cellseg.metrics import match
from cellseg.metrics.matching import matched_pairs
from cellseg.metrics.overlap import overlap
from cellseg.predict import Segmenter
from cellseg.scale import LEAST_SIDE, resize_image, resize_labels

FLIPS: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (0, 1))
"""Axes along which the image is flipped; the first leaves it as it is."""

SCALES = (2.0**-0.25, 2.0**0.25)
"""Neighbouring scales, relative to the one at which the cells have the network's reference diameter."""

FOUND_IOU = 0.6
"""A cell is found again where a cell of another view overlaps it with at least this IoU."""


@dataclass(frozen=True)
class Views:
    """What a network makes of an image and its views, all at the size ``(h, w)`` of the scale chosen.

    Attributes
    ----------
    maps : float32 (K, h, w)
        Raw maps, averaged over the flips.
    foreground : float32 (h, w)
        Foreground probability, averaged over the flips.
    labels : int32 (h, w)
        Decoded from ``maps``, ids from 1.
    flips, scales : tuple of int32 (h, w)
        Each flip and each neighbouring scale decoded on its own.
    """

    maps: NDArray[np.float32]
    foreground: NDArray[np.float32]
    labels: Labels
    flips: tuple[Labels, ...]
    scales: tuple[Labels, ...]


def see(segmenter: Segmenter, image: Image, zoom: float) -> Views:
    """Show an image at a zoom, flipped, and at the neighbouring scales.

    Parameters
    ----------
    segmenter : Segmenter
        The network.
    image : float32 (H, W, 3)
        Normalised.
    zoom : float
        Factor that brings its cells to the network's reference diameter.

    Returns
    -------
    Views
        The coarser scale is left out where the image would have fewer than :data:`cellseg.scale.LEAST_SIDE` pixels.
    """
    module = representation(segmenter.config.representation)
    smallest = segmenter.settings.min_size
    shown = resize_image(image, zoom)
    flipped = [segmenter.flipped_maps(shown, axes) for axes in FLIPS]
    maps = np.asarray(np.mean(flipped, axis=0), np.float32)
    labels = segmenter.labels_of(maps, smallest)
    shape = (labels.shape[0], labels.shape[1])
    scales = [zoom * step for step in SCALES if step > 1 or min(image.shape[:2]) * zoom * step >= LEAST_SIDE]
    return Views(
        maps,
        np.asarray(np.mean([module.foreground(one) for one in flipped], axis=0), np.float32),
        labels,
        tuple(segmenter.labels_of(one, smallest) for one in flipped),
        tuple(resize_labels(segmenter.segment_at(image, scale), shape) for scale in scales),
    )


def found_again(labels: Labels, views: Sequence[Labels], iou: float = FOUND_IOU) -> NDArray[np.float64]:
    """Return in what share of the views each cell is found again.

    Parameters
    ----------
    labels : int32 (H, W)
        Cells with ids 1..N.
    views : sequence of int32 (H, W)
        At least one other segmentation of the same pixels.
    iou : float
        Least IoU of a cell found again, above 0.5.

    Returns
    -------
    float64 (N,)
        In [0, 1], of the cells in order of their ids.
    """
    hits = np.zeros(int(labels.max(initial=0)))
    for view in views:
        table = overlap(labels, view)
        hits[table.ids_true[table.pair_true[matched_pairs(table, iou)]] - 1] += 1
    return np.asarray(hits / len(views), np.float64)


def agreement(labels: Labels, views: Sequence[Labels]) -> float:
    """Return the mean F1 at IoU 0.5 between labels and views; a view is worth 0 where neither finds a cell."""
    return float(np.mean([np.nan_to_num(match(labels, view, thresholds=(0.5,))[0].f1) for view in views]))
