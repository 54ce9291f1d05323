"""Cells as distances: a foreground map and, at every pixel of a cell, its distance to the cell's outline.

The distance is divided by its largest value in the cell, so that every cell, small or large, is a hill of height 1.
Decoding floods the hills from their tops and joins those between which there is no valley. Directions need not be
learned, but two cells that touch are told apart only by the valley between them: where cells are one or two
pixels wide there is none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cellseg.core import CellsegError, Labels
from cellseg.instances.interface import IDEAL_LOGIT, ConfidenceRule, Maps, Term, drop_small, sigmoid

N_MAPS = 2
"""Maps of this representation: foreground, distance."""

DISTANCE_SCALE = 5.0
"""The network predicts this multiple of the distance, as for the flow, so that both losses weigh alike."""

LOSS: tuple[Term, ...] = (
    Term("foreground", "bce", slice(0, 1)),
    Term("distance_map", "mse", slice(1, 2), scale=DISTANCE_SCALE, weight=0.5),
)
VECTORS: tuple[int, ...] = ()
CONFIDENCE: ConfidenceRule = "margin"

_SIGMA_SHARE = 0.07
_SIGMA_LIMITS = (0.6, 3.0)
"""Standard deviation of the smoothing as a share of the median cell's radius (half its width), and its limits in px."""
_CORE = 0.5
"""Pixels higher than this are cores: touching cells have separate ones, half as wide as the cells."""
_EIGHT = np.ones((3, 3), np.uint8)
_AROUND = ((1, 1), (1, 0), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, 0), (-1, -1))
_PASS_SHARE, _PASS_DEPTH = 0.6, 0.2
"""Two hills are one cell when the pass between them is higher than this share of the lower top, or less than this
below it. The first joins the lobes of long cells, the second what noise makes on the slopes of large ones."""


def encode(labels: Labels) -> Maps:
    """Make the foreground and distance targets of an instance image.

    Parameters
    ----------
    labels : ndarray of int32, shape (H, W)
        Instance image, 0 is background. Pieces of one id that do not touch are one hill each.

    Returns
    -------
    ndarray of float32, shape (2, H, W)
        Foreground (0 or 1), and the distance of each pixel's centre to the outline of its cell, which runs half a
        pixel outside its outermost pixel centres, divided by the largest of the cell. The edge of the image is no
        outline: a cell that leaves the image goes on, as for crops. A cell that fills the image is 1 everywhere.
    """
    import cv2
    from skimage.measure import label

    if labels.ndim != 2:
        raise CellsegError(f"distance.encode wants labels of shape (H, W), got {labels.shape}")
    target = np.zeros((N_MAPS, *labels.shape), np.float32)
    if labels.size == 0:
        return target
    target[0] = labels > 0
    pieces = label(labels, connectivity=2)
    for number, (rows, columns) in enumerate(ndimage.find_objects(pieces), start=1):
        around = np.s_[max(rows.start - 1, 0) : rows.stop + 1, max(columns.start - 1, 0) : columns.stop + 1]
        inside = pieces[around] == number
        if inside.all():
            target[1][around] = 1
            continue
        distance = cv2.distanceTransform(inside.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[inside]
        distance = np.sqrt(np.rint(distance * distance)) - np.float32(0.5)  # OpenCV's last digit depends on addresses
        target[1][around][inside] = distance / distance.max()
    return target


def encode_foreground(mask: NDArray[np.bool_]) -> Maps:
    """Make the target of a foreground mask ``(H, W)``: the mask, and distance 0, which no loss may look at."""
    return np.stack([mask.astype(np.float32), np.zeros(mask.shape, np.float32)])


def ideal_maps(target: Maps) -> Maps:
    """Return the raw network output of a perfect network: logits of ±8, scaled distance."""
    return np.stack([np.where(target[0] > 0, IDEAL_LOGIT, -IDEAL_LOGIT), DISTANCE_SCALE * target[1]]).astype(np.float32)


def decode(maps: Maps, *, foreground_threshold: float = 0.0, min_size: int = 10) -> Labels:
    """Flood the hills of the foreground from their tops.

    Parameters
    ----------
    maps : ndarray of float32, shape (2, H, W)
        Raw network output: foreground logit, ``DISTANCE_SCALE`` · distance.
    foreground_threshold : float
        A pixel is foreground where its logit exceeds this.
    min_size : int
        Cells of fewer pixels are dropped.

    Returns
    -------
    ndarray of int32, shape (H, W)
        Instance image with consecutive ids.
    """
    import cv2

    if maps.ndim != 3 or maps.shape[0] != N_MAPS:
        raise CellsegError(f"distance.decode wants maps of shape (2, H, W), got {maps.shape}")
    mask = maps[0] > foreground_threshold
    if not mask.any():
        return np.zeros(mask.shape, np.int32)
    height = np.where(mask, np.clip(maps[1] / DISTANCE_SCALE, 0, 1), 0).astype(np.float32)
    height = cv2.GaussianBlur(height, (0, 0), _sigma(height), borderType=cv2.BORDER_REFLECT_101)
    height[~mask] = -1
    return drop_small(_join(_hills(height, mask), height), min_size)


def foreground(maps: Maps) -> NDArray[np.float32]:
    """Return the foreground probability ``(H, W)`` of raw network output ``(2, H, W)``."""
    return sigmoid(maps[0])


def confidence(maps: Maps) -> NDArray[np.float32]:
    """Return how far the foreground probability p of raw output is from a coin toss, abs(2p − 1), shape (H, W)."""
    return np.asarray(np.abs(np.tanh(0.5 * maps[0])), np.float32)


def warp(target: Maps, matrix: NDArray[np.floating]) -> Maps:
    """Return the target as it is: a share of the cell's own largest distance does not turn or scale."""
    return target


def _sigma(height: NDArray[np.float32]) -> float:
    """Smoothing in pixels, from the median radius of the cores (pixels higher than half, twice as small as cells)."""
    import cv2

    core = height > _CORE
    count, cores = cv2.connectedComponents(core.view(np.uint8), connectivity=8)
    radius = np.zeros(count, np.float32)
    np.maximum.at(radius, cores[core], cv2.distanceTransform(core.view(np.uint8), cv2.DIST_L2, 5)[core])
    typical = 2 * float(np.median(radius[1:])) if count > 1 else 0.0
    return float(np.clip(_SIGMA_SHARE * typical, *_SIGMA_LIMITS))


def _hills(height: NDArray[np.float32], mask: NDArray[np.bool_]) -> Labels:
    """Give every pixel of the mask the id of the top at which the steepest way up ends: a watershed."""
    import cv2

    rows, columns = height.shape
    highest = cv2.dilate(height, _EIGHT)
    padded = cv2.copyMakeBorder(height, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=-1)
    way = np.zeros(height.shape, np.uint8)
    for number, (down, right) in enumerate(_AROUND):  # of equally high neighbours the last has its way
        same = padded[1 + down : 1 + down + rows, 1 + right : 1 + right + columns] == highest
        np.maximum(way, (number + 1) * same.view(np.uint8), out=way)
    way *= height < highest
    offsets = np.array([0, *(down * columns + right for down, right in _AROUND)])
    steps = np.arange(height.size) + offsets.take(way.ravel())
    while not np.array_equal(further := steps.take(steps), steps):
        steps = further
    tops = cv2.connectedComponents(((way == 0) & mask).view(np.uint8), connectivity=8)[1]
    return np.where(mask, tops.take(steps).reshape(height.shape), 0)


def _join(hills: Labels, height: NDArray[np.float32]) -> Labels:
    """Join neighbouring hills between which there is no valley to speak of, the highest passes first."""
    n_hills = int(hills.max())
    top = np.zeros(n_hills + 1, np.float32)
    np.maximum.at(top, hills.ravel(), height.ravel())
    first, second, passes = _passes(hills, height)
    likely = np.flatnonzero(_is_shallow(passes, np.minimum(top[first], top[second])))  # tops of joined hills only grow
    parent = list(range(n_hills + 1))
    for index in likely[np.argsort(-passes[likely], kind="stable")]:
        low, high = sorted((_root(parent, first[index]), _root(parent, second[index])), key=lambda hill: top[hill])
        if low != high and _is_shallow(passes[index], top[low]):
            parent[low] = high
    return np.array([_root(parent, hill) for hill in range(n_hills + 1)], np.int32)[hills]


def _is_shallow(height: NDArray[np.float32], top: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.asarray(height >= np.minimum(_PASS_SHARE * top, top - _PASS_DEPTH))


def _root(parent: list[int], hill: int) -> int:
    """Return the hill that a hill now belongs to, and shorten the way there."""
    while parent[hill] != hill:
        parent[hill] = parent[parent[hill]]
        hill = parent[hill]
    return hill


def _passes(
    hills: Labels, height: NDArray[np.float32]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Pairs of touching hills and the height of the highest pass between them."""
    count = np.int64(hills.max()) + 1
    keys, lowest = [], []
    for here, there in _NEIGHBOURS:
        a, b = hills[here], hills[there]
        touching = (a != b) & (a > 0) & (b > 0)
        a, b = a[touching].astype(np.int64), b[touching].astype(np.int64)
        keys.append(np.minimum(a, b) * count + np.maximum(a, b))
        lowest.append(np.minimum(height[here][touching], height[there][touching]))
    pairs, where = np.unique(np.concatenate(keys), return_inverse=True)
    highest = np.zeros(pairs.size, np.float32)
    np.maximum.at(highest, where, np.concatenate(lowest))
    return *np.divmod(pairs, count), highest


_NEIGHBOURS = (
    (np.s_[:, 1:], np.s_[:, :-1]),
    (np.s_[1:], np.s_[:-1]),
    (np.s_[1:, 1:], np.s_[:-1, :-1]),
    (np.s_[1:, :-1], np.s_[:-1, 1:]),
)
