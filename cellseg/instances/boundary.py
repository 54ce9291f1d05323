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


def decode(maps: Maps, *, foreground_threshold: float = 0.0, min_size: int = 10) -> Labels:
    """Grow each interior into the boundary around it.

    Parameters
    ----------
    maps : ndarray of float32, shape (3, H, W)
        Raw network output: logits of background, interior and boundary.
    foreground_threshold : float
        A pixel is foreground where the logit of interior or boundary exceeds this; interiors have more than half.
    min_size : int
        Cells of fewer pixels are dropped.

    Returns
    -------
    ndarray of int32, shape (H, W)
        Instance image with consecutive ids. Foreground that no interior reaches belongs to no cell.

    Notes
    -----
    The organisers' ``predict.py`` stops at the interiors; here they grow within the foreground, all at one pace.
    """
    if maps.ndim != 3 or maps.shape[0] != N_MAPS:
        raise CellsegError(f"boundary.decode wants maps of shape (3, H, W), got {maps.shape}")
    from scipy.special import expit

    probability = _softmax(maps)
    markers = _without_small(probability[1] > 0.5)
    if not markers.any():
        return np.zeros(markers.shape, np.int32)
    return drop_small(_grow(markers, 1 - probability[0] > expit(foreground_threshold)), min_size)


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


def _grow(markers: Labels, mask: NDArray[np.bool_]) -> Labels:
    """Let markers spread over the mask at one pace in all directions; where two meet, the first in the row has it.

    By turns to the four and to the eight neighbours, so that a ring is an octagon: nearer the truth than the squares of
    scikit-image's watershed of an even height, and faster than its heap.
    """
    import cv2

    width = mask.shape[1] + 2
    four = np.array([-width, -1, 1, width])
    eight = np.append(four, [-width - 1, 1 - width, width - 1, width + 1])
    labels = cv2.copyMakeBorder(markers, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    free = np.pad(mask, 1) & (labels == 0)
    rim = (labels > 0) & (cv2.dilate(free.view(np.uint8), np.ones((3, 3), np.uint8)) > 0)
    grown, free, front = labels.ravel(), free.ravel(), np.flatnonzero(rim)
    turn = np.empty(grown.size, np.intp)
    while front.size:
        near = _spread(grown, free, turn, front, four)
        front = np.append(near, _spread(grown, free, turn, np.append(front, near), eight))
    return np.ascontiguousarray(labels[1:-1, 1:-1])


def _spread(
    grown: NDArray[np.int32],
    free: NDArray[np.bool_],
    turn: NDArray[np.intp],
    front: NDArray[np.intp],
    around: NDArray[np.intp],
) -> NDArray[np.intp]:
    """Give the free neighbours of the front its labels, in place; return them. ``turn`` is room to work in."""
    reached = (front[:, None] + around).ravel()
    came = np.flatnonzero(free[reached])
    reached, owner = reached[came], grown[front[came // around.size]]
    turn[reached[::-1]] = came[::-1]  # of several that reach a pixel the first is written last
    first = turn[reached] == came
    new = np.asarray(reached[first], np.intp)
    grown[new], free[new] = owner[first], False
    return new


_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
