"""Cells as three classes, background, interior and boundary: the baseline of the NeurIPS 2022 challenge.

Two cells are apart where boundary lies between their interiors. A cell of which the boundary leaves fewer than 16
pixels has no interior and vanishes; this weakness is the baseline's own and is kept, so that a comparison shows it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellseg.core import CellsegError, Labels
from cellseg.instances.interface import IDEAL_LOGIT, ConfidenceRule, Maps, Term, drop_small

N_MAPS = 3
"""Maps of this representation: logits of background, interior and boundary."""

LOSS: tuple[Term, ...] = (
    Term("foreground", "bce", slice(0, 3)),
    Term("boundary", "cross_entropy", slice(1, 3)),
)
"""Together the cross-entropy of the three classes; the first term alone serves labels without instances."""

VECTORS: tuple[int, ...] = ()
CONFIDENCE: ConfidenceRule = "probability"

_MIN_INTERIOR = 16
"""Interiors of fewer pixels are not kept (``pre_process_3class.py``, ``predict.py``)."""


def encode(labels: Labels) -> Maps:
    """Make the three classes of an instance image.

    Parameters
    ----------
    labels : ndarray of int32, shape (H, W)
        Instance image, 0 is background.

    Returns
    -------
    ndarray of float32, shape (3, H, W)
        One-hot background, interior and boundary.

    Notes
    -----
    The organisers' ``create_interior_map`` (NeurIPS-CellSeg, ``baseline/data/pre_process_3class.py``): inner boundary,
    dilated by one pixel, then interiors of fewer than 16 pixels removed. It differs in that what the organisers'
    boundary takes from the background stays background and what they remove becomes boundary, so that interior
    and boundary together are the foreground.
    """
    import cv2

    if labels.ndim != 2:
        raise CellsegError(f"boundary.encode wants labels of shape (H, W), got {labels.shape}")
    target = np.zeros((N_MAPS, *labels.shape), np.float32)
    if labels.size == 0:
        return target
    cells = labels > 0
    rim = cv2.dilate(_inner_boundary(labels).view(np.uint8), _CROSS) > 0
    interior = _without_small(cells & ~rim) > 0
    target[0], target[1], target[2] = ~cells, interior, cells & ~interior
    return target


def encode_foreground(mask: NDArray[np.bool_]) -> Maps:
    """Make the target of a foreground mask ``(H, W)``: how it divides into interior and boundary is a placeholder."""
    return np.stack([~mask, mask, np.zeros_like(mask)]).astype(np.float32)


def ideal_maps(target: Maps) -> Maps:
    """Return the raw network output of a perfect network: a logit of 8 for the class, −8 for the others."""
    return np.where(target > 0, IDEAL_LOGIT, -IDEAL_LOGIT).astype(np.float32)


def decode(maps: Maps, *, min_size: int = 10) -> Labels:
    """Grow each interior into the boundary around it.

    Parameters
    ----------
    maps : ndarray of float32, shape (3, H, W)
        Raw network output: logits of background, interior and boundary.
    min_size : int
        Cells of fewer pixels are dropped.

    Returns
    -------
    ndarray of int32, shape (H, W)
        Instance image with consecutive ids. Foreground that no interior reaches belongs to no cell.

    Notes
    -----
    The organisers' ``predict.py`` stops at the interiors; here they grow by a watershed within the foreground.
    """
    from skimage.segmentation import watershed

    if maps.ndim != 3 or maps.shape[0] != N_MAPS:
        raise CellsegError(f"boundary.decode wants maps of shape (3, H, W), got {maps.shape}")
    mask = foreground(maps) > 0.5
    markers = _without_small(_softmax(maps)[1] > 0.5)
    if not markers.any():
        return np.zeros(mask.shape, np.int32)
    grown = watershed(np.zeros(mask.shape, np.uint8), markers, connectivity=2, mask=mask | (markers > 0))
    return drop_small(np.asarray(grown, np.int32), min_size)


def foreground(maps: Maps) -> NDArray[np.float32]:
    """Return the probability ``(H, W)`` of interior or boundary, of raw network output ``(3, H, W)``."""
    return np.asarray(1 - _softmax(maps)[0], np.float32)


def confidence(maps: Maps) -> NDArray[np.float32]:
    """Return the probability ``(H, W)`` of the likeliest class of raw network output ``(3, H, W)``."""
    return np.asarray(_softmax(maps).max(axis=0), np.float32)


def warp(target: Maps, matrix: NDArray[np.floating]) -> Maps:
    """Return the target as it is: classes do not turn."""
    return target


def _softmax(maps: Maps) -> Maps:
    from scipy.special import softmax

    return np.asarray(softmax(maps, axis=0), np.float32)


def _inner_boundary(labels: Labels) -> NDArray[np.bool_]:
    from skimage.segmentation import find_boundaries

    return np.asarray(find_boundaries(labels, mode="inner"))


def _without_small(interior: NDArray[np.bool_]) -> Labels:
    """Give ids to the 4-connected parts of a mask that have enough pixels."""
    from scipy import ndimage

    parts, _ = ndimage.label(interior)
    return drop_small(np.asarray(parts, np.int32), _MIN_INTERIOR)


_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
